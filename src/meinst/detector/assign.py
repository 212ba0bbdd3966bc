"""Label assignment: which instance each point predicts in training."""

from __future__ import annotations

import torch
from torch import Tensor

from meinst.ops.boxes import box_areas, boxes_to_distances

BACKGROUND = -1
_MARGIN = 0.01  # in strides; far more than the rounding error of a distance


def assign_points(
    points: Tensor, strides: Tensor, ranges: Tensor, boxes: Tensor, radius: float = 1.5
) -> Tensor:
    """Assign points to instances by FCOS's centre sampling (arXiv 1904.01355).

    A point is positive for a box if it lies strictly inside the square of half-side
    ``radius * stride`` around the box's centre, clipped to the box, and if its largest distance
    to a side of the box is within its level's range. If a point is positive for several boxes, the
    smallest one is chosen, the first on ties.

    Args:
        points: ``(P, 2)`` x, y in the input's pixels.
        strides: ``(P,)`` stride of each point's level.
        ranges: ``(P, 2)`` smallest and largest allowed distance, both included.
        boxes: ``(G, 4)`` ``x1 y1 x2 y2`` in the same pixels; ``G`` may be 0.
        radius: half-side of the centre region, in strides.

    Returns:
        ``gt_index (P,)`` int64: the index of the instance, or -1 for background.
    """
    background = torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device)
    if len(boxes) == 0:
        return background
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    # Find the few pairs of points and centres that are near each other; the exact rule follows.
    around = strides[:, None] * (radius + _MARGIN)  # (P, 1)
    near = (points[:, :1] - centers[:, 0]).abs_() < around  # (P, G)
    near &= (points[:, 1:] - centers[:, 1]).abs_() < around
    point, instance = near.nonzero(as_tuple=True)  # (N,) each, by point, then by instance

    # Keep points inside the centre region whose largest distance is in the level's range.
    xy, box = points[point], boxes[instance]
    half = strides[point, None] * radius
    low = torch.maximum(centers[instance] - half, box[:, :2])
    high = torch.minimum(centers[instance] + half, box[:, 2:])
    inside = ((xy > low) & (xy < high)).all(-1)
    reach = boxes_to_distances(xy, box).amax(-1)
    allowed = ranges[point]
    fits = inside & (reach >= allowed[:, 0]) & (reach <= allowed[:, 1])
    return _smallest_instance(point[fits], instance[fits], boxes, background)


def _smallest_instance(
    point: Tensor, instance: Tensor, boxes: Tensor, background: Tensor
) -> Tensor:
    """For each point the smallest of its instances, the first on ties; else the background."""
    area = box_areas(boxes)[instance]
    smallest = area.new_full((len(background),), torch.inf).scatter_reduce(0, point, area, "amin")
    wins = area == smallest[point]
    point, instance = point[wins], instance[wins]
    first = torch.full_like(background, len(boxes)).scatter_reduce(0, point, instance, "amin")
    return torch.where(first < len(boxes), first, background)
