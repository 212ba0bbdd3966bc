"""Compiled loops that fill ``S x S`` mask grids; called through :mod:`meinst.ops.rasterize`."""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

# COCO walks a boundary on a grid this many times finer than the pixels (an odd number, so
# that a pixel's centre is a point of the fine grid).
_FINE = 5
_CENTRE = _FINE // 2
# COCO keeps fine coordinates in 32 bits and fails beyond; so far out only the side matters.
_FARTHEST = float(2**30)


@compiled
def _fine(coordinate: float, origin: float, scale: float) -> int:
    """A coordinate on the fine grid, rounded as COCO rounds: half up, cut towards zero."""
    value = _FINE * ((coordinate - origin) * scale) + 0.5
    return int(min(max(value, -_FARTHEST), _FARTHEST))


@compiled
def _toggle_edge(flips: np.ndarray, size: int, xs: int, ys: int, xe: int, ye: int) -> None:
    """Flip the cell below each place where an edge crosses the centre line of a pixel column.

    COCO steps along the longer axis from fine point to fine point, and notes the steps that
    pass from fine column ``5 i + 2`` to ``5 i + 3`` (either way), at the smaller of the
    step's two rows. Only those steps are visited here; their numbers are the same to the
    last rounding.

    Args:
        flips: ``(S * S + 1,)`` uint8 of 0 and 1, column after column; changed in place.
        size: ``S``.
        xs: fine column of the edge's start; ``ys`` its row, ``xe`` and ``ye`` the end's.
        ys: see ``xs``.
        xe: see ``xs``.
        ye: see ``xs``.
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
            # The first step beyond the line: one before the estimate, then on by COCO's rounding.
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
    """Rasterise instances of one or more polygons each; parts are merged by union.

    Args:
        coordinates: float64, ``x y x y ...`` of all parts, one after the other.
        part_starts: ``(Q + 1,)`` int64, where each part begins in ``coordinates``, and the end.
        instance_starts: ``(G + 1,)`` int64, where each instance begins in ``part_starts``.
        origins: ``(G, 2)`` float64, x and y of what becomes the grid's corner.
        scales: ``(G, 2)`` float64, grid cells for each unit of x and y.
        masks: ``(G, S, S)`` uint8 of zeros; filled in place with 0 and 1.
    """
    size = masks.shape[1]
    # Cell x * S + y; the last entry takes the crossings below the last column.
    flips = np.zeros(size * size + 1, dtype=np.uint8)
    for g in range(masks.shape[0]):
        x0, y0 = origins[g]
        scale_x, scale_y = scales[g]
        for part in range(instance_starts[g], instance_starts[g + 1]):
            start, end = part_starts[part], part_starts[part + 1]
            if end - start < 6:
                continue  # fewer than three points enclose nothing
            flips[:] = 0
            xs = _fine(coordinates[end - 2], x0, scale_x)
            ys = _fine(coordinates[end - 1], y0, scale_y)
            for k in range(start, end, 2):
                xe = _fine(coordinates[k], x0, scale_x)
                ye = _fine(coordinates[k + 1], y0, scale_y)
                _toggle_edge(flips, size, xs, ys, xe, ye)
                xs, ys = xe, ye
            # As COCO's run lengths do, a run that is open at a column's end goes on at the
            # top of the next one.
            inside = np.uint8(0)
            for x in range(size):
                for y in range(size):
                    inside ^= flips[x * size + y]
                    masks[g, y, x] |= inside
