"""Compiled loops over run lengths: overlaps and boundaries; called through ``ops.mask_iou``.

A mask is its runs, ``(R, 2)``: the first pixel of each and the pixel after its last, counted
down the columns of the image; ascending, never empty, never touching. Work and memory follow
the number of runs, about the mask's width, and not the number of pixels.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled


@compiled
def find_runs(counts: np.ndarray) -> np.ndarray:
    """Runs of ones, ``(R, 2)`` int64, from lengths of alternating runs of 0 and 1, ``(n,)``.

    A run of no zeros parts nothing, and one of no ones is none.
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
    """Number of pixels that two masks, ``(R, 2)`` and ``(Q, 2)``, have in common."""
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
    """Cut runs where a column ends.

    Args:
        runs: ``(R, 2)``, at least one.
        height: the image's, in pixels.

    Returns:
        ``(Q, 2)`` int64 rows ``low`` to ``high`` (excluded), and ``(w + 1,)`` int64: where each
        column's begin, from the mask's first column to its last, and the end.
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
    """Take ``distance`` rows from both ends of every piece; what is used up goes."""
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
    """The same array, or a larger one with its first ``used`` rows, if ``more`` do not fit."""
    if used + more <= len(pieces):
        return pieces
    larger = np.empty((2 * (used + more), 2), dtype=pieces.dtype)
    for p in range(used):  # a copy of slices takes seconds to compile
        larger[p, 0] = pieces[p, 0]
        larger[p, 1] = pieces[p, 1]
    return larger


@compiled
def _intersect(first: np.ndarray, second: np.ndarray, result: np.ndarray, used: int) -> int:
    """Append what two columns have in common to ``result``; returns how many rows it then has.

    There must be room for as many rows as both have together.
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
def _common_rows(
    pieces: np.ndarray, begins: np.ndarray, length: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows that all of ``length`` neighbouring columns have, for each such window.

    With the windows cut at every ``length``-th column, one is the end of a block and the start
    of the next. Growing ends and starts column by column makes three intersections for each
    window, whatever its length (van Herk 1992; Gil and Werman 1993).

    Args:
        pieces: ``(Q, 2)`` int64 rows of all columns.
        begins: ``(w + 1,)`` int64, where each column's begin.
        length: columns of a window, odd.
        height: rows of a column.

    Returns:
        ``(E, 2)`` int64 and ``(w + 1,)`` int64 in the same form: at each column those of the
        window around it; a window that reaches beyond the columns has none.
    """
    width, around = len(begins) - 1, length // 2
    windows = width - length + 1
    found = np.empty((len(pieces), 2), dtype=np.int64)
    found_begins = np.zeros(width + 1, dtype=np.int64)
    everything = np.array([[0, height]])
    ends = np.empty((len(pieces) + 1, 2), dtype=np.int64)
    end_begins = np.empty(length + 2, dtype=np.int64)  # of the last column's, second last's, ...
    used = 0
    for block in range(0, windows, length):
        ends[0, 0], ends[0, 1] = 0, height
        end_begins[0], end_begins[1] = 0, 1
        for k in range(1, length + 1):
            column = block + length - k
            before, after = end_begins[k - 1], end_begins[k]
            own = pieces[begins[column] : begins[column + 1]]
            ends = _with_room(ends, after, len(own) + after - before)
            end_begins[k + 1] = _intersect(ends[before:after], own, ends, after)
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
    """The pixels of a mask that its erosion by a square takes away.

    Args:
        runs: ``(R, 2)``, at least one.
        height: the image's, in pixels.
        distance: the square's side is twice this and 1; at least 1.

    Returns:
        ``(Q, 2)`` runs of the same type; they may touch from one column to the next.
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
            # What is left inside a piece has boundary above and below it.
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
