"""Overlapping windows that cover an image, and what their borders cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def window_starts(length: int, side: int, overlap: int) -> NDArray[np.int64]:
    """First pixels of the fewest windows that cover a length, evenly spread.

    Args:
        length: of the image, in pixels.
        side: of a window, in pixels.
        overlap: pixels that neighbours share at least; below ``side``.

    Returns:
        ``(n,)``, ascending; the first window begins at 0 and the last ends with the image. A window
        that is longer than the image begins at 0.
    """
    if length <= side:
        return np.zeros(1, dtype=np.int64)
    count = -(-(length - overlap) // (side - overlap))
    starts: NDArray[np.int64] = np.arange(count, dtype=np.int64) * (length - side) // (count - 1)
    return starts


def shortest_side(length: int, side: int, overlap: int, multiple: int = 1) -> int:
    """Side of as few windows as with ``side`` that share no more than they must.

    Args:
        length: of the image, in pixels.
        side: largest side of a window, in pixels.
        overlap: pixels that neighbours share at least; below ``side``.
        multiple: the side is rounded up to a multiple of this, but not above ``side``.
    """
    if length <= side:
        return side
    count = -(-(length - overlap) // (side - overlap))
    shortest = -(-(length + (count - 1) * overlap) // count)
    return min(side, -(-shortest // multiple) * multiple)


def window_grid(
    size: tuple[int, int], side: int, overlap: int, multiple: int = 1
) -> NDArray[np.int64]:
    """Windows that cover an image, row by row; as few and as small as possible.

    An object that is at most ``overlap`` pixels wide and high lies completely in one of them.

    Args:
        size: height and width of the image.
        side: largest side of a window, in pixels.
        overlap: pixels that neighbours share at least; below ``side``.
        multiple: sides below ``side`` are multiples of this, except in smaller images.

    Returns:
        ``(M, 4)`` ``x1 y1 x2 y2``.
    """
    height, width = (shortest_side(each, side, overlap, multiple) for each in size)
    rows, columns = window_starts(size[0], height, overlap), window_starts(size[1], width, overlap)
    y, x = np.meshgrid(rows, columns, indexing="ij")
    ends = np.minimum(x + width, size[1]), np.minimum(y + height, size[0])
    return np.stack((x, y, *ends), axis=-1).reshape(-1, 4)


def cut_sides(
    boxes: NDArray[np.floating], window: NDArray[np.int64], size: tuple[int, int], margin: float
) -> NDArray[np.bool_]:
    """Which boxes reach a border of their window that is not one of the image.

    Args:
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels of the image.
        window: ``(4,)`` ``x1 y1 x2 y2``.
        size: height and width of the image.
        margin: how close to a border a box reaches it, in pixels.

    Returns:
        ``(N, 2)``, whether the object is cut in x, and in y.
    """
    inner = np.array([window[0] > 0, window[1] > 0, window[2] < size[1], window[3] < size[0]])
    gaps = np.abs(boxes.astype(np.float64) - window)
    reached = (gaps <= margin) & inner  # (N, 4)
    cut: NDArray[np.bool_] = reached[:, :2] | reached[:, 2:]
    return cut
