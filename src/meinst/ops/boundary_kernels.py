"""Compiled loops over runs: overlaps and boundaries of masks; called through ``ops.mask_iou``.

A mask is given by its runs, ``(R, 2)``: the first pixel of each and the pixel after its last,
counted down the columns of the image; ascending, never empty, never touching. Time and memory
grow with the number of runs (about the mask's width), not with the number of pixels.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled


@compiled
def find_runs(counts: np.ndarray) -> np.ndarray:
    """Runs of ones, ``(R, 2)`` int64, from lengths of alternating runs of 0 and 1, ``(n,)``.

    Runs of length 0 are dropped; runs of ones that touch because of them are merged.
    """
    runs = np.empty((len(counts) // 2, 2), dtype=np.int64)
    place, used = 0, 0
    for k in range(len(counts)):
        start = place
        place += counts[k]
        if k % 2 == 0 or place == start:
            continue
        if used > 0 and runs[used - 1, 1] == start:
            used -= 1
        else:
            runs[used, 0] = start
        runs[used, 1] = place
        used += 1
    return runs[:used]


@compiled
def shared_pixels(first: np.ndarray, second: np.ndarray) -> int:
    """Number of pixels shared by two masks, ``(R, 2)`` and ``(Q, 2)``."""
    shared, i, j = 0, 0, 0
    while i < len(first) and j < len(second):
        shared += max(min(first[i, 1], second[j, 1]) - max(first[i, 0], second[j, 0]), 0)
        if first[i, 1] < second[j, 1]:
            i += 1
        else:
            j += 1
    return shared


@compiled
def _split_columns(runs: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Split runs at the ends of columns.

    Args:
        runs: ``(R, 2)``, at least one.
        height: of the image, in pixels.

    Returns:
        ``(Q, 2)`` int64 pieces, rows ``low`` to ``high`` (excluded), and ``(w + 1,)`` int64, the
        index of the first piece of each column, from the mask's first column to its last, and
        ``Q``.
    """
    left, right = runs[0, 0] // height, (runs[-1, 1] - 1) // height
    count = 0
    for r in range(len(runs)):
        count += (runs[r, 1] - 1) // height - runs[r, 0] // height + 1
    pieces = np.empty((count, 2), dtype=np.int64)
    begins = np.zeros(right - left + 2, dtype=np.int64)
    used = 0
    for r in range(len(runs)):
        start, stop = runs[r]
        while start < stop:
            column = start // height
            end = min(stop, (column + 1) * height)
            pieces[used, 0] = start - column * height
            pieces[used, 1] = end - column * height
            used += 1
            begins[column - left + 1] = used
            start = end
    for x in range(1, len(begins)):  # columns without a piece
        begins[x] = max(begins[x], begins[x - 1])
    return pieces, begins


