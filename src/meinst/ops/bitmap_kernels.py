"""The compiled loop that samples a bitmap; called through :mod:`meinst.ops.rasterize`.

All arithmetic is in single precision and in the order of torchvision's ``roi_align``: a cell
whose mean is near one half falls on the same side here and there.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

_OUTSIDE = -(2**40)  # a pixel that no bitmap has


@compiled
def _axis_samples(
    start: np.float32, cell: np.float32, size: int, per_cell: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where the samples of one axis fall.

    Args:
        start: the box's side, 0 being the centre of the picture's first pixel.
        cell: length of a grid cell in pixels.
        size: ``S``.
        per_cell: samples in each cell.
        limit: the picture's length in pixels, or a negative number for one without borders.

    Returns:
        ``(S * per_cell,)`` int64, the pixel before each sample, and float32, the sample's
        distance from that pixel's centre.
    """
    before = np.empty(size * per_cell, dtype=np.int64)
    distance = np.empty(size * per_cell, dtype=np.float32)
    for k in range(size * per_cell):
        inner = np.float32(np.float32(k % per_cell) + np.float32(0.5)) * cell
        place = np.float32(start + np.float32(np.float32(k // per_cell) * cell))
        place = np.float32(place + np.float32(inner / np.float32(per_cell)))
        if limit >= 0:
            # The border pixels reach one pixel beyond the picture.
            if place < np.float32(-1) or place > np.float32(limit):
                before[k] = _OUTSIDE
                distance[k] = np.float32(0)
                continue
            place = min(max(place, np.float32(0)), np.float32(limit - 1))
        before[k] = int(np.floor(place))
        distance[k] = place - np.float32(before[k])
    return before, distance


@compiled
def fill_from_bitmap(
    bitmap: np.ndarray,
    left: int,
    top: int,
    box: np.ndarray,
    width: int,
    height: int,
    mask: np.ndarray,
) -> None:
    """Sample a bitmap inside a box and threshold at one half.

    Args:
        bitmap: ``(h, w)`` uint8 of 0 and 1, a cut-out of a picture; zero beyond.
        left: column of the bitmap's corner in the picture; ``top`` its row.
        top: see ``left``.
        box: ``(4,)`` float32, xyxy in the picture's pixels.
        width: the picture's; a negative number for a picture without borders.
        height: likewise.
        mask: ``(S, S)`` uint8; filled in place with 0 and 1.
    """
    size = mask.shape[0]
    rows, columns = bitmap.shape
    half = np.float32(0.5)
    start_x, start_y = np.float32(box[0] - half), np.float32(box[1] - half)
    extent_x = np.float32(np.float32(box[2] - half) - start_x)
    extent_y = np.float32(np.float32(box[3] - half) - start_y)
    cell_x = np.float32(extent_x / np.float32(size))
    cell_y = np.float32(extent_y / np.float32(size))
    across, down = max(int(np.ceil(cell_x)), 0), max(int(np.ceil(cell_y)), 0)
    xs, dxs = _axis_samples(start_x, cell_x, size, across, width)
    ys, dys = _axis_samples(start_y, cell_y, size, down, height)
    one = np.float32(1)
    count = np.float32(max(across * down, 1))
    for i in range(size):
        for j in range(size):
            total = np.float32(0)
            for m in range(i * down, (i + 1) * down):
                y = ys[m] - top
                if y < -1 or y >= rows:
                    continue
                ly = dys[m]
                hy = one - ly
                for n in range(j * across, (j + 1) * across):
                    x = xs[n] - left
                    if x < -1 or x >= columns:
                        continue
                    lx = dxs[n]
                    hx = one - lx
                    value = np.float32(0)
                    if y >= 0:
                        if x >= 0 and bitmap[y, x]:
                            value += hy * hx
                        if x + 1 < columns and bitmap[y, x + 1]:
                            value += hy * lx
                    if y + 1 < rows:
                        if x >= 0 and bitmap[y + 1, x]:
                            value += ly * hx
                        if x + 1 < columns and bitmap[y + 1, x + 1]:
                            value += ly * lx
                    total += value
            mask[i, j] = total / count >= half
