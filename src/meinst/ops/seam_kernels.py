"""Compiled loops that compare the detections of overlapping windows; called by the detector.

Only detections of different windows are compared, and only inside what the two windows share, so
that time is proportional to the number of detections near seams.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

_HALF, _ONE = np.float32(0.5), np.float32(1)
_TINY = np.float32(1e-6)
_SAMPLES = 32  # at most this many samples along a side decide how far two masks overlap


@compiled
def _next_window(first: int, other: int, windows: np.ndarray, levels: np.ndarray) -> int:
    """The first window from ``other`` on that may overlap ``first``.

    The windows of a level are in rows, so that no later one of the level overlaps after the first
    that begins below.
    """
    count = len(windows)
    while other < count and windows[other, 1] >= windows[first, 3]:
        level = levels[other]
        while other < count and levels[other] == level:
            other += 1
    return other


@compiled
def _inside(boxes: np.ndarray, begin: int, end: int, x1, y1, x2, y2, found: np.ndarray) -> int:  # type: ignore[no-untyped-def]
    """Collect the boxes that overlap a region; returns their number."""
    count = 0
    for n in range(begin, end):
        if boxes[n, 0] < x2 and boxes[n, 2] > x1 and boxes[n, 1] < y2 and boxes[n, 3] > y1:
            found[count] = n
            count += 1
    return count


@compiled
def _overlap_in(a: np.ndarray, b: np.ndarray, x1, y1, x2, y2) -> float:  # type: ignore[no-untyped-def]
    """IoU of two boxes inside a region."""
    a1, b1, a2, b2 = max(a[0], x1), max(a[1], y1), min(a[2], x2), min(a[3], y2)
    u1, v1, u2, v2 = max(b[0], x1), max(b[1], y1), min(b[2], x2), min(b[3], y2)
    shared = max(min(a2, u2) - max(a1, u1), 0.0) * max(min(b2, v2) - max(b1, v1), 0.0)
    union = (a2 - a1) * (b2 - b1) + (u2 - u1) * (v2 - v1) - shared
    return shared / union if union > 0 else 0.0


@compiled
def _store(pair, region, i, j, x1, y1, x2, y2) -> None:  # type: ignore[no-untyped-def]
    pair[0], pair[1] = i, j
    region[0], region[1], region[2], region[3] = x1, y1, x2, y2


@compiled
def find_pairs(
    boxes: np.ndarray,
    labels: np.ndarray,
    starts: np.ndarray,
    windows: np.ndarray,
    levels: np.ndarray,
    threshold: float,
    pairs: np.ndarray,
    regions: np.ndarray,
) -> int:
    """Find detections of one class in different windows whose boxes overlap where both see.

    Args:
        boxes: ``(N, 4)`` float32 ``x1 y1 x2 y2`` in pixels of the image, by window.
        labels: ``(N,)`` int64.
        starts: ``(M + 1,)`` int64, the first detection of each window.
        windows: ``(M, 4)`` float32 ``x1 y1 x2 y2``; of each of ``levels`` (ascending) row by row.
        levels: ``(M,)`` int64.
        threshold: smallest IoU of boxes of the same level inside what the windows share.
        pairs: ``(P, 2)`` int64, takes the indices of the pairs, the earlier window first.
        regions: ``(P, 4)`` float32, takes what the two windows share.

    Returns:
        The number of pairs; those above ``P`` are not stored.
    """
    count = 0
    first, second = np.empty(len(boxes), np.int64), np.empty(len(boxes), np.int64)
    for a in range(len(windows)):
        b = _next_window(a, a + 1, windows, levels)
        while b < len(windows):
            x1, y1 = max(windows[a, 0], windows[b, 0]), max(windows[a, 1], windows[b, 1])
            x2, y2 = min(windows[a, 2], windows[b, 2]), min(windows[a, 3], windows[b, 3])
            if x1 < x2 and y1 < y2 and starts[b] < starts[b + 1]:
                count_a = _inside(boxes, starts[a], starts[a + 1], x1, y1, x2, y2, first)
                count_b = _inside(boxes, starts[b], starts[b + 1], x1, y1, x2, y2, second)
                least = threshold if levels[a] == levels[b] else 0.0
                for i in first[:count_a]:
                    for j in second[:count_b]:
                        overlap = _overlap_in(boxes[i], boxes[j], x1, y1, x2, y2)
                        if labels[i] == labels[j] and overlap > 0 and overlap >= least:
                            if count < len(pairs):
                                _store(pairs[count], regions[count], i, j, x1, y1, x2, y2)
                            count += 1
            b = _next_window(a, b + 1, windows, levels)
    return count


@compiled
def _place(first, step, count, low, high, size, before, after) -> None:  # type: ignore[no-untyped-def]
    """Positions of samples among the ``S`` values of one axis, stretched over a box.

    Args:
        first: the first sample, in pixels.
        step: distance of the samples.
        count: number of samples.
        low: lower side of the box.
        high: its upper side.
        size: ``S``.
        before: takes the index of the value before each sample plus 1; -1 outside the box.
        after: takes the weight of the value after it.
    """
    scale = np.float32(size) / max(high - low, _TINY)
    for k in range(count):
        place = first + np.float32(k) * step
        before[k] = -1
        if low < place < high:
            position = (place - low) * scale + _HALF  # among values with a zero before them
            before[k] = int(position)
            after[k] = position - np.float32(before[k])


@compiled
def _sample(padded, columns, across, rows, down, inside) -> None:  # type: ignore[no-untyped-def]
    """Which samples are in a mask, from values with a border of zeros."""
    for r in range(len(rows)):
        row = rows[r]
        for c in range(len(columns)):
            column = columns[c]
            inside[r, c] = False
            if row >= 0 and column >= 0:
                w, v = across[c], down[r]
                top = padded[row, column] * (_ONE - w) + padded[row, column + 1] * w
                bottom = padded[row + 1, column] * (_ONE - w) + padded[row + 1, column + 1] * w
                inside[r, c] = top * (_ONE - v) + bottom * v >= _HALF


@compiled
def pair_areas(
    soft: np.ndarray, boxes: np.ndarray, pairs: np.ndarray, regions: np.ndarray, areas: np.ndarray
) -> None:
    """Estimate how far pairs of masks overlap inside regions, from at most 32 x 32 points.

    Args:
        soft: ``(N, S + 2, S + 2)`` float32 with a border of zeros; the inner values are stretched
            over the boxes, as in ``ops.paste``.
        boxes: ``(N, 4)`` float32 ``x1 y1 x2 y2``.
        pairs: ``(P, 2)`` int64, indices of masks.
        regions: ``(P, 4)`` float32 ``x1 y1 x2 y2``.
        areas: ``(P, 3)`` float64, takes the area of the intersection, of the first and of the
            second mask inside the region, in pixels.
    """
    size = soft.shape[1] - 2
    columns, rows = np.empty(_SAMPLES, np.int64), np.empty(_SAMPLES, np.int64)
    right, below = np.empty(_SAMPLES, np.float32), np.empty(_SAMPLES, np.float32)
    inside = np.empty((2, _SAMPLES, _SAMPLES), np.bool_)
    for p in range(len(pairs)):
        a, b = boxes[pairs[p, 0]], boxes[pairs[p, 1]]
        x1, y1 = max(min(a[0], b[0]), regions[p, 0]), max(min(a[1], b[1]), regions[p, 1])
        x2, y2 = min(max(a[2], b[2]), regions[p, 2]), min(max(a[3], b[3]), regions[p, 3])
        across = min(max(int(np.ceil(x2 - x1)), 1), _SAMPLES)
        down = min(max(int(np.ceil(y2 - y1)), 1), _SAMPLES)
        dx, dy = (x2 - x1) / np.float32(across), (y2 - y1) / np.float32(down)
        for k in range(2):
            n = pairs[p, k]
            box = boxes[n]
            _place(x1 + _HALF * dx, dx, across, box[0], box[2], size, columns, right)
            _place(y1 + _HALF * dy, dy, down, box[1], box[3], size, rows, below)
            _sample(soft[n], columns[:across], right[:across], rows[:down], below[:down], inside[k])
        shared, area_a, area_b = 0, 0, 0
        for r in range(down):
            for c in range(across):
                area_a += inside[0, r, c]
                area_b += inside[1, r, c]
                shared += inside[0, r, c] & inside[1, r, c]
        pixel = dx * dy
        areas[p, 0], areas[p, 1], areas[p, 2] = shared * pixel, area_a * pixel, area_b * pixel


@compiled
def keep_best(order: np.ndarray, starts: np.ndarray, related: np.ndarray, keep: np.ndarray) -> None:
    """Keep each detection that is related to no better one that is kept.

    Args:
        order: indices of detections, best first.
        starts: ``(N + 1,)`` int64, the first relation of each detection.
        related: the detections that each is related to.
        keep: ``(N,)`` bool; changed in place, for the detections in ``order``.
    """
    for n in order:
        keep[n] = True
        for other in related[starts[n] : starts[n + 1]]:
            if keep[other]:
                keep[n] = False
                break


@compiled
def connect(pairs: np.ndarray, roots: np.ndarray) -> None:
    """Join pairs to connected parts.

    Args:
        pairs: ``(P, 2)`` int64.
        roots: ``(N,)`` int64, initially 0, 1, 2, ...; takes the smallest index of each one's part.
    """
    for p in range(len(pairs)):
        a, b = pairs[p]
        while roots[a] != a:
            roots[a] = roots[roots[a]]
            a = roots[a]
        while roots[b] != b:
            roots[b] = roots[roots[b]]
            b = roots[b]
        roots[max(a, b)] = min(a, b)
    for n in range(len(roots)):
        roots[n] = roots[roots[n]]
