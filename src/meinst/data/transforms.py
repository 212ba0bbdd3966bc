"""Resize and augment images together with their instances.

A `Geometry` (window, resize, transposition and flips) is sampled first. The image is resampled
once. Boxes and polygons are mapped exactly, and polygons rasterised last; bitmaps are sampled in
the original image, and the resulting masks flipped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from meinst.data.shapes import (
    Bitmap,
    Floats,
    Instances,
    Polygons,
    Shape,
    Window,
    clip_polygons,
    polygon_area,
    shape_bounds,
)
from meinst.images.notes import NO_NOTES, ImageNotes
from meinst.images.rgb import Pixels
from meinst.options import check_range
from meinst.types import Target

MIN_SIDE = 1.0
"""Instances with a smaller side are dropped, in pixels of the network's input."""

INSTANCE_WINDOW = 0.9
"""Probability that a random window contains the centre of an instance, if there are any."""


@dataclass(frozen=True)
class ResizeOptions:
    """Size of the images that the network receives.

    Attributes:
        shorter_side: shorter side of the resized image, in pixels.
        longer_side: limit of its longer side, in pixels; the image is shrunk if it is exceeded.
    """

    shorter_side: int = 800
    longer_side: int = 1333

    def __post_init__(self) -> None:
        if not 1 <= self.shorter_side <= self.longer_side:
            raise ValueError(
                "The sides must satisfy 1 <= shorter_side <= longer_side, got "
                f"{self.shorter_side} and {self.longer_side}."
            )


@dataclass(frozen=True)
class AugmentOptions:
    """Augmentation of training images. The defaults are those of the published recipes.

    Attributes:
        shorter_sides: shorter sides to choose from; empty for that of the resize options.
        scale_jitter: smallest and largest scale factor, sampled uniformly in the logarithm.
        crop_size: largest side of a random window that is cut out of the resized image, in pixels;
            None for the whole image.
        min_visible: instances are dropped if less than this fraction of their area is visible.
        horizontal_flip: probability.
        vertical_flip: probability.
        transpose: probability of swapping rows and columns (with flips: rotations by 90 degrees).
        brightness: factor on the pixel values, sampled from 1 -/+ this.
        contrast: factor on the difference from the mean grey, sampled from 1 -/+ this.
        saturation: factor on the difference from the pixel's grey, sampled from 1 -/+ this.
        hue: shift of the hue, sampled from -/+ this; 0.5 is half the colour circle.
    """

    shorter_sides: tuple[int, ...] = ()
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    crop_size: int | None = None
    min_visible: float = 0.1
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    transpose: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        if any(side < 1 for side in self.shorter_sides):
            raise ValueError(f"shorter_sides must be at least 1, got {self.shorter_sides}.")
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"scale_jitter must satisfy 0 < low <= high, got {self.scale_jitter}.")
        check_range(self, 1, math.inf, "crop_size")
        shares = ("min_visible", "horizontal_flip", "vertical_flip", "transpose")
        strengths = ("brightness", "contrast", "saturation")
        check_range(self, 0, 1, *shares, *strengths)
        check_range(self, 0, 0.5, "hue")


