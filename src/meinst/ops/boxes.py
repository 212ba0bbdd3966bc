"""Boxes as corners and as distances from a point."""

from __future__ import annotations

import torch
from torch import Tensor


def distances_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Convert distances to corners.

    Args:
        points: ``(..., 2)`` x, y.
        distances: ``(..., 4)`` left, top, right, bottom, in the unit of the points.

    Returns:
        ``(..., 4)`` boxes ``x1 y1 x2 y2``; not clipped.
    """
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def boxes_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Convert corners to distances; the inverse of :func:`distances_to_boxes`.

    Args:
        points: ``(..., 2)`` x, y.
        boxes: ``(..., 4)`` ``x1 y1 x2 y2``.

    Returns:
        ``(..., 4)`` left, top, right, bottom; negative where the point is outside.
    """
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def box_areas(boxes: Tensor) -> Tensor:
    """Areas ``(...)`` of boxes ``(..., 4)`` given by corners."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip boxes ``(..., 4)`` to an image of ``size`` (height, width)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def centerness(distances: Tensor) -> Tensor:
    """Centre-ness of FCOS: 1 in the middle of the box, 0 on its border.

    ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))`` (FCOS, equation 3).

    Args:
        distances: ``(..., 4)`` positive distances left, top, right, bottom.

    Returns:
        ``(...)`` in 0..1.
    """
    left_right, top_bottom = distances[..., 0::2], distances[..., 1::2]
    horizontal = left_right.amin(-1) / left_right.amax(-1)
    vertical = top_bottom.amin(-1) / top_bottom.amax(-1)
    return (horizontal * vertical).sqrt()


def elementwise_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU ``(...)`` of pairs of boxes ``(..., 4)``; NaN for two boxes of no area."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    high = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    return shared / (box_areas(boxes1) + box_areas(boxes2) - shared)


def pairwise_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU ``(N, M)`` of all pairs of boxes ``(N, 4)`` and ``(M, 4)``; NaN if both have no area.

    Works on one coordinate at a time, which takes an eighth of the time of torchvision's
    ``box_iou`` for 300 and 1,500 boxes.
    """
    x1, y1, x2, y2 = boxes1.T.contiguous()[..., None]  # each (N, 1)
    u1, v1, u2, v2 = boxes2.T.contiguous()  # each (M,)
    width = torch.minimum(x2, u2).sub_(torch.maximum(x1, u1)).clamp_(min=0)
    height = torch.minimum(y2, v2).sub_(torch.maximum(y1, v1)).clamp_(min=0)
    shared = width.mul_(height)
    return shared / (box_areas(boxes1)[:, None] + box_areas(boxes2)).sub_(shared)


def giou_of_distances(predicted: Tensor, target: Tensor, smooth: float = 0.0) -> Tensor:
    """Generalised IoU of two boxes given by distances from the same point.

    With intersection ``I``, union ``U`` and smallest enclosing area ``A``:
    ``(I + smooth) / (U + smooth) - (A - U) / A`` (GIoU, arXiv 1902.09630, algorithm 1).

    Args:
        predicted: ``(..., 4)`` distances, at least 0.
        target: ``(..., 4)`` distances, positive.
        smooth: added to both areas of the first quotient; the published MEInst uses 1.

    Returns:
        ``(...)`` in -1..1.
    """
    size_p = predicted[..., :2] + predicted[..., 2:]  # (..., 2) width, height
    size_t = target[..., :2] + target[..., 2:]
    inner = torch.minimum(predicted, target)
    outer = torch.maximum(predicted, target)
    intersection = (inner[..., :2] + inner[..., 2:]).prod(-1)
    enclosing = (outer[..., :2] + outer[..., 2:]).prod(-1)
    union = size_p.prod(-1) + size_t.prod(-1) - intersection
    return (intersection + smooth) / (union + smooth) - (enclosing - union) / enclosing
