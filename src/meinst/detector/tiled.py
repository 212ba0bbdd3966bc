"""Predict images in overlapping windows, so that neither their size nor their objects are limited.

:mod:`meinst.detector.passes` plans the windows, :mod:`meinst.detector.seams` merges what is found
in them. A thread reads the next windows while the network runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from meinst.data.images import ImageError, ImageLike, Picture
from meinst.data.regions import ArrayRegions, RegionImage, open_picture
from meinst.data.transforms import ResizedImage, resized_size
from meinst.detections import Detections
from meinst.detector.passes import Pass, TileOptions, needs_windows, plan_passes
from meinst.detector.seams import DetectionArrays
from meinst.images.notes import ImageNotes
from meinst.images.read_ahead import read_ahead
from meinst.images.rgb import Pixels
from meinst.images.sources import MemoryFile
from meinst.ops.windows import cut_sides

if TYPE_CHECKING:
    from meinst.detector.predictor import Predictor
    from meinst.detector.select import SelectOptions

OnWindow = Callable[[int, int], None]
"""Called after each window with the number of windows done and in all."""

# A window may have an object for each square of this many strides.
_STRIDES_PER_OBJECT = 4
# Boxes are not exact, so cut ones are left out only if they are shorter than this share of what
# another window shows completely.
_COMPLETE_SHARE = 0.8


class TiledResult(NamedTuple):
    """Result of :func:`predict_windows`.

    Attributes:
        detections: the detections, in pixels of the image.
        notes: how the image was read, and how many windows were lost.
    """

    detections: Detections
    notes: ImageNotes


def prepare(
    model: Predictor,
    image: ImageLike | MemoryFile | ResizedImage,
    tiles: TileOptions,
    size: tuple[int, int] | None = None,
) -> ResizedImage | RegionImage:
    """Resize an image for the network, or open it for reading windows.

    Args:
        model: the model.
        image: a path, Pillow image or array, or the result of this function.
        tiles: the options.
        size: for a path, width and height in the annotation file.

    Raises:
        ValueError: if the image cannot be read.
    """
    if isinstance(image, (str, Path)):
        opened = open_picture(Path(image), model.input_options, tiles.fits, size)
        return opened if isinstance(opened, RegionImage) else model.resize(opened)
    resized = image if isinstance(image, ResizedImage) else model.resize(image)
    return resized if tiles.fits(*resized.original.shape[:2]) else as_regions(resized)


def as_regions(resized: ResizedImage, name: str = "the image") -> RegionImage:
    """An image that was resized as a whole, for reading windows."""
    notes = resized.notes
    return ArrayRegions(Picture(resized.original, notes.stretch, notes.extent), name)


def complete(
    model: Predictor,
    image: ResizedImage | RegionImage,
    whole: Detections | None,
    tiles: TileOptions,
    selection: SelectOptions | None = None,
    *,
    batch_size: int = 1,
    on_window: OnWindow | None = None,
) -> TiledResult:
    """The result of an image from :func:`prepare`; predicts it in windows if necessary.

    Args:
        model: in evaluation mode.
        image: the image.
        whole: its detections without windows, if it was resized.
        tiles: the options.
        selection: what counts as a detection; the model's own if None.
        batch_size: windows per forward pass.
        on_window: reports progress.

    Raises:
        ImageError: as :func:`predict_windows`.
    """
    if isinstance(image, ResizedImage):
        assert whole is not None
        notes = note_objects(image, whole, model.selection.threshold)
        if not needs_windows(model, tiles, notes):
            return TiledResult(whole, notes)
        image = as_regions(image)
    return predict_windows(
        model, image, tiles, selection, whole=whole, batch_size=batch_size, on_window=on_window
    )


def predict_images(
    model: Predictor,
    images: Sequence[ImageLike | MemoryFile | ResizedImage],
    tiles: TileOptions,
    selection: SelectOptions,
) -> list[TiledResult]:
    """Detect the objects of several images; those without windows are one batch.

    Args:
        model: in evaluation mode.
        images: the images.
        tiles: which of them are predicted in windows.
        selection: what counts as a detection.

    Raises:
        ValueError: if an image cannot be read.
    """
    prepared = [prepare(model, image, tiles) for image in images]
    resized = [image for image in prepared if isinstance(image, ResizedImage)]
    together = iter(model.predict_batch(resized, selection))
    whole = [next(together) if isinstance(image, ResizedImage) else None for image in prepared]
    pairs = zip(prepared, whole, strict=True)
    return [complete(model, image, found, tiles, selection) for image, found in pairs]


def shown_pixels(image: ResizedImage | RegionImage, notes: ImageNotes) -> Pixels:
    """What an image's detections are drawn on: itself, or a reduced copy if windows were used.

    Args:
        image: the image.
        notes: from :func:`complete`.
    """
    if isinstance(image, ResizedImage):
        if notes.windows == 1:
            return image.original
        image = as_regions(image)
    return image.overview()


def note_objects(image: ResizedImage, detections: Detections, threshold: float) -> ImageNotes:
    """The notes of an image with the size of the objects found in it.

    Args:
        image: the image.
        detections: what was found.
        threshold: smallest score of the detections that count.
    """
    boxes = detections.boxes[detections.scores >= threshold]
    if not len(boxes):
        return image.notes
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    return replace(image.notes, object_side=float(sides.median()) / image.notes.shrink)


def predict_windows(
    model: Predictor,
    image: RegionImage,
    tiles: TileOptions,
    selection: SelectOptions | None = None,
    *,
    whole: Detections | None = None,
    batch_size: int = 1,
    on_window: OnWindow | None = None,
) -> TiledResult:
    """Detect the objects of an image window by window.

    Args:
        model: in evaluation mode.
        image: the image.
        tiles: size of the windows.
        selection: what counts as a detection; the model's own if None. Its limit of detections
            is raised in windows; ``tiles`` has that of the image.
        whole: detections of the image without windows, if they are known.
        batch_size: windows per forward pass.
        on_window: reports progress.

    Raises:
        ImageError: if no window can be read, or the size of a pixel is needed but not known.
    """
    if tiles.pixel_size is not None and image.pixel_size is None:
        raise _unknown_size(image.name)
    passes = plan_passes(model, image.size, tiles, image.pixel_size)
    progress = _Progress(sum(len(each.windows) for each in passes), on_window)
    selection = selection or model.selection
    found, lost = DetectionArrays(), list[str]()
    for each in passes:
        found.start(each)
        predictor = _PassPredictor(model, image, each, selection, blank=each is not passes[0])
        if each.scale is None and whole is not None:
            found.add(*predictor.place(whole, 0))
            progress.advance()
        else:
            predictor.predict(found, batch_size, progress, lost)
    image.release()
    if len(lost) == len(passes[0].windows):
        raise ImageError(lost[0])
    counts = {"windows": progress.total, "lost_windows": len(lost)}
    notes = ImageNotes(image.stretch, image.extent, **counts, damage=lost[0] if lost else "")
    return TiledResult(found.merge(tiles.max_detections), notes)


def _unknown_size(name: str) -> ImageError:
    return ImageError(
        f"{name}: the file does not state the size of its pixels, which pixel_size needs; write it "
        "into the file (OME-TIFF, resolution tags), or leave out pixel_size."
    )


class _Progress:
    """Counts windows."""

    def __init__(self, total: int, report: OnWindow | None) -> None:
        self.total, self._done, self._report = total, 0, report

    def advance(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self.total)


class _PassPredictor:
    """Predicts the windows of one pass.

    Args:
        model: in evaluation mode.
        image: the image.
        each: the pass.
        selection: what counts as a detection.
        blank: read what is damaged as black, since the first pass reports it.
    """

    def __init__(
        self,
        model: Predictor,
        image: RegionImage,
        each: Pass,
        selection: SelectOptions,
        *,
        blank: bool,
    ) -> None:
        self._model, self._image, self._pass, self._blank = model, image, each, blank
        self._selection = selection if each.scale is None else _dense(model, each, selection)

    def predict(
        self, found: DetectionArrays, batch_size: int, progress: _Progress, lost: list[str]
    ) -> None:
        """Add the detections of all windows, and why windows were left out to ``lost``."""
        windows = self._pass.windows
        for batch in read_ahead(range(len(windows)), self._read, batch_size):
            images: dict[int, ResizedImage] = {}
            for number, future in batch:
                try:
                    images[number] = future.result()
                except ImageError as error:
                    lost.append(str(error))
            results = self._model.predict_batch(list(images.values()), self._selection)
            for number, detections in zip(images, results, strict=True):
                found.add(*self.place(detections, number))
            for _ in batch:
                progress.advance()

    def _read(self, number: int) -> ResizedImage:
        """A window in the size of the network's input."""
        window, plan = self._pass.windows[number], self._pass
        x1, y1, x2, y2 = window.tolist()
        whole = resized_size(y2 - y1, x2 - x1, self._model.resize_options)
        size = whole if plan.scale is None else plan.input_size(window)
        resized = self._image.read_resized((x1, y1, x2, y2), size, blank=self._blank)
        # Only the size of the original is used.
        original = np.broadcast_to(np.uint8(0), (y2 - y1, x2 - x1, 3))
        return ResizedImage(original, resized)

    def place(
        self, detections: Detections, number: int
    ) -> tuple[Detections, int, NDArray[np.bool_]]:
        """A window's detections in the image, its number, and which of them the window cuts.

        Cut ones that are so short that another window shows the whole object are left out, and so
        are those that the pass before is responsible for.
        """
        window = self._pass.windows[number]
        plan, size = self._pass, self._image.size
        offset = torch.from_numpy(window[[0, 1, 0, 1]]).to(detections.boxes)
        moved = replace(detections, boxes=detections.boxes + offset, image_size=size)
        boxes = moved.boxes.cpu().numpy()
        sides = boxes[:, 2:] - boxes[:, :2]
        cut = cut_sides(boxes, window, size, plan.margin)
        short: NDArray[np.bool_] = (cut & (sides < _COMPLETE_SHARE * plan.complete)).any(axis=1)
        kept: NDArray[np.bool_] = ~short & (sides.max(axis=1, initial=0) >= plan.smallest)
        is_cut: NDArray[np.bool_] = (cut[:, 0] | cut[:, 1])[kept]
        return moved[kept], number, is_cut


def _dense(model: Predictor, plan: Pass, selection: SelectOptions) -> SelectOptions:
    """The selection with a limit of detections that the objects of a window do not reach."""
    window = plan.windows[0]
    height, width = plan.input_size(window)
    cell = _STRIDES_PER_OBJECT * model.options.strides[0]
    limit = max(selection.max_detections, math.ceil(height * width / cell**2))
    return selection.override(max_detections=limit)
