"""Follow objects through the frames of a video: the same object has the same track id."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from meinst.data.transforms import ResizedImage
from meinst.detections import Detections
from meinst.detector.select import SelectOptions
from meinst.images.video import VideoReader

if TYPE_CHECKING:
    from meinst.detector.predictor import ModelInput, Predictor

T = TypeVar("T")
_KEPT_FRAMES = 30  # at 30 per second: a track ends after a second without its object
_MIN_FRAMES = 2  # in a row, before an object becomes a track
_MIN_IOU = 0.1  # of a box and the one that its track predicts
_CONTINUE = 0.5  # share of the score that begins a track which suffices to continue one

NO_TRACK = -1
"""Track id of a detection that belongs to no track, or not yet."""


class Tracker:
    """ByteTrack (Zhang et al., ECCV 2022) on the boxes, from the package ``trackers``.

    Each class has its own tracks.

    Args:
        rate: frames per second.
        class_names: names of the classes.
        new_score: smallest score of a detection that begins a track; detections with lower scores
            only continue one.

    Raises:
        ImportError: if the package is not installed.
    """

    def __init__(self, rate: float, class_names: tuple[str, ...], new_score: float = 0.5) -> None:
        self._new_score = new_score
        self._rate = rate
        self._class_names = class_names
        self._by_class: dict[int, Any] = {}
        self._ids: dict[tuple[int, int], int] = {}  # track id by class and the tracker's own id

    def select(self, selection: SelectOptions) -> SelectOptions:
        """The selection with which a model should predict: also scores that continue a track."""
        return replace(selection, score_threshold=_CONTINUE * self._new_score)

    def update(self, detections: Detections) -> Detections:
        """Join the detections of the next frame to tracks.

        Returns:
            Those that begin or continue a track, or have a sufficient score, with ``track_ids``.
        """
        ids = torch.full((len(detections),), NO_TRACK, dtype=torch.int64)
        labels = detections.labels.cpu().numpy()
        for label in sorted(set(labels.tolist()) | self._by_class.keys()):
            chosen = np.flatnonzero(labels == label)
            ids[torch.from_numpy(chosen)] = self._update_class(label, detections, chosen)
        tracked = replace(detections, track_ids=ids)
        return tracked[(ids != NO_TRACK) | (detections.scores.cpu() >= self._new_score)]

    def _update_class(self, label: int, detections: Detections, chosen: Any) -> torch.Tensor:
        from supervision import Detections as Supervised

        tracker = self._by_class.get(label)
        if tracker is None:
            tracker = self._by_class[label] = self._new_tracker()
        given = Supervised(
            xyxy=detections.boxes[chosen].float().cpu().numpy().reshape(-1, 4),
            confidence=detections.scores[chosen].float().cpu().numpy(),
            data={"index": np.arange(len(chosen))},
        )
        tracked = tracker.update(given)
        ids = torch.full((len(chosen),), NO_TRACK, dtype=torch.int64)
        for index, own in zip(tracked.data.get("index", ()), tracked.tracker_id, strict=False):
            if own >= 0:
                ids[int(index)] = self._ids.setdefault((label, int(own)), len(self._ids) + 1)
        return ids

    def _new_tracker(self) -> Any:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ImportError(
                "tracking needs the package trackers: pip install 'meinst[video]'"
            ) from error
        return ByteTrackTracker(
            lost_track_buffer=_KEPT_FRAMES,
            frame_rate=self._rate,
            track_activation_threshold=self._new_score,
            minimum_consecutive_frames=_MIN_FRAMES,
            minimum_iou_threshold=_MIN_IOU,
            high_conf_det_threshold=self._new_score,
        )


def track_images(
    model: Predictor, images: Iterable[ModelInput], rate: float, selection: SelectOptions
) -> Iterator[Detections]:
    """See :meth:`meinst.Predictor.track`."""
    tracker = Tracker(rate, model.class_names, selection.threshold)
    for _, detections in predict_frames(model, ((i, i) for i in images), tracker.select(selection)):
        yield tracker.update(detections)


def track_video(
    model: Predictor, source: str | Path, rate: float | None, selection: SelectOptions
) -> Iterator[Detections]:
    """See :meth:`meinst.Predictor.track`."""
    with VideoReader(source) as video:
        images = (frame.pixels for frame in video.read())
        yield from track_images(model, images, rate or float(video.rate), selection)


def predict_frames(
    model: Predictor, frames: Iterable[tuple[T, ModelInput]], selection: SelectOptions
) -> Iterator[tuple[T, Detections]]:
    """Predict frame after frame while a thread reads and resizes the next one.

    Args:
        model: in evaluation mode.
        frames: anything, and the image to predict.
        selection: what counts as a detection.
    """
    remaining = iter(frames)

    def read() -> tuple[T, ResizedImage] | None:
        frame = next(remaining, None)
        if frame is None:
            return None
        key, image = frame
        return key, image if isinstance(image, ResizedImage) else model.resize(image)

    with ThreadPoolExecutor(max_workers=1) as reader:
        waiting = reader.submit(read)
        while (frame := waiting.result()) is not None:
            waiting = reader.submit(read)
            key, image = frame
            yield key, model.predict_batch([image], selection)[0]
