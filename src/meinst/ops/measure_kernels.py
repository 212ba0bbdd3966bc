"""Compiled loops that measure masks and the values inside them; called through ``ops.measure``."""

from __future__ import annotations

import math

import numpy as np

from meinst.ops.jit import compiled

NUMBERS = 8
"""Numbers that :func:`measure_masks` computes of each mask."""

_DIAGONAL = math.sqrt(2)
_MIXED = (1 + _DIAGONAL) / 2


@compiled
def _is_border(mask: np.ndarray, y: int, x: int) -> bool:
    """Whether a pixel belongs to the mask, but one of its four neighbours does not."""
    height, width = mask.shape
    if y < 0 or y >= height or x < 0 or x >= width or not mask[y, x]:
        return False
    if y == 0 or y == height - 1 or x == 0 or x == width - 1:
        return True
    return not (mask[y - 1, x] and mask[y + 1, x] and mask[y, x - 1] and mask[y, x + 1])


@compiled
def _border_length(mask: np.ndarray, y: int, x: int) -> float:
    """Length of the outline at a pixel of the border, by its neighbours on the border.

    These are the weights of Benkrid and Crookes, "Design and FPGA implementation of a perimeter
    estimator" (2000), as in ``skimage.measure.perimeter``.
    """
    edges = corners = 0
    for dy in range(-1, 2):
        for dx in range(-1, 2):
            if (dy != 0 or dx != 0) and _is_border(mask, y + dy, x + dx):
                if dy == 0 or dx == 0:
                    edges += 1
                else:
                    corners += 1
    if (edges == 2 or edges == 3) and corners <= 2:
        return 1.0
    if (edges == 0 and corners == 2) or (edges == 1 and corners == 3):
        return _DIAGONAL
    if edges == 1 and (corners == 1 or corners == 2):
        return _MIXED
    return 0.0


@compiled
def _hull_sum(sides: np.ndarray, filled: np.ndarray, hull: np.ndarray) -> float:
    """Area left of the right side of a convex hull, whose points are one above the other.

    Args:
        sides: ``(H + 1,)`` position of the outermost corner on each line between rows.
        filled: ``(H + 1,)`` whether the line has one.
        hull: takes the lines of the hull's points.
    """
    count = 0
    for y in range(len(sides)):
        if not filled[y]:
            continue
        while count >= 2:
            a, b = hull[count - 2], hull[count - 1]
            # Drop the middle point unless it is outside the line through its neighbours.
            if (sides[b] - sides[a]) * (y - a) > (sides[y] - sides[a]) * (b - a):
                break
            count -= 1
        hull[count] = y
        count += 1
    total = 0.0
    for k in range(1, count):
        a, b = hull[k - 1], hull[k]
        total += (sides[a] + sides[b]) / 2 * (b - a)
    return total


@compiled
def _hull_area(mask: np.ndarray) -> float:
    """Area of the convex hull of the pixels, which are unit squares."""
    height, width = mask.shape
    left = np.zeros(height + 1)  # negative, so that both sides are convex to the right
    right = np.zeros(height + 1)
    filled = np.zeros(height + 1, dtype=np.bool_)
    for y in range(height):
        first, last = -1, -1
        for x in range(width):
            if mask[y, x]:
                if first < 0:
                    first = x
                last = x + 1
        if first < 0:
            continue
        for line in (y, y + 1):
            if not filled[line] or -first > left[line]:
                left[line] = -first
            if not filled[line] or last > right[line]:
                right[line] = last
            filled[line] = True
    hull = np.empty(height + 1, dtype=np.int64)
    return _hull_sum(left, filled, hull) + _hull_sum(right, filled, hull)


@compiled
def measure_masks(
    pixels: np.ndarray, starts: np.ndarray, sizes: np.ndarray, results: np.ndarray
) -> None:
    """Measure masks in pixels, each in the frame of its crop.

    Args:
        pixels: flat bool, the pixels of all crops in row-major order, one crop after the other.
        starts: ``(N,)`` int64, the first pixel of each crop.
        sizes: ``(N, 2)`` int64, height and width of each crop.
        results: ``(N, NUMBERS)`` float64 of zeros; takes the area, the mean of x and of y, their
            variances and covariance, the length of the outline, and the area of the convex hull.
    """
    for n in range(len(starts)):
        height, width = sizes[n, 0], sizes[n, 1]
        mask = pixels[starts[n] : starts[n] + height * width].reshape((height, width))
        count, sum_x, sum_y = 0, 0.0, 0.0
        outline = 0.0
        for y in range(height):
            for x in range(width):
                if mask[y, x]:
                    count += 1
                    sum_x += x
                    sum_y += y
                    if _is_border(mask, y, x):
                        outline += _border_length(mask, y, x)
        if count == 0:
            continue
        mean_x, mean_y = sum_x / count, sum_y / count
        xx = yy = xy = 0.0
        for y in range(height):
            for x in range(width):
                if mask[y, x]:
                    xx += (x - mean_x) ** 2
                    yy += (y - mean_y) ** 2
                    xy += (x - mean_x) * (y - mean_y)
        results[n, 0], results[n, 1], results[n, 2] = count, mean_x, mean_y
        results[n, 3], results[n, 4], results[n, 5] = xx / count, yy / count, xy / count
        results[n, 6], results[n, 7] = outline, _hull_area(mask)


@compiled
def measure_values(
    pixels: np.ndarray,
    starts: np.ndarray,
    sizes: np.ndarray,
    corners: np.ndarray,
    values: np.ndarray,
    means: np.ndarray,
    deviations: np.ndarray,
) -> None:
    """Mean and standard deviation of each channel inside masks, in double precision.

    Args:
        pixels: as in :func:`measure_masks`.
        starts: as in :func:`measure_masks`.
        sizes: as in :func:`measure_masks`.
        corners: ``(N, 2)`` int64, x and y of each crop's first pixel in ``values``.
        values: ``(H, W, C)``.
        means: ``(N, C)`` float64 of zeros; changed in place.
        deviations: ``(N, C)`` float64 of zeros; changed in place.
    """
    for n in range(len(starts)):
        height, width = sizes[n, 0], sizes[n, 1]
        left, top = corners[n, 0], corners[n, 1]
        mask = pixels[starts[n] : starts[n] + height * width].reshape((height, width))
        for channel in range(values.shape[2]):
            count, total = 0, 0.0
            for y in range(height):
                for x in range(width):
                    if mask[y, x]:
                        count += 1
                        total += float(values[top + y, left + x, channel])
            if count == 0:
                continue
            mean, squares = total / count, 0.0
            for y in range(height):
                for x in range(width):
                    if mask[y, x]:
                        squares += (float(values[top + y, left + x, channel]) - mean) ** 2
            means[n, channel] = mean
            deviations[n, channel] = np.sqrt(squares / count)
