"""Predict image after image while a thread reads and resizes the next ones."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from meinst.data.images import Picture, Pixels
from meinst.data.transforms import ResizedImage
from meinst.detections import Detections
from meinst.detector.predictor import Predictor, note_objects
from meinst.detector.select import SelectOptions
from meinst.images.notes import NO_NOTES, ImageNotes
from meinst.options import check_number

T = TypeVar("T")

# Errors of a single image, after which the others can go on.
IMAGE_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class PredictionResult(Generic[T]):
    """Pixels and detections of one source, or the error that prevented them.

    Attributes:
        source: what was read.
        pixels: ``(H, W, 3)`` uint8 RGB.
        detections: the detections.
        notes: how the image was read and resized.
        error: why there are none.
    """

    source: T
    pixels: Pixels | None = None
    detections: Detections | None = None
    notes: ImageNotes = NO_NOTES
    error: Exception | None = None

    def result(self) -> tuple[Pixels, Detections]:
        """Pixels and detections.

        Raises:
            Exception: the error, if there is one.
        """
        if self.error is not None:
            raise self.error
        assert self.pixels is not None
        assert self.detections is not None
        return self.pixels, self.detections


def predict_iter(
    model: Predictor,
    sources: Sequence[T],
    read: Callable[[T], Picture | Pixels],
    *,
    batch_size: int = 1,
    selection: SelectOptions | None = None,
) -> Iterator[PredictionResult[T]]:
    """Predict in order; a thread reads and resizes the images of the next batch meanwhile.

    Args:
        model: in evaluation mode.
        sources: what to read.
        read: returns the image of a source.
        batch_size: images per forward pass, where they have the same size.
        selection: what counts as a detection; the model's own if None.

    Yields:
        One result per source; an image that fails does not stop the others.

    Raises:
        ValueError: if the batch size is not a whole number of at least 1.
    """
    check_number("batch_size", batch_size, 1, math.inf, whole=True)

    def predict(images: list[ResizedImage]) -> list[Detections]:
        return model.predict_batch(images, selection)

    def resized(source: T) -> ResizedImage:
        return model.resize(read(source))

    with ThreadPoolExecutor(max_workers=1) as reader:
        remaining = iter(sources)
        waiting = deque((s, reader.submit(resized, s)) for s in islice(remaining, batch_size))
        while waiting:
            batch = list(waiting)
            waiting = deque((s, reader.submit(resized, s)) for s in islice(remaining, batch_size))
            yield from _predict_batch(batch, predict, model.selection.threshold)


def _predict_batch(
    batch: list[tuple[T, Future[ResizedImage]]],
    predict: Callable[[list[ResizedImage]], list[Detections]],
    threshold: float,
) -> Iterator[PredictionResult[T]]:
    images: list[ResizedImage | Exception] = []
    for _, future in batch:
        try:
            images.append(future.result())
        except IMAGE_ERRORS as error:
            images.append(error)
    readable = [image for image in images if isinstance(image, ResizedImage)]
    together: Iterator[Detections] | None = None
    if len(readable) > 1:
        try:
            together = iter(predict(readable))
        except IMAGE_ERRORS:  # one bad image, or too many at once: try each by itself
            together = None
    for (source, _), image in zip(batch, images, strict=True):
        if isinstance(image, Exception):
            yield PredictionResult(source, error=image)
            continue
        try:
            detections = next(together) if together is not None else predict([image])[0]
        except IMAGE_ERRORS as error:
            yield PredictionResult(source, error=error)
        else:
            notes = note_objects(image, detections, threshold)
            yield PredictionResult(source, image.original, detections, notes)
