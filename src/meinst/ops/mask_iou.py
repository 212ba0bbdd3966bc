"""IoU and boundary IoU of masks, computed from run lengths.

Boundary IoU is that of Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation", CVPR 2021, arXiv 2103.16562. Time and memory do not grow with the number of pixels,
so that masks can be compared at the full resolution of large images.
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
"""Width of the boundary as a fraction of the image's diagonal, as published."""


def boundary_distance(height: int, width: int) -> int:
    """Width ``d`` of the boundary in an image of the given size, in pixels; at least 1."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def mask_runs(counts: NDArray[np.signedinteger]) -> Runs:
    """Convert COCO's run lengths to runs.

    Args:
        counts: ``(n,)`` lengths of alternating runs of 0 and 1, down the columns.

    Returns:
        ``(R, 2)`` int32, or int64 for images of 2^31 pixels and more.
    """
    runs: Runs = find_runs(counts)  # (R, 2)
    small = not runs.size or runs[-1, 1] <= np.iinfo(np.int32).max
    return runs.astype(np.int32) if small else runs


def pixel_count(runs: Runs) -> int:
    """Number of pixels of a mask."""
    return int((runs[:, 1] - runs[:, 0]).sum(dtype=np.int64))


def boundary_runs(runs: Runs, height: int, distance: int) -> Runs:
    """Pixels of a mask within ``distance`` of the background.

    This is the mask minus its erosion by a square with sides of ``2 d + 1`` pixels; everything
    outside the image is background.

    Args:
        runs: ``(R, 2)`` from :func:`mask_runs`; runs must not touch.
        height: of the image, in pixels.
        distance: ``d``, at least 1.

    Returns:
        ``(Q, 2)`` of the same type; runs may touch at the ends of columns.
    """
    if not len(runs):
        return runs
    boundary: Runs = find_boundary(runs, height, distance)
    return boundary


def runs_iou(first: Runs, second: Runs) -> float:
    """IoU of two masks; 1 if both are empty."""
    shared = shared_pixels(first, second)
    union = pixel_count(first) + pixel_count(second) - shared
    return shared / union if union else 1.0
