"""Compiled walk along the pixel edges of a mask; called through :mod:`meinst.ops.outlines`."""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

# Headings, clockwise with y down: right, down, left, up. The foreground is at the right hand.
_STEP_X = np.array([1, 0, -1, 0])
_STEP_Y = np.array([0, 1, 0, -1])
# The pixel ahead at the right hand, from the corner that the walk has reached; the one at
# the left hand is the right-hand one of the heading before.
_RIGHT_X = np.array([0, -1, -1, 0])
_RIGHT_Y = np.array([0, 0, -1, -1])


@compiled
def trace_loops(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every boundary of a mask as a closed walk of unit steps over pixel corners.

    Pixels that touch only at a corner are apart; background pixels that do are joined.

    Args:
        mask: ``(h + 2, w + 2)`` bool, with a margin of one False pixel on every side.

    Returns:
        ``(V, 2)`` int64 corners x, y of all walks, one after the other, without the margin;
        ``(L,)`` int64, where each walk ends among them; and ``(L,)`` int64, the area that it
        encloses, negative for the boundary of a hole.
    """
    height, width = mask.shape
    count = 0
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            if mask[y, x]:
                count += 4 - (
                    int(mask[y - 1, x])
                    + int(mask[y + 1, x])
                    + int(mask[y, x - 1])
                    + int(mask[y, x + 1])
                )
    corners = np.empty((count, 2), dtype=np.int64)
    # A closed walk has at least two steps right and left, two up and down.
    ends = np.empty(count // 4, dtype=np.int64)
    areas = np.empty(count // 4, dtype=np.int64)
    walked = np.zeros(mask.shape, dtype=np.bool_)  # pixels whose upper edge a walk has passed
    used, loops = 0, 0
    for first_y in range(1, height - 1):
        for first_x in range(1, width - 1):
            if not mask[first_y, first_x] or mask[first_y - 1, first_x] or walked[first_y, first_x]:
                continue
            x, y, heading, area = first_x, first_y, 0, 0
            while True:
                corners[used, 0] = x - 1
                corners[used, 1] = y - 1
                used += 1
                if heading == 0:
                    walked[y, x] = True
                x += _STEP_X[heading]
                y += _STEP_Y[heading]
                area += x * _STEP_Y[heading]
                if not mask[y + _RIGHT_Y[heading], x + _RIGHT_X[heading]]:
                    heading = (heading + 1) % 4
                else:
                    left = (heading + 3) % 4
                    if mask[y + _RIGHT_Y[left], x + _RIGHT_X[left]]:
                        heading = left
                if x == first_x and y == first_y and heading == 0:
                    break
            ends[loops] = used
            areas[loops] = area
            loops += 1
    return corners[:used], ends[:loops], areas[:loops]