@dataclass(frozen=True)
class Geometry:
    """Window, resize, transposition, horizontal flip and vertical flip, applied in this order.

    Attributes:
        window: ``x1 y1 x2 y2`` in pixels of the original image.
        size: height and width to which the window is resized, before the transposition.
        transpose: swap rows and columns.
        horizontal_flip: mirror left and right.
        vertical_flip: mirror top and bottom.
    """

    window: Window
    size: tuple[int, int]
    transpose: bool = False
    horizontal_flip: bool = False
    vertical_flip: bool = False

    def image(self, image: Pixels) -> Pixels:
        """Map an image ``(H, W, 3)`` to ``(h, w, 3)``, with any strides."""
        return self.turn(resample(image, self.size, self.window))

    def points(self, points: Floats) -> Floats:
        """Map points ``(..., 2)`` from the original image to the result."""
        x1, y1, x2, y2 = self.window
        height, width = self.size
        mapped = (points - (x1, y1)) * (width / (x2 - x1), height / (y2 - y1))
        if self.transpose:
            mapped = mapped[..., ::-1]
            height, width = width, height
        x, y = mapped[..., 0], mapped[..., 1]
        x = width - x if self.horizontal_flip else x
        y = height - y if self.vertical_flip else y
        return np.stack((x, y), axis=-1)

    def boxes(self, boxes: Floats) -> Floats:
        """Map boxes ``(G, 4)`` ``x1 y1 x2 y2``."""
        corners = self.points(boxes.reshape(-1, 2, 2))
        return np.concatenate((corners.min(1), corners.max(1)), axis=1)  # (G, 4)

    def turn(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Transpose and flip the first two axes, as a view."""
        image = image.swapaxes(0, 1) if self.transpose else image
        image = image[:, ::-1] if self.horizontal_flip else image
        return image[::-1] if self.vertical_flip else image


def resized_size(height: int, width: int, options: ResizeOptions) -> tuple[int, int]:
    """Height and width of a resized image, as in Detectron2.

    The image is scaled to the shorter side, then shrunk if the longer side exceeds its limit.
    Sizes are rounded by ``int(x + 0.5)``, to at least 1 pixel.
    """
    scale = options.shorter_side / min(height, width)
    new_height, new_width = scale * height, scale * width
    # Set the shorter side exactly: scale * side may be off by one bit.
    if height < width:
        new_height = float(options.shorter_side)
    else:
        new_width = float(options.shorter_side)
    longer = max(new_height, new_width)
    if longer > options.longer_side:
        shrink = options.longer_side / longer
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: Pixels, options: ResizeOptions) -> Pixels:
    """Resize an image ``(H, W, 3)`` uint8 for the network; always a copy."""
    return resample(image, resized_size(image.shape[0], image.shape[1], options))


@dataclass(frozen=True)
class ResizedImage:
    """An image in its original size and resized for the network.

    Attributes:
        original: ``(H, W, 3)`` uint8 RGB.
        resized: ``(h, w, 3)`` uint8 RGB.
        notes: how the image was read and resized.
    """

    original: Pixels
    resized: Pixels
    notes: ImageNotes = NO_NOTES


def resample(image: Pixels, size: tuple[int, int], window: Window | None = None) -> Pixels:
    """Resample a window of an image with PIL's bilinear filter (antialiased).

    Args:
        image: ``(H, W, 3)`` uint8.
        size: height and width of the result; the size of the window gives an exact copy.
        window: ``x1 y1 x2 y2`` in pixels of the image, may be fractional; None for the whole image.
    """
    x1, y1, x2, y2 = window or (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    left, top, right, bottom = int(x1), int(y1), math.ceil(x2), math.ceil(y2)
    part = image[top:bottom, left:right]
    if (y2 - y1, x2 - x1) == size and (left, top) == (x1, y1):
        return part.copy()
    box = (x1 - left, y1 - top, x2 - left, y2 - top)
    pixels = Image.fromarray(np.ascontiguousarray(part))
    return np.array(pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box))


def sample_geometry(
    height: int,
    width: int,
    boxes: Floats,
    options: ResizeOptions,
    augment: AugmentOptions,
    generator: torch.Generator,
) -> Geometry:
    """Sample the geometric augmentation of an image.

    Args:
        height: of the original image.
        width: of the original image.
        boxes: ``(G, 4)`` of the instances that random windows should contain; may be empty.
        options: size of the resized image.
        augment: augmentation options.
        generator: source of all randomness; every call samples the same number of values.
    """
    random = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
    full = _sample_size((height, width), options, augment, random[:2])
    # Choose a window in whole pixels of the resized image.
    crop = augment.crop_size or max(full)
    size = min(full[0], crop), min(full[1], crop)
    center = None
    if len(boxes) and random[2] < INSTANCE_WINDOW:
        x1, y1, x2, y2 = boxes[int(random[3] * len(boxes))]
        center = (y1 + y2) / 2 * full[0] / height, (x1 + x2) / 2 * full[1] / width
    top, left = (
        _sample_start(full[i], size[i], None if center is None else center[i], random[4 + i])
        for i in (0, 1)
    )
    window = (
        left * width / full[1],
        top * height / full[0],
        min((left + size[1]) * width / full[1], float(width)),
        min((top + size[0]) * height / full[0], float(height)),
    )
    return Geometry(
        window,
        size,
        transpose=random[6] < augment.transpose,
        horizontal_flip=random[7] < augment.horizontal_flip,
        vertical_flip=random[8] < augment.vertical_flip,
    )


def _sample_size(
    image_size: tuple[int, int],
    options: ResizeOptions,
    augment: AugmentOptions,
    random: Sequence[float],
) -> list[int]:
    """Sample height and width of the resized image, from two uniform values in 0..1."""
    if augment.shorter_sides:
        side = augment.shorter_sides[int(random[0] * len(augment.shorter_sides))]
        options = replace(options, shorter_side=min(side, options.longer_side))
    low, high = augment.scale_jitter
    factor = low * (high / low) ** random[1]
    return [max(1, int(side * factor + 0.5)) for side in resized_size(*image_size, options)]


def _sample_start(full: int, size: int, center: float | None, random: float) -> int:
    """Sample the start of a window of ``size`` in ``full`` pixels from a uniform value in 0..1.

    The window contains ``center`` if given.
    """
    low, high = 0.0, float(full - size)
    if center is not None:
        low, high = min(max(low, center - size), high), min(high, center)
    return round(low + random * (high - low))


def transform_instances(
    instances: Instances, geometry: Geometry, mask_size: int, min_visible: float = 0.0
) -> Target:
    """Map the instances of an image to the network's input.

    Instances that the window cuts get the tight box of their visible part, or if they have no mask,
    the part of their box that is visible. Crowd regions and boxes
    with a side below `MIN_SIDE` pixels are dropped.

    Args:
        instances: in pixels of the original image.
        geometry: the geometric transform.
        mask_size: ``S``.
        min_visible: instances are dropped if less than this fraction of their area is visible.

    Returns:
        Target in pixels of the result.
    """
    kept = instances.select(np.flatnonzero(~instances.crowd))
    kept = _cut_to_window(kept, geometry.window, min_visible)
    boxes = geometry.boxes(kept.boxes)
    kept_sides = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) >= MIN_SIDE
    kept, boxes = kept.select(np.flatnonzero(kept_sides)), boxes[kept_sides]
    # Bitmaps are sampled in the original boxes, then flipped with the image. Polygons are flipped
    # first, since COCO's rasterisation is not symmetric.
    bitmaps = np.array([isinstance(shape, Bitmap) for shape in kept.shapes], dtype=np.bool_)
    shapes = _map_polygons(kept.shapes, geometry)
    source = np.where(bitmaps[:, None], kept.boxes, boxes)
    masks = Instances(source, kept.labels, shapes, kept.crowd).masks(mask_size)
    if bitmaps.any():
        turned = geometry.turn(masks[bitmaps].transpose(1, 2, 0))  # (S, S, G)
        masks[bitmaps] = turned.transpose(2, 0, 1)  # (G, S, S)
    has_mask = kept.has_mask
    return Target(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.from_numpy(kept.labels),
        masks=torch.from_numpy(masks),
        has_mask=None if has_mask.all() else torch.from_numpy(has_mask),
    )


def _cut_to_window(instances: Instances, window: Window, min_visible: float) -> Instances:
    """Clip instances to a window; clipped instances get tight boxes."""
    x1, y1, x2, y2 = window
    low, high = np.array((x1, y1)), np.array((x2, y2))
    meets = ((instances.boxes[:, :2] < high) & (instances.boxes[:, 2:] > low)).all(1)
    instances = instances.select(np.flatnonzero(meets))
    crosses = ((instances.boxes[:, :2] < low) | (instances.boxes[:, 2:] > high)).any(1)
    if not crosses.any():
        return instances
    boxes, shapes = instances.boxes.copy(), list(instances.shapes)
    visible = np.ones(len(shapes), dtype=np.bool_)
    outlines: dict[int, Polygons] = {}
    for i in np.flatnonzero(crosses).tolist():
        shape = shapes[i]
        if isinstance(shape, Bitmap):
            share, boxes[i] = _visible_pixels(shape, window)
            visible[i] = share > 0 and share >= min_visible
        elif not shape:  # a box without a mask
            share, boxes[i] = _visible_box(instances.boxes[i], low, high)
            visible[i] = share >= min_visible
        else:
            outlines[i] = shape
    pieces = clip_polygons(list(outlines.values()), window)
    for (i, whole), piece in zip(outlines.items(), pieces, strict=True):
        area = polygon_area(piece)
        visible[i] = area > 0 and area >= min_visible * polygon_area(whole)
        if visible[i]:
            shapes[i], boxes[i] = piece, shape_bounds(piece)
    cut = Instances(boxes, instances.labels, tuple(shapes), instances.crowd)
    return cut.select(np.flatnonzero(visible))


def _visible_box(box: Floats, low: Floats, high: Floats) -> tuple[float, Floats]:
    """Fraction of a box inside a window that it meets, and that part of it."""
    inside = np.concatenate((np.maximum(box[:2], low), np.minimum(box[2:], high)))
    areas = [float(np.prod(each[2:] - each[:2])) for each in (inside, box)]
    return areas[0] / areas[1], inside


def _visible_pixels(bitmap: Bitmap, window: Window) -> tuple[float, Window]:
    """Fraction of the pixels of a bitmap inside a window, and their tight box within it."""
    x0, y0 = bitmap.offset
    left, top = max(int(window[0]) - x0, 0), max(int(window[1]) - y0, 0)
    right, bottom = math.ceil(window[2]) - x0, math.ceil(window[3]) - y0
    visible = bitmap.array()[top : max(bottom, 0), left : max(right, 0)]
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    if len(rows) == 0:
        return 0.0, window
    box = (
        max(float(x0 + left + columns[0]), window[0]),
        max(float(y0 + top + rows[0]), window[1]),
        min(float(x0 + left + columns[-1] + 1), window[2]),
        min(float(y0 + top + rows[-1] + 1), window[3]),
    )
    return float(visible.sum()) / bitmap.area, box


def _map_polygons(shapes: tuple[Shape, ...], geometry: Geometry) -> tuple[Shape, ...]:
    """Map the points of all polygons; bitmaps stay in the original image."""
    parts = list(chain.from_iterable(s for s in shapes if not isinstance(s, Bitmap)))
    if not parts:
        return shapes
    points = geometry.points(np.concatenate(parts).reshape(-1, 2)).reshape(-1)
    ends = np.cumsum([len(part) for part in parts])
    mapped = iter(np.split(points, ends[:-1]))
    return tuple(s if isinstance(s, Bitmap) else tuple(next(mapped) for _ in s) for s in shapes)
