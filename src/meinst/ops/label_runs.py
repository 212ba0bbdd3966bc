"""Run lengths of the objects of a label image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def colour_numbers(colours: NDArray[Any]) -> NDArray[np.int64]:
    """Colours ``(..., 3)`` as numbers ``(...)``: red + 256 green + 65,536 blue; black is 0."""
    numbers: NDArray[np.int64] = colours[..., :3].astype(np.int64) @ np.array([1, 256, 65536])
    return numbers


def label_counts(
    labels: NDArray[Any], background: int = 0
) -> tuple[NDArray[Any], list[NDArray[np.int64]]]:
    """Split a label image into the masks of its objects.

    Args:
        labels: ``(H, W)`` integers, the number of each pixel's object.
        background: the number of pixels without an object.

    Returns:
        The ``N`` numbers that occur, ascending, without ``background``; and for each the lengths of
        alternating runs of 0 and 1 down the columns of the image, as in COCO's uncompressed RLE.
    """
    flat = labels.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], changes)) if len(flat) else changes
    ends = np.append(changes, len(flat)) if len(flat) else changes
    kept = flat[starts] != background
    starts, ends = starts[kept], ends[kept]
    order = np.argsort(flat[starts], kind="stable")
    starts, ends = starts[order], ends[order]
    numbers, first = np.unique(flat[starts], return_index=True)
    before = np.concatenate(([0], ends[:-1]))[: len(starts)]  # end of the object's previous run
    before[first] = 0
    runs = np.column_stack((starts - before, ends - starts)).ravel()
    last = np.append(first[1:], len(starts)) - 1 if len(first) else first
    tails = len(flat) - ends[last]
    pieces = np.split(runs, 2 * first[1:])[: len(numbers)]
    return numbers, [np.append(piece, tail) for piece, tail in zip(pieces, tails, strict=True)]


def crop_counts(
    crop: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.int64]:
    """Run lengths of a mask of which a crop is given, without the whole mask.

    Args:
        crop: ``(h, w)`` bool.
        corner: x and y of its first pixel in the image; parts outside the image are cut off.
        size: height and width of the image.

    Returns:
        Lengths of alternating runs of 0 and 1 down the columns of the image, as in COCO's
        uncompressed RLE.
    """
    (x, y), (height, width) = corner, size
    inside = crop[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
    rows = np.flatnonzero(inside.T)  # of the crop's pixels, down its columns
    columns, places = np.divmod(rows, max(inside.shape[0], 1))
    pixels = (columns + max(x, 0)) * height + places + max(y, 0)  # of the image
    gaps = np.flatnonzero(np.diff(pixels) != 1)
    starts = pixels[np.append(0, gaps + 1)] if len(pixels) else pixels
    ends = pixels[np.append(gaps, len(pixels) - 1)] + 1 if len(pixels) else pixels
    borders = np.concatenate(([0], np.stack((starts, ends), axis=1).ravel(), [height * width]))
    counts: NDArray[np.int64] = np.diff(borders).astype(np.int64)
    return counts
