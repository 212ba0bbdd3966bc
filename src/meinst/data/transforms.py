"""From an image and its instances to what the network sees: one axis-aligned map for both.

Window, resize, transposition and flips are drawn first as a `Geometry`. The image is resampled
once, from its window; boxes and polygons are mapped analytically and rasterised last; bitmaps are
sampled where they are, in the original image, and the small masks flipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from meinst.data.images import Pixels
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
from meinst.options import check_range
from meinst.types import Target

MIN_SIDE = 1.0
"""Pixels of the network's input that a box must measure on either side to be learnt from."""

INSTANCE_WINDOW = 0.9
"""How often a random window is made to hold the centre of some instance, if there are any."""


@dataclass(frozen=True)
class InputOptions:
    """The size at which the network sees an image.

    Attributes:
        shorter_side: pixels of the resized image's shorter side...
        longer_side: ...unless its longer side would pass this many.
    """

    shorter_side: int = 800
    longer_side: int = 1333

    def __post_init__(self) -> None:
        if not 1 <= self.shorter_side <= self.longer_side:
            raise ValueError(
                "Input sides must be 1 <= shorter_side <= longer_side, not "
                f"{self.shorter_side} and {self.longer_side}."
            )


@dataclass(frozen=True)
class AugmentOptions:
    """Random changes of training images. The defaults are those of the published recipes.

    Attributes:
        shorter_sides: shorter sides to choose from; empty for the input's own.
        scale_jitter: lowest and highest factor on the size, drawn uniformly in its logarithm.
        crop_size: a random window of at most this many pixels a side is cut out of the resized
            image; None for the whole image.
        min_visible: instances of whose area a window leaves less than this share are dropped.
        horizontal_flip: probability.
        vertical_flip: probability.
        transpose: probability of exchanging rows and columns (with flips: turns by 90 degrees).
        brightness: factor on the values, drawn from 1 -/+ this.
        contrast: factor on the difference to the mean grey, drawn from 1 -/+ this.
        saturation: factor on the difference to the pixel's grey, drawn from 1 -/+ this.
        hue: turn of the colour circle, drawn from -/+ this; 0.5 is half a turn.
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
            raise ValueError(f"shorter_sides must be at least 1, not {self.shorter_sides}.")
        if not 0 < self.scale_jitter[0] <= self.scale_jitter[1]:
            raise ValueError(f"scale_jitter must be 0 < low <= high, not {self.scale_jitter}.")
        check_range(self, 1, math.inf, "crop_size")
        shares = ("min_visible", "horizontal_flip", "vertical_flip", "transpose")
        strengths = ("brightness", "contrast", "saturation")
        check_range(self, 0, 1, *shares, *strengths)
        check_range(self, 0, 0.5, "hue")


@dataclass(frozen=True)
class Geometry:
    """Window, resize, transposition, horizontal flip, vertical flip: applied in this order.

    Attributes:
        window: ``x1 y1 x2 y2`` in pixels of the original image.
        size: height and width that the window is resized to, before the transposition.
        transpose: exchange rows and columns.
        horizontal_flip: mirror left and right.
        vertical_flip: mirror top and bottom.
    """

    window: Window
    size: tuple[int, int]
    transpose: bool = False
    horizontal_flip: bool = False
    vertical_flip: bool = False

    def image(self, image: Pixels) -> Pixels:
        """Map an image ``(H, W, 3)``; ``(h, w, 3)``, possibly a view of it."""
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


def resized_size(height: int, width: int, options: InputOptions) -> tuple[int, int]:
    """Height and width of an image resized as docs/method.md says, rounded as Detectron2 rounds.

    The shorter side gets its size first; only if the longer one passes its limit then, both are
    scaled once more. Rounding is ``int(x + 0.5)``, at least 1 pixel.
    """
    scale = options.shorter_side / min(height, width)
    new_height, new_width = scale * height, scale * width
    # The shorter side exactly: scale * side may miss it by a bit.
    if height < width:
        new_height = float(options.shorter_side)
    else:
        new_width = float(options.shorter_side)
    longer = max(new_height, new_width)
    if longer > options.longer_side:
        shrink = options.longer_side / longer
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resize_image(image: Pixels, options: InputOptions) -> Pixels:
    """Bring an image ``(H, W, 3)`` uint8 to the size that the network sees; a copy."""
    return resample(image, resized_size(image.shape[0], image.shape[1], options))


@dataclass(frozen=True)
class ResizedImage:
    """An image as it was given, and as the network will see it.

    Attributes:
        original: ``(H, W, 3)`` uint8 RGB.
        resized: ``(h, w, 3)`` uint8 RGB.
    """

    original: Pixels
    resized: Pixels


def resample(image: Pixels, size: tuple[int, int], window: Window | None = None) -> Pixels:
    """Resample a window of an image with PIL's bilinear filter (smoothing when it shrinks).

    Args:
        image: ``(H, W, 3)`` uint8.
        size: height and width of the result; that of the image itself gives an exact copy.
        window: ``x1 y1 x2 y2`` in pixels of the image, fractions allowed; None for all of it.
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
    options: InputOptions,
    augment: AugmentOptions,
    generator: torch.Generator,
) -> Geometry:
    """Draw how an image is changed.

    Args:
        height: of the original image.
        width: of the original image.
        boxes: ``(G, 4)`` of the instances that a random window should find; may be empty.
        options: the input size.
        augment: what may change.
        generator: source of all randomness; the same number of values is drawn in every case.
    """
    draws = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
    if augment.shorter_sides:
        side = augment.shorter_sides[int(draws[0] * len(augment.shorter_sides))]
        options = replace(options, shorter_side=min(side, options.longer_side))
    low, high = augment.scale_jitter
    factor = low * (high / low) ** draws[1]
    full = [max(1, int(side * factor + 0.5)) for side in resized_size(height, width, options)]
    crop = augment.crop_size or max(full)
    size = min(full[0], crop), min(full[1], crop)
    low_corner, high_corner = [0.0, 0.0], [float(full[i] - size[i]) for i in (0, 1)]
    if len(boxes) and draws[2] < INSTANCE_WINDOW:
        chosen = boxes[int(draws[3] * len(boxes))]
        for i, center in enumerate(
            (
                (chosen[1] + chosen[3]) / 2 * full[0] / height,
                (chosen[0] + chosen[2]) / 2 * full[1] / width,
            )
        ):
            low_corner[i] = min(max(0.0, center - size[i]), high_corner[i])
            high_corner[i] = min(high_corner[i], center)
    top, left = (
        round(low_corner[i] + draws[4 + i] * (high_corner[i] - low_corner[i])) for i in (0, 1)
    )
    # Whole pixels of the resized image; of the original one they may be fractions.
    window = (
        left * width / full[1],
        top * height / full[0],
        min((left + size[1]) * width / full[1], float(width)),
        min((top + size[0]) * height / full[0], float(height)),
    )
    return Geometry(
        window,
        size,
        transpose=draws[6] < augment.transpose,
        horizontal_flip=draws[7] < augment.horizontal_flip,
        vertical_flip=draws[8] < augment.vertical_flip,
    )


