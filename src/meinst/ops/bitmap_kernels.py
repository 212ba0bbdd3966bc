"""Compiled loop that samples a bitmap; called through :mod:`meinst.ops.rasterize`.

All arithmetic is in single precision and in the order of torchvision's ``roi_align``, so that
cells with a mean close to one half are thresholded the same.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

_HALF = np.float32(0.5)
_ONE = np.float32(1)
_OUTSIDE = -(2**40)  # index of samples outside the image; in no bitmap


@compiled
def _axis_samples(
    low: np.float32, high: np.float32, size: int, limit: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Place the samples of a grid along one axis.

    Args:
        low: lower side of the box, in pixels of the image.
        high: its upper side.
        size: ``S``.
        limit: length of the image in pixels; negative for an image without borders.

    Returns:
        ``(S * n,)`` int64, the pixel before each sample; ``(S * n,)`` float32, the distance of the
        sample from the centre of that pixel; and ``n``, the number of samples per cell.
    """
    start = np.float32(low - _HALF)  # 0 is the centre of the first pixel
    cell = np.float32(np.float32(np.float32(high - _HALF) - start) / np.float32(size))
    per_cell = max(int(np.ceil(cell)), 0)
    before = np.empty(size * per_cell, dtype=np.int64)
    distance = np.empty(size * per_cell, dtype=np.float32)
    for k in range(size * per_cell):
        inner = np.float32(np.float32(k % per_cell) + _HALF) * cell
        place = np.float32(start + np.float32(np.float32(k // per_cell) * cell))
        place = np.float32(place + np.float32(inner / np.float32(per_cell)))
        if limit >= 0:
            # The border pixels extend one pixel beyond the image.
            if place < np.float32(-1) or place > np.float32(limit):
                before[k] = _OUTSIDE
                distance[k] = np.float32(0)
                continue
            place = min(max(place, np.float32(0)), np.float32(limit - 1))
        before[k] = int(np.floor(place))
        distance[k] = place - np.float32(before[k])
    return before, distance, per_cell


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
        bitmap: ``(h, w)`` uint8 of 0 and 1, a crop of an image; everything outside is 0.
        left: column of the crop's first pixel in the image.
        top: row of the crop's first pixel in the image.
        box: ``(4,)`` float32, ``x1 y1 x2 y2`` in pixels of the image.
        width: of the image in pixels; negative for an image without borders.
        height: of the image in pixels; negative for an image without borders.
        mask: ``(S, S)`` uint8, filled in place with 0 and 1.
    """
    size = mask.shape[0]
    rows, columns = bitmap.shape
    xs, dxs, across = _axis_samples(box[0], box[2], size, width)
    ys, dys, down = _axis_samples(box[1], box[3], size, height)
    count = np.float32(max(across * down, 1))
    for i in range(size):
        for j in range(size):
            total = np.float32(0)
            for m in range(i * down, (i + 1) * down):
                y = ys[m] - top
                if y < -1 or y >= rows:
                    continue
                ly, hy = dys[m], _ONE - dys[m]
                for n in range(j * across, (j + 1) * across):
                    x = xs[n] - left
                    if x < -1 or x >= columns:
                        continue
                    lx, hx = dxs[n], _ONE - dxs[n]
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
            mask[i, j] = total / count >= _HALF
