"""Predict on videos, and follow objects through them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from meinst.detections import Detections
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.detector.track import Tracker, predict_frames
from meinst.files import check_folder
from meinst.images.video import FrameRange, VideoError, VideoFrame, VideoReader
from meinst.inference.journal import model_digest
from meinst.inference.video_results import (
    DEFAULT_VIDEO_FORMATS,
    PredictedFrame,
    VideoResults,
    VideoRun,
    parse_video_formats,
    video_files,
)
from meinst.locks import lock_folder

log = logging.getLogger("meinst")


@dataclass(frozen=True)
class VideoSummary:
    """Outcome of a video.

    Attributes:
        source: the video.
        files: what was written.
        frames: number of frames predicted.
        detections: number of detections.
        tracks: number of tracks; 0 without tracking.
        seconds: time that it took.
        broken: why the video ended early; None if it did not.
    """

    source: str
    files: tuple[Path, ...]
    frames: int
    detections: int
    tracks: int
    seconds: float
    broken: str | None = None


def predict_video(
    model: Predictor,
    source: str | Path,
    output: Path,
    *,
    selection: SelectOptions | None = None,
    frames: FrameRange | None = None,
    formats: str | Sequence[str] = DEFAULT_VIDEO_FORMATS,
    tracking: bool = True,
    on_frame: Callable[[], None] | None = None,
) -> VideoSummary:
    """Segment the frames of a video; decoding, the network and encoding overlap.

    Ctrl-C ends the video at the current frame. If it is damaged or cut off, the frames before are
    kept.

    Args:
        model: in evaluation mode.
        source: a video file, the address of a stream, or the number of a camera.
        output: folder; created if it does not exist. Files are named after the source.
        selection: what counts as a detection; the model's own if None.
        frames: which frames; all if None.
        formats: what to write; names of :data:`meinst.inference.video_results.VIDEO_FORMATS`.
        tracking: whether to follow objects.
        on_frame: called after each frame.

    Raises:
        ImportError: if the packages of ``meinst[video]`` are missing.
        OSError: if there is no such source, or the output cannot be written or is in use.
        ValueError: if a format is unknown, the video cannot be read, or its frames change size.
    """
    formats = parse_video_formats(formats)
    selection, chosen = selection or model.selection, frames or FrameRange()
    check_folder(output)
    started = time.perf_counter()
    with lock_folder(output), VideoReader(source) as video:
        files = video_files(source, output, formats)
        run = _describe(model, source, video, chosen)
        with _Results(VideoResults(formats, files, run), video, chosen) as results:
            try:
                for frame, found in _predict(model, video, chosen, selection, tracking):
                    results.add(frame, found, on_frame)
            except KeyboardInterrupt:
                log.warning("%s: stopped after %d frames", video.name, results.frames)
        return results.summary(str(source), files, time.perf_counter() - started)


def _describe(
    model: Predictor, source: str | Path, video: VideoReader, chosen: FrameRange
) -> VideoRun:
    """What the writers need to know."""
    rate = video.rate / chosen.every
    return VideoRun(source, model.class_names, model_digest(model), rate, chosen.start)


def _predict(
    model: Predictor,
    video: VideoReader,
    chosen: FrameRange,
    selection: SelectOptions,
    tracking: bool,
) -> Iterator[tuple[VideoFrame, Detections]]:
    """Frames and their detections, with tracks if objects are followed."""
    tracker = None
    if tracking:
        rate = float(video.rate) / chosen.every
        tracker = Tracker(rate, model.class_names, selection.threshold)
    images = ((frame, frame.pixels) for frame in video.read(chosen))
    wide = selection if tracker is None else tracker.select(selection)
    for frame, detections in predict_frames(model, images, wide):
        yield frame, detections if tracker is None else tracker.update(detections)


class _Results:
    """The files of a video, written by a thread while the next frame is predicted."""

    def __init__(self, files: VideoResults, video: VideoReader, chosen: FrameRange) -> None:
        self.frames = self.detections = 0
        self.tracks = set[int]()
        self._files, self._video = files, video
        self._last = chosen.start
        self._step = chosen.every / float(video.rate)
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting: Future[None] | None = None

    def __enter__(self) -> _Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._files, self._thread:  # errors raised here remove the incomplete files
            if error is not None and not (self.frames and isinstance(error, VideoError)):
                raise error
            if not self.frames:
                raise VideoError(f"{self._video.name}: stopped before the first frame.")
            self._wait()
            self._files.finish(self._last + self._step)

    def add(
        self, frame: VideoFrame, detections: Detections, on_frame: Callable[[], None] | None
    ) -> None:
        """Write a frame; returns once the one before it has been written."""
        self._wait()
        self.frames += 1
        found = PredictedFrame(self.frames, frame, detections)
        self._waiting = self._thread.submit(self._files.write, found)
        self.detections += len(detections)
        if detections.track_ids is not None:
            self.tracks |= set(detections.track_ids.tolist()) - {-1}
        self._last = frame.seconds
        if on_frame is not None:
            on_frame()

    def summary(self, source: str, files: tuple[Path, ...], seconds: float) -> VideoSummary:
        """What was done."""
        counts = self.frames, self.detections, len(self.tracks)
        return VideoSummary(source, files, *counts, seconds, self._video.broken)

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.result()
        self._waiting = None


def expected_frames(source: str | Path, chosen: FrameRange) -> int | None:
    """About how many frames of a video will be predicted; None if that is unknown.

    Raises:
        VideoError: if it is not a video.
    """
    if not Path(str(source)).is_file():
        return None
    with VideoReader(source) as video:
        rate, last = float(video.rate), video.frames
    if chosen.end is not None:
        last = min(last, int(chosen.end * rate))
    return max(0, -(-(last - int(chosen.start * rate)) // chosen.every)) or None
