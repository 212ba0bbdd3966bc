"""Compiled loops that fill ``S x S`` mask grids; called through :mod:`meinst.ops.rasterize`."""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

# COCO traces boundaries on a grid this many times finer than the pixels (odd, so that the centre
# of each pixel is a point of the fine grid).
_FINE = 5
_CENTRE = _FINE // 2
# COCO's fine coordinates overflow 32 bits. Points this far outside can be clamped.
_FARTHEST = float(2**30)


@compiled
def _fine(coordinate: float, origin: float, scale: float) -> int:
    """Coordinate on the fine grid, rounded as in COCO: add one half, truncate towards zero."""
    value = _FINE * ((coordinate - origin) * scale) + 0.5
    return int(min(max(value, -_FARTHEST), _FARTHEST))


@compiled
def _toggle_edge(flips: np.ndarray, size: int, xs: int, ys: int, xe: int, ye: int) -> None:
    """Flip the cell below each crossing of an edge and the centre line of a pixel column.

    COCO steps along the longer axis of an edge, one fine point at a time, and records each step
    between fine columns ``5 i + 2`` and ``5 i + 3`` at the smaller of its two rows. Here only
    these steps are computed, with the same rounding.

    Args:
        flips: ``(S * S + 1,)`` uint8 of 0 and 1, column after column; changed in place.
        size: ``S``.
        xs: fine column of the start.
        ys: fine row of the start.
        xe: fine column of the end.
        ye: fine row of the end.
    """
    first = max(0, (min(xs, xe) - _CENTRE + _FINE - 1) // _FINE)
    last = min(size - 1, (max(xs, xe) - _CENTRE - 1) // _FINE)
    if first > last:
        return
    width, height = abs(xe - xs), abs(ye - ys)
    flat = width >= height
    if (flat and xs > xe) or (not flat and ys > ye):
        xs, xe, ys, ye = xe, xs, ye, ys
    slope = (ye - ys) / width if flat else (xe - xs) / height
    for column in range(first, last + 1):
        left = column * _FINE + _CENTRE
        if flat:
            step = left - xs
            row = min(int(ys + slope * step + 0.5), int(ys + slope * (step + 1) + 0.5))
        else:
            # Find the first step beyond the line, starting one before the estimate.
            rising = xe > xs
            step = max(int((left + 0.5 - xs) / slope) - 1, 1)
            while step < height and (int(xs + slope * step + 0.5) > left) != rising:
                step += 1
            row = ys + step - 1
        row = min(max((row + _FINE - 1 - _CENTRE) // _FINE, 0), size)
        flips[column * size + row] ^= 1


@compiled
def fill_polygons(
    coordinates: np.ndarray,
    part_starts: np.ndarray,
    instance_starts: np.ndarray,
    origins: np.ndarray,
    scales: np.ndarray,
    masks: np.ndarray,
) -> None:
    """Rasterise instances of one or more polygons; the mask is the union of the parts.

    Args:
        coordinates: float64, ``x y x y ...`` of all parts, concatenated.
        part_starts: ``(Q + 1,)`` int64, start of each part in ``coordinates``, and the end.
        instance_starts: ``(G + 1,)`` int64, start of each instance in ``part_starts``.
        origins: ``(G, 2)`` float64, x and y of the grid's corner.
        scales: ``(G, 2)`` float64, grid cells per unit of x and y.
        masks: ``(G, S, S)`` uint8 zeros; filled in place with 0 and 1.
    """
    size = masks.shape[1]
    # Cell (y, x) is at x * S + y; the last entry takes crossings below the last column.
    flips = np.zeros(size * size + 1, dtype=np.uint8)
    for g in range(masks.shape[0]):
        x0, y0 = origins[g]
        scale_x, scale_y = scales[g]
        for part in range(instance_starts[g], instance_starts[g + 1]):
            start, end = part_starts[part], part_starts[part + 1]
            if end - start < 6:
                continue  # fewer than three points
            flips[:] = 0
            xs = _fine(coordinates[end - 2], x0, scale_x)
            ys = _fine(coordinates[end - 1], y0, scale_y)
            for k in range(start, end, 2):
                xe = _fine(coordinates[k], x0, scale_x)
                ye = _fine(coordinates[k + 1], y0, scale_y)
                _toggle_edge(flips, size, xs, ys, xe, ye)
                xs, ys = xe, ye
            # As in COCO's run lengths, a run that is open at the end of a column continues at the
            # top of the next.
            inside = np.uint8(0)
            for x in range(size):
                for y in range(size):
                    inside ^= flips[x * size + y]
                    masks[g, y, x] |= inside
