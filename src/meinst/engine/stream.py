"""A model on one image after another, while the next ones are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from meinst.data.images import Pixels
from meinst.data.transforms import ResizedImage
from meinst.detections import Detections
from meinst.detector.meinst import Predictor

T = TypeVar("T")
EXPECTED = (ValueError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class Found(Generic[T]):
    """What became of one source: pixels and detections, or an error.

    Attributes:
        source: what was read.
        pixels: ``(H, W, 3)`` uint8 RGB.
        detections: what the model found.
        error: why there are none.
    """

    source: T
    pixels: Pixels | None = None
    detections: Detections | None = None
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


def find_in_each(
    model: Predictor,
    sources: Sequence[T],
    read: Callable[[T], Pixels],
    *,
    batch_size: int = 1,
    score_threshold: float | None = None,
    max_detections: int | None = None,
) -> Iterator[Found[T]]:
    """Predict in order; a thread reads and resizes the images of the next batch meanwhile.

    Args:
        model: in evaluation mode.
        sources: what to read.
        read: gives the image of a source.
        batch_size: images that the network takes at once, where they have one size.
        score_threshold: as in :meth:`Predictor.predict`.
        max_detections: as in :meth:`Predictor.predict`.

    Yields:
        What became of each source; an image that fails does not stop the others.

    Raises:
        ValueError: if the batch size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    limits = {"score_threshold": score_threshold, "max_detections": max_detections}

    def predict(images: list[ResizedImage]) -> list[Detections]:
        return model.predict(images, **limits)  # type: ignore[arg-type]

    def resized(source: T) -> ResizedImage:
        return model.resize(read(source))

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = iter(sources)
        waiting = deque((s, reader.submit(resized, s)) for s in islice(coming, batch_size))
        while waiting:
            batch = list(waiting)
            waiting = deque((s, reader.submit(resized, s)) for s in islice(coming, batch_size))
            yield from _find(batch, predict)


def _find(
    batch: list[tuple[T, Future[ResizedImage]]],
    predict: Callable[[list[ResizedImage]], list[Detections]],
) -> Iterator[Found[T]]:
    images: list[ResizedImage | Exception] = []
    for _, future in batch:
        try:
            images.append(future.result())
        except EXPECTED as error:
            images.append(error)
    good = [image for image in images if isinstance(image, ResizedImage)]
    together: Iterator[Detections] | None = None
    if len(good) > 1:
        try:
            together = iter(predict(good))
        except EXPECTED:  # of one image, or of too many at once: each alone will tell
            together = None
    for (source, _), image in zip(batch, images, strict=True):
        if isinstance(image, Exception):
            yield Found(source, error=image)
            continue
        try:
            found = next(together) if together is not None else predict([image])[0]
        except EXPECTED as error:
            yield Found(source, error=error)
        else:
            yield Found(source, image.original, found)