def transform_instances(
    instances: Instances, geometry: Geometry, mask_size: int, min_visible: float = 0.0
) -> Target:
    """Map the instances of an image to the network's input.

    An instance that the window cuts gets the tight box of its visible part, and its mask within
    that box. Left out are crowd regions, instances less visible than ``min_visible`` (share of
    the mask's area) and boxes of less than `MIN_SIDE` pixels.

    Args:
        instances: in pixels of the original image.
        geometry: the map.
        mask_size: ``S``.
        min_visible: see above.

    Returns:
        Target in pixels of the result.
    """
    kept = instances.select(np.flatnonzero(~instances.crowd))
    kept = _cut_to_window(kept, geometry.window, min_visible)
    boxes = geometry.boxes(kept.boxes)
    kept_sides = (boxes[:, 2:] - boxes[:, :2]).min(1, initial=np.inf) >= MIN_SIDE
    kept, boxes = kept.select(np.flatnonzero(kept_sides)), boxes[kept_sides]
    # Bitmaps are sampled on the original boxes, then turned with the image. Polygons are turned
    # first: COCO's rule for pixels on an outline is not symmetric.
    bitmaps = np.array([isinstance(shape, Bitmap) for shape in kept.shapes], dtype=np.bool_)
    shapes = _map_polygons(kept.shapes, geometry)
    source = np.where(bitmaps[:, None], kept.boxes, boxes)
    masks = Instances(source, kept.labels, shapes, kept.crowd).masks(mask_size)
    if bitmaps.any():
        turned = geometry.turn(masks[bitmaps].transpose(1, 2, 0))  # (S, S, G)
        masks[bitmaps] = turned.transpose(2, 0, 1)  # (G, S, S)
    return Target(
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        labels=torch.from_numpy(kept.labels),
        masks=torch.from_numpy(masks),
    )


def jitter_color(image: Pixels, augment: AugmentOptions, generator: torch.Generator) -> Pixels:
    """Draw and apply brightness, contrast, saturation and hue, in this order.

    Args:
        image: ``(H, W, 3)`` uint8; not changed, but returned itself where nothing is to do.
        augment: the strengths.
        generator: source of all randomness; the same number of values is drawn in every case.
    """
    draws = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
    strengths = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    if not any(strengths):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, strength, draw in zip(enhancers, strengths, draws, strict=False):
        if strength:
            picture = enhancer(picture).enhance(1 + strength * draw)
    if augment.hue:
        hsv = np.array(picture.convert("HSV"))
        hsv[..., 0] += np.uint8(round(augment.hue * draws[3] * 256) % 256)  # wraps around
        picture = Image.fromarray(hsv, mode="HSV").convert("RGB")
    return np.array(picture)


def _cut_to_window(instances: Instances, window: Window, min_visible: float) -> Instances:
    """Keep what a window shows: shapes (polygons cut), tight boxes of what was cut."""
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


def _visible_pixels(bitmap: Bitmap, window: Window) -> tuple[float, Window]:
    """Share of a bitmap's pixels that touch a window, and their tight box within it."""
    x0, y0 = bitmap.offset
    left, top = max(int(window[0]) - x0, 0), max(int(window[1]) - y0, 0)
    right, bottom = math.ceil(window[2]) - x0, math.ceil(window[3]) - y0
    seen = bitmap.array()[top : max(bottom, 0), left : max(right, 0)]
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    if len(rows) == 0:
        return 0.0, window
    box = (
        max(float(x0 + left + columns[0]), window[0]),
        max(float(y0 + top + rows[0]), window[1]),
        min(float(x0 + left + columns[-1] + 1), window[2]),
        min(float(y0 + top + rows[-1] + 1), window[3]),
    )
    return float(seen.sum()) / bitmap.area, box


def _map_polygons(shapes: tuple[Shape, ...], geometry: Geometry) -> tuple[Shape, ...]:
    """Map the points of all polygons at once; bitmaps stay in the original image."""
    parts = list(chain.from_iterable(s for s in shapes if not isinstance(s, Bitmap)))
    if not parts:
        return shapes
    points = geometry.points(np.concatenate(parts).reshape(-1, 2)).reshape(-1)
    ends = np.cumsum([len(part) for part in parts])
    mapped = iter(np.split(points, ends[:-1]))
    return tuple(s if isinstance(s, Bitmap) else tuple(next(mapped) for _ in s) for s in shapes)
