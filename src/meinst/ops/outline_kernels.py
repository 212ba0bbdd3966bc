"""Compiled tracing of the pixel edges of a mask; called through :mod:`meinst.ops.outlines`."""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

# Headings: right, down, left, up. The foreground is on the right-hand side of the walk.
_STEP_X = np.array([1, 0, -1, 0])
_STEP_Y = np.array([0, 1, 0, -1])
# Offset from the current corner to the pixel ahead on the right. The pixel ahead on the left is
# the right-hand pixel of the previous heading.
_RIGHT_X = np.array([0, -1, -1, 0])
_RIGHT_Y = np.array([0, 0, -1, -1])


@compiled
def _count_edges(mask: np.ndarray) -> int:
    """Number of pixel edges between foreground and background of a padded mask."""
    count = 0
    for y in range(1, mask.shape[0] - 1):
        for x in range(1, mask.shape[1] - 1):
            if mask[y, x]:
                count += 4 - (
                    int(mask[y - 1, x])
                    + int(mask[y + 1, x])
                    + int(mask[y, x - 1])
                    + int(mask[y, x + 1])
                )
    return count


@compiled
def _next_heading(mask: np.ndarray, x: int, y: int, heading: int) -> int:
    """Heading in which a walk continues from a corner."""
    if not mask[y + _RIGHT_Y[heading], x + _RIGHT_X[heading]]:
        return (heading + 1) % 4
    left = (heading + 3) % 4
    return left if mask[y + _RIGHT_Y[left], x + _RIGHT_X[left]] else heading


@compiled
def trace_loops(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Trace every boundary of a mask as a closed walk of unit steps between pixel corners.

    Foreground is 4-connected, background 8-connected.

    Args:
        mask: ``(h + 2, w + 2)`` bool, padded with one False pixel on every side.

    Returns:
        ``(V, 2)`` int64 corners x, y of all walks, concatenated, in the unpadded mask;
        ``(L,)`` int64, the end of each walk among them; and ``(L,)`` int64, the enclosed area,
        negative for the boundary of a hole.
    """
    height, width = mask.shape
    count = _count_edges(mask)
    corners = np.empty((count, 2), dtype=np.int64)
    # A closed walk has at least four steps.
    ends = np.empty(count // 4, dtype=np.int64)
    areas = np.empty(count // 4, dtype=np.int64)
    passed = np.zeros(mask.shape, dtype=np.bool_)  # pixels whose upper edge has been traced
    used, loops = 0, 0
    for first_y in range(1, height - 1):
        for first_x in range(1, width - 1):
            if not mask[first_y, first_x] or mask[first_y - 1, first_x] or passed[first_y, first_x]:
                continue
            x, y, heading, area = first_x, first_y, 0, 0
            while True:
                corners[used, 0] = x - 1
                corners[used, 1] = y - 1
                used += 1
                if heading == 0:
                    passed[y, x] = True
                x += _STEP_X[heading]
                y += _STEP_Y[heading]
                area += x * _STEP_Y[heading]
                heading = _next_heading(mask, x, y, heading)
                if x == first_x and y == first_y and heading == 0:
                    break
            ends[loops] = used
            areas[loops] = area
            loops += 1
    return corners[:used], ends[:loops], areas[:loops]


@compiled
def split_loops(
    corners: np.ndarray, ends: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split closed walks into rings that pass no corner twice.

    Args:
        corners: ``(V, 2)`` int64, as from :func:`trace_loops`.
        ends: ``(L,)`` int64, the end of each walk in ``corners``.
        height: of the mask, in pixels.
        width: of the mask, in pixels.

    Returns:
        ``(V, 2)`` corners of all rings, concatenated; ``(R,)`` the end of each ring; and ``(R,)``
        the walk of each ring.
    """
    rings = np.empty_like(corners)
    ring_ends = np.empty(len(corners) // 4, dtype=np.int64)
    walks = np.empty(len(corners) // 4, dtype=np.int64)
    places = np.full((height + 1, width + 1), -1, dtype=np.int64)  # of corners on the path
    path = np.empty_like(corners)
    used, count, begin = 0, 0, 0
    for walk in range(len(ends)):
        length = 0
        for index in range(begin, ends[walk] + 1):
            closing = index == ends[walk]
            x, y = corners[begin if closing else index]
            place = places[y, x]
            if place >= 0:  # the path has closed a ring
                for passed in range(place, length):
                    rings[used] = path[passed]
                    used += 1
                    places[path[passed, 1], path[passed, 0]] = -1
                ring_ends[count] = used
                walks[count] = walk
                count += 1
                length = place
            if not closing:
                path[length, 0] = x
                path[length, 1] = y
                places[y, x] = length
                length += 1
        begin = ends[walk]
    return rings[:used], ring_ends[:count], walks[:count]
