"""Predict image after image while a thread reads and resizes the next ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from meinst.data.images import Picture
from meinst.data.regions import RegionImage
from meinst.data.transforms import ResizedImage
from meinst.detections import Detections
from meinst.detector.passes import NO_TILES, TileOptions
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.detector.tiled import OnWindow, TiledResult, complete, shown_pixels
from meinst.images.notes import NO_NOTES, ImageNotes
from meinst.images.read_ahead import read_ahead
from meinst.images.rgb import Pixels
from meinst.options import check_number

T = TypeVar("T")

# Errors of a single image, after which the others can go on.
IMAGE_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)


@dataclass(frozen=True)
class PredictionResult(Generic[T]):
    """Pixels and detections of one source, or the error that prevented them.

    Attributes:
        source: what was read.
        pixels: ``(H, W, 3)`` uint8 RGB; of an image that was predicted in windows a reduced copy,
            if its longer side is above 4,096 pixels.
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
    read: Callable[[T], Picture | Pixels | RegionImage],
    *,
    batch_size: int = 1,
    selection: SelectOptions | None = None,
    tiles: TileOptions = NO_TILES,
    on_window: OnWindow | None = None,
) -> Iterator[PredictionResult[T]]:
    """Predict in order; a thread reads and resizes the images of the next batch meanwhile.

    Args:
        model: in evaluation mode.
        sources: what to read.
        read: returns the image of a source, or opens it for reading windows.
        batch_size: images per forward pass, where they have the same size; or windows.
        selection: what counts as a detection; the model's own if None.
        tiles: whether images that are shrunk too much for the network are predicted in windows.
        on_window: called after each window.

    Yields:
        One result per source; an image that fails does not stop the others.

    Raises:
        ValueError: if the batch size is not a whole number of at least 1.
    """
    check_number("batch_size", batch_size, 1, math.inf, whole=True)

    def predict(images: list[ResizedImage]) -> list[Detections]:
        return model.predict_batch(images, selection)

    def finish(image: ResizedImage | RegionImage, whole: Detections | None) -> TiledResult:
        return complete(
            model, image, whole, tiles, selection, batch_size=batch_size, on_window=on_window
        )

    def prepared(source: T) -> ResizedImage | RegionImage:
        image = read(source)
        return image if isinstance(image, RegionImage) else model.resize(image)

    for batch in read_ahead(sources, prepared, batch_size):
        yield from _predict_batch(batch, predict, finish)


def _predict_batch(
    batch: list[tuple[T, Future[ResizedImage | RegionImage]]],
    predict: Callable[[list[ResizedImage]], list[Detections]],
    finish: Callable[[ResizedImage | RegionImage, Detections | None], TiledResult],
) -> Iterator[PredictionResult[T]]:
    images: list[ResizedImage | RegionImage | Exception] = []
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
            whole = None
            if isinstance(image, ResizedImage):
                whole = next(together) if together is not None else predict([image])[0]
            detections, notes = finish(image, whole)
            pixels = shown_pixels(image, notes)
        except IMAGE_ERRORS as error:
            yield PredictionResult(source, error=error)
        else:
            yield PredictionResult(source, pixels, detections, notes)
        finally:
            if isinstance(image, RegionImage):
                image.close()
