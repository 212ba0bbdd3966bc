"""How alike two masks are, from their run lengths: IoU, and IoU of their boundaries.

Boundary IoU is that of Cheng et al., "Boundary IoU: Improving Object-Centric Image
Segmentation Evaluation", CVPR 2021, arXiv 2103.16562. Nothing here grows with the number of
pixels, so masks are compared at the resolution of their image, however large.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from meinst.ops.boundary_kernels import find_boundary, find_runs, shared_pixels

Runs: TypeAlias = NDArray[np.signedinteger]
"""A mask, ``(R, 2)``: the first pixel of each run and the pixel after its last, counted down the
columns of the image; ascending, never empty."""

DILATION_RATIO = 0.02
"""The boundary's width as a share of the image's diagonal, as published."""


def boundary_distance(height: int, width: int) -> int:
    """The width of a boundary in an image of so many pixels: ``d``, at least 1."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def mask_runs(counts: NDArray[np.signedinteger]) -> Runs:
    """The runs of a mask from COCO's run lengths.

    Args:
        counts: ``(n,)`` lengths of alternating runs of 0 and 1, down the columns.

    Returns:
        ``(R, 2)`` int32, or int64 for an image of more pixels than that can count.
    """
    runs: Runs = find_runs(counts)  # (R, 2)
    small = not runs.size or runs[-1, 1] <= np.iinfo(np.int32).max
    return runs.astype(np.int32) if small else runs


def pixel_count(runs: Runs) -> int:
    """Number of pixels of a mask."""
    return int((runs[:, 1] - runs[:, 0]).sum(dtype=np.int64))


def boundary_runs(runs: Runs, height: int, distance: int) -> Runs:
    """The pixels of a mask within ``distance`` of what is not the mask.

    Distances are those of a square (the larger of rows and columns), and all that is outside
    the image is not the mask: the mask minus its erosion by a square of ``2 d + 1`` pixels.

    Args:
        runs: ``(R, 2)``, no two of them touching, as of :func:`mask_runs`.
        height: the image's, in pixels.
        distance: ``d``, at least 1.

    Returns:
        ``(Q, 2)`` of the same type; runs may touch where a column ends.
    """
    if not len(runs):
        return runs
    boundary: Runs = find_boundary(runs, height, distance)
    return boundary


def runs_iou(first: Runs, second: Runs) -> float:
    """Shared pixels over the pixels of either mask; 1 for two masks without pixels."""
    shared = shared_pixels(first, second)
    either = pixel_count(first) + pixel_count(second) - shared
    return shared / either if either else 1.0
