"""Measure masks: size, place, shape, and the values of an image inside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from meinst.ops.measure_kernels import NUMBERS, measure_masks, measure_values

Floats: TypeAlias = NDArray[np.float64]

_PIXEL_VARIANCE = 1 / 12  # of a coordinate inside one pixel, which is a unit square


@dataclass(frozen=True, eq=False)
class Shapes:
    """Measurements of ``N`` masks, in pixels unless another pixel size was given.

    Pixel ``(i, j)`` covers ``j..j + 1`` by ``i..i + 1``. Measurements of an empty mask are NaN,
    except for its area of 0.

    Attributes:
        area: ``(N,)`` area.
        centroid: ``(N, 2)`` x and y of the centre of gravity.
        perimeter: ``(N,)`` length of the outlines, as ``skimage.measure.perimeter`` estimates it.
        major_axis: ``(N,)`` length of the ellipse with the same second moments.
        minor_axis: ``(N,)`` its width.
        orientation: ``(N,)`` degrees from the x axis to the major axis, 0 to 180, anticlockwise in
            the image as it is shown.
        solidity: ``(N,)`` area divided by that of the convex hull, 0 to 1.
    """

    area: Floats
    centroid: Floats
    perimeter: Floats
    major_axis: Floats
    minor_axis: Floats
    orientation: Floats
    solidity: Floats


def measure_shapes(
    crops: Sequence[NDArray[np.bool_]],
    corners: NDArray[np.int64],
    pixel_size: tuple[float, float] = (1.0, 1.0),
) -> Shapes:
    """Measure masks.

    Args:
        crops: ``N`` masks ``(h, w)``.
        corners: ``(N, 2)`` x and y of each crop's first pixel in the image.
        pixel_size: width and height of a pixel. Where they differ, the perimeter is that in pixels
            times the square root of their product.
    """
    sums = np.zeros((len(crops), NUMBERS))
    measure_masks(*_flatten(crops), sums)
    empty = sums[:, 0] == 0
    sums[empty, 1:] = np.nan
    area, x, y, xx, yy, xy, outline, hull = sums.T
    width, height = pixel_size
    xx = (xx + _PIXEL_VARIANCE) * width**2
    yy = (yy + _PIXEL_VARIANCE) * height**2
    xy = xy * width * height
    middle, half = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
    centroid = (np.stack((x, y), 1) + 0.5 + corners) * pixel_size
    return Shapes(
        area=area * width * height,
        centroid=centroid,
        perimeter=outline * np.sqrt(width * height),
        major_axis=4 * np.sqrt(middle + half),
        minor_axis=4 * np.sqrt(np.maximum(middle - half, 0)),
        # y points down in the image.
        orientation=np.degrees(np.arctan2(-2 * xy, xx - yy) / 2) % 180,
        solidity=area / hull,
    )


def channel_statistics(
    crops: Sequence[NDArray[np.bool_]], corners: NDArray[np.int64], values: NDArray[Any]
) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each channel inside masks.

    Args:
        crops: ``N`` masks ``(h, w)`` inside the image.
        corners: ``(N, 2)`` x and y of each crop's first pixel in the image.
        values: ``(H, W, C)`` of any integer or float type.

    Returns:
        Two arrays ``(N, C)``; NaN for empty masks. The deviation is that of the pixels (divided by
        their number).

    Raises:
        ValueError: if a mask is not inside the image.
    """
    ends = corners + np.array([crop.shape[::-1] for crop in crops], np.int64).reshape(-1, 2)
    if (corners < 0).any() or (ends > values.shape[1::-1]).any():
        raise ValueError(f"masks must be inside the image of {values.shape[1::-1]} pixels.")
    shape = len(crops), values.shape[2]
    means, deviations = np.zeros(shape), np.zeros(shape)
    simple = {"bool": np.uint8, "float16": np.float32}  # what compiled code does not compute with
    if values.dtype.name in simple:
        values = values.astype(simple[values.dtype.name])
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("="), copy=False))
    corners = np.ascontiguousarray(corners, dtype=np.int64)
    measure_values(*_flatten(crops), corners, values, means, deviations)
    empty = [not crop.any() for crop in crops]
    means[empty] = deviations[empty] = np.nan
    return means, deviations


def _flatten(
    crops: Sequence[NDArray[np.bool_]],
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """The pixels of all crops, the first pixel of each, and their heights and widths."""
    sizes = np.array([crop.shape for crop in crops], dtype=np.int64).reshape(-1, 2)
    ends = np.cumsum(sizes.prod(1))
    pixels = [crop.ravel() for crop in crops]
    flat = np.concatenate(pixels) if pixels else np.zeros(0, np.bool_)
    return flat, ends - sizes.prod(1), sizes