@compiled
def _shrink(pieces: np.ndarray, begins: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove ``distance`` rows from both ends of every piece, and pieces that become empty."""
    shrunk = np.empty_like(pieces)
    ends = np.zeros_like(begins)
    used = 0
    for x in range(len(begins) - 1):
        for p in range(begins[x], begins[x + 1]):
            if pieces[p, 1] - pieces[p, 0] > 2 * distance:
                shrunk[used, 0] = pieces[p, 0] + distance
                shrunk[used, 1] = pieces[p, 1] - distance
                used += 1
        ends[x + 1] = used
    return shrunk[:used], ends


@compiled
def _with_room(pieces: np.ndarray, used: int, more: int) -> np.ndarray:
    """Copy the first ``used`` rows to a larger array if ``more`` rows do not fit."""
    if used + more <= len(pieces):
        return pieces
    larger = np.empty((2 * (used + more), 2), dtype=pieces.dtype)
    for p in range(used):  # copying slices takes seconds to compile
        larger[p, 0] = pieces[p, 0]
        larger[p, 1] = pieces[p, 1]
    return larger


@compiled
def _intersect(first: np.ndarray, second: np.ndarray, result: np.ndarray, used: int) -> int:
    """Append the intersection of two columns to ``result``; returns the new number of rows.

    ``result`` must have room for as many rows as both columns together.
    """
    i, j = 0, 0
    while i < len(first) and j < len(second):
        low, high = max(first[i, 0], second[j, 0]), min(first[i, 1], second[j, 1])
        if low < high:
            result[used, 0] = low
            result[used, 1] = high
            used += 1
        if first[i, 1] < second[j, 1]:
            i += 1
        else:
            j += 1
    return used


@compiled
def _grow_ends(
    pieces: np.ndarray, begins: np.ndarray, stop: int, ends: np.ndarray, end_begins: np.ndarray
) -> np.ndarray:
    """Intersect the last 0, 1, 2, ... columns of a block, for :func:`_common_rows`.

    Args:
        pieces: ``(Q, 2)`` int64 rows of all columns.
        begins: ``(w + 1,)`` int64, first piece of each column.
        stop: the column after the block.
        ends: takes the intersections; its first row is a whole column, that of no columns.
        end_begins: ``(length + 2,)`` int64, takes the first row of each intersection.

    Returns:
        ``ends``, or a larger array in its place.
    """
    end_begins[0], end_begins[1] = 0, 1
    for k in range(1, len(end_begins) - 1):
        before, after = end_begins[k - 1], end_begins[k]
        own = pieces[begins[stop - k] : begins[stop - k + 1]]
        ends = _with_room(ends, after, len(own) + after - before)
        end_begins[k + 1] = _intersect(ends[before:after], own, ends, after)
    return ends


@compiled
def _common_rows(
    pieces: np.ndarray, begins: np.ndarray, length: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Intersect ``length`` neighbouring columns, for each such window.

    The columns are divided into blocks of ``length``, so that each window consists of the end of
    one block and the start of the next. Extending ends and starts column by column takes three
    intersections per window, for any length (van Herk 1992; Gil and Werman 1993).

    Args:
        pieces: ``(Q, 2)`` int64 rows of all columns.
        begins: ``(w + 1,)`` int64, first piece of each column.
        length: columns per window, odd.
        height: rows per column.

    Returns:
        ``(E, 2)`` int64 and ``(w + 1,)`` int64 in the same form: for each column the rows common
        to the window around it; none where the window extends beyond the columns.
    """
    width, around = len(begins) - 1, length // 2
    windows = width - length + 1
    found = np.empty((len(pieces), 2), dtype=np.int64)
    found_begins = np.zeros(width + 1, dtype=np.int64)
    everything = np.array([[0, height]])
    ends = np.empty((len(pieces) + 1, 2), dtype=np.int64)
    ends[0, 0], ends[0, 1] = 0, height
    end_begins = np.empty(length + 2, dtype=np.int64)
    used = 0
    for block in range(0, windows, length):
        ends = _grow_ends(pieces, begins, block + length, ends, end_begins)
        start = everything
        for k in range(min(length, windows - block)):
            window = block + k
            if k > 0:
                column = window + length - 1
                own = pieces[begins[column] : begins[column + 1]]
                grown = np.empty((len(start) + len(own), 2), dtype=np.int64)
                start = grown[: _intersect(start, own, grown, 0)]
            end = ends[end_begins[length - k] : end_begins[length - k + 1]]
            found = _with_room(found, used, len(start) + len(end))
            used = _intersect(start, end, found, used)
            found_begins[window + around + 1] = used
    for x in range(max(windows, 0) + around + 1, width + 1):
        found_begins[x] = used
    return found[:used], found_begins


@compiled
def find_boundary(runs: np.ndarray, height: int, distance: int) -> np.ndarray:
    """Pixels that erosion by a square removes from a mask.

    Args:
        runs: ``(R, 2)``, at least one.
        height: of the image, in pixels.
        distance: ``d``, at least 1; the square has sides of ``2 d + 1``.

    Returns:
        ``(Q, 2)`` runs of the same type; runs may touch at the ends of columns.
    """
    pieces, begins = _split_columns(runs, height)
    shrunk, shrunk_begins = _shrink(pieces, begins, distance)
    inner, inner_begins = _common_rows(shrunk, shrunk_begins, 2 * distance + 1, height)
    boundary = np.empty((len(pieces) + len(inner), 2), dtype=runs.dtype)
    left = runs[0, 0] // height
    used = 0
    for x in range(len(begins) - 1):
        shift = (left + x) * height
        k = inner_begins[x]
        for p in range(begins[x], begins[x + 1]):
            low = pieces[p, 0]
            # Each inner run has boundary above and below it.
            while k < inner_begins[x + 1] and inner[k, 1] < pieces[p, 1]:
                boundary[used, 0] = shift + low
                boundary[used, 1] = shift + inner[k, 0]
                used += 1
                low = inner[k, 1]
                k += 1
            boundary[used, 0] = shift + low
            boundary[used, 1] = shift + pieces[p, 1]
            used += 1
    return boundary
