"""Which instance each point has to predict."""

from __future__ import annotations

import torch
from torch import Tensor

from meinst.ops.boxes import box_areas, boxes_to_distances

BACKGROUND = -1


def assign_points(
    points: Tensor, strides: Tensor, ranges: Tensor, boxes: Tensor, radius: float = 1.5
) -> Tensor:
    """Assign points to instances by FCOS's centre sampling (docs/method.md).

    A point is positive for a box if it lies strictly inside the square of half-side
    ``radius * stride`` around the box's centre, cut to the box, and if the largest of its
    distances to the box's sides is within its level's range. Of several boxes the one of
    smallest area wins, the first on ties.

    Args:
        points: ``(P, 2)`` x, y in the input's pixels.
        strides: ``(P,)`` stride of each point's level.
        ranges: ``(P, 2)`` smallest and largest allowed distance, both included.
        boxes: ``(G, 4)`` ``x1 y1 x2 y2`` in the same pixels; ``G`` may be 0.
        radius: half-side of the centre region, in strides.

    Returns:
        ``gt_index (P,)`` int64: the index of the instance, or -1 for background. Labels, box
        targets and codes follow by indexing with it.
    """
    if len(boxes) == 0:
        return torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (strides * radius)[:, None, None]  # (P, 1, 1)
    low = torch.maximum(centers[None] - half, boxes[None, :, :2])  # (P, G, 2)
    high = torch.minimum(centers[None] + half, boxes[None, :, 2:])
    here = points[:, None]
    inside = ((here > low) & (here < high)).all(-1)  # (P, G)
    reach = boxes_to_distances(here, boxes[None]).amax(-1)  # (P, G)
    fits = (reach >= ranges[:, None, 0]) & (reach <= ranges[:, None, 1])
    areas = box_areas(boxes)[None].expand(len(points), -1)
    areas = areas.masked_fill(~(inside & fits), torch.inf)
    smallest, gt_index = areas.min(dim=1)
    return gt_index.masked_fill(smallest == torch.inf, BACKGROUND)
