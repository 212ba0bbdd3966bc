"""Predict on videos: an annotated video, tracks as MOT text, and COCO results with track ids."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from meinst.detections import Detections
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.detector.track import Tracker, predict_frames
from meinst.files import check_folder, open_atomically
from meinst.images.video import FrameRange, VideoError, VideoFrame, VideoReader
from meinst.inference.video_writer import VideoWriter
from meinst.locks import lock_folder
from meinst.options import printable

log = logging.getLogger("meinst")


@dataclass(frozen=True)
class VideoSummary:
    """Outcome of a video.

    Attributes:
        source: the video.
        files: what was written: the annotated video, MOT text, COCO results, and their images.
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
    tracking: bool = True,
    on_frame: Callable[[], None] | None = None,
) -> VideoSummary:
    """Segment the frames of a video; decoding, the network and encoding overlap.

    Writes the annotated video with the source's frame times and sound, tracks in MOT format, COCO
    results with ``track_id``, and their images with number and time of each frame. Ctrl-C ends the
    video at the current frame. If it is damaged or cut off, the frames before are kept.

    Args:
        model: in evaluation mode.
        source: a video file, the address of a stream, or the number of a camera.
        output: folder; created if it does not exist. Files are named after the source.
        selection: what counts as a detection; the model's own if None.
        frames: which frames; all if None.
        tracking: whether to follow objects.
        on_frame: called after each frame.

    Raises:
        ImportError: if the packages of ``meinst[video]`` are missing.
        OSError: if there is no such source, or the output cannot be written or is in use.
        VideoError: if the video cannot be read, or its frames change their size.
    """
    selection, chosen = selection or model.selection, frames or FrameRange()
    check_folder(output)
    started = time.perf_counter()
    with lock_folder(output), VideoReader(source) as video:
        files = video_files(source, output)
        tracker = _make_tracker(model, video, chosen, selection) if tracking else None
        with _Results(model, video, files, chosen, source) as results:
            try:
                for frame, found in _predict(model, video, chosen, selection, tracker):
                    results.add(frame, found, on_frame)
            except KeyboardInterrupt:
                log.warning("%s: stopped after %d frames", video.name, results.frames)
        counts = results.frames, results.detections, len(results.tracks)
        seconds = time.perf_counter() - started
        return VideoSummary(str(source), files, *counts, seconds, video.broken)


def _make_tracker(
    model: Predictor, video: VideoReader, chosen: FrameRange, selection: SelectOptions
) -> Tracker:
    return Tracker(float(video.rate) / chosen.every, model.class_names, selection.threshold)


def _predict(
    model: Predictor,
    video: VideoReader,
    chosen: FrameRange,
    selection: SelectOptions,
    tracker: Tracker | None,
) -> Iterator[tuple[VideoFrame, Detections]]:
    """Frames and their detections, with tracks if there is a tracker."""
    images = ((frame, frame.pixels) for frame in video.read(chosen))
    wide = selection if tracker is None else tracker.select(selection)
    for frame, detections in predict_frames(model, images, wide):
        yield frame, detections if tracker is None else tracker.update(detections)


class _Results:
    """The files of a video, written by a thread while the next frame is predicted."""

    def __init__(
        self,
        model: Predictor,
        video: VideoReader,
        files: tuple[Path, ...],
        chosen: FrameRange,
        source: str | Path,
    ) -> None:
        self.frames = self.detections = 0
        self.tracks = set[int]()
        self._video = video
        self._model = model
        self._last = chosen.start
        self._every = chosen.every
        path, *texts = files
        sound = Path(source) if Path(str(source)).is_file() else None
        rate = video.rate / chosen.every
        with ExitStack() as stack:  # closes what is open if a later step fails
            self._writer = stack.enter_context(VideoWriter(path, rate, sound, chosen.start))
            self._mot, self._coco, self._images = (
                stack.enter_context(open_atomically(text)) for text in texts
            )
            self._stack = stack.pop_all()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._waiting: Future[None] | None = None

    def __enter__(self) -> _Results:
        self._coco.write(b"[")
        self._images.write(b'{\n "images": [')
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._stack, self._thread:  # errors raised here remove the incomplete files
            if error is not None and not (self.frames and isinstance(error, VideoError)):
                raise error
            self._wait()
            self._finish()

    def add(
        self, frame: VideoFrame, detections: Detections, on_frame: Callable[[], None] | None
    ) -> None:
        """Write a frame; returns once the one before it has been written."""
        self._wait()
        self.frames += 1
        self._waiting = self._thread.submit(self._write, self.frames, frame, detections)
        if on_frame is not None:
            on_frame()

    def _wait(self) -> None:
        if self._waiting is not None:
            self._waiting.result()
        self._waiting = None

    def _write(self, number: int, frame: VideoFrame, detections: Detections) -> None:
        soft_masks = detections.soft_masks()
        self._writer.write(detections.draw(frame.pixels, soft_masks=soft_masks), frame.seconds)
        results = detections.to_coco(number, soft_masks=soft_masks)
        if results:
            text = json.dumps(results)[1:-1]
            self._coco.write((", " if self.detections else "").encode() + text.encode())
        height, width = detections.image_size
        image = {"id": number, "frame": frame.index, "seconds": round(frame.seconds, 6)}
        image |= {"width": width, "height": height}
        self._images.write(
            (",\n  " if number > 1 else "\n  ").encode() + json.dumps(image).encode()
        )
        self._mot.write("".join(_mot_lines(number, results)).encode())
        self.detections += len(results)
        self.tracks |= {result.get("track_id", -1) for result in results} - {-1}
        self._last = frame.seconds

    def _finish(self) -> None:
        """Write the ends of the files."""
        self._writer.finish(self._last + self._every / float(self._video.rate))
        categories = [
            {"id": number, "name": name} for number, name in enumerate(self._model.class_names, 1)
        ]
        self._coco.write(b"]")
        rest = json.dumps({"categories": categories, "annotations": []}, indent=1)
        self._images.write(b"\n ]," + rest[1:].encode())


def _mot_lines(number: int, results: list[dict[str, Any]]) -> Iterator[str]:
    """Lines of the MOT Challenge: frame, track, left, top, width, height, score, -1, -1, -1."""
    for result in results:
        if result.get("track_id", -1) < 0:
            continue
        sides = ",".join(f"{side:.2f}" for side in result["bbox"])
        yield f"{number},{result['track_id']},{sides},{result['score']:.4f},-1,-1,-1\n"


def video_files(source: str | Path, output: Path) -> tuple[Path, ...]:
    """What is written for a source: the video, MOT text, COCO results and images.

    Raises:
        FileExistsError: if it would replace the source.
    """
    stem = Path(str(source)).stem if Path(str(source)).is_file() else str(source)
    name = re.sub(r"[^\w.-]+", "_", f"camera{stem}" if stem.isdecimal() else stem).strip("_")
    files = tuple(
        output / f"{name}{suffix}" for suffix in (".mp4", ".txt", ".json", ".images.json")
    )
    if Path(str(source)).resolve() in {path.resolve() for path in files}:
        raise FileExistsError(
            f"{printable(str(source))} would be overwritten; choose another --output."
        )
    return files


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
