"""Non-maximum suppression within classes."""

from __future__ import annotations

import torch
from torch import Tensor

from meinst.ops.nms_kernels import suppress

_SHIFTED = 1000  # boxes


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Suppress boxes that overlap a better box of the same class.

    The same as torchvision's, which takes longer to import than a picture takes to predict; it is
    used on other devices than the CPU. Up to 1,000 boxes are separated by class by shifting
    them, which can suppress across classes where coordinates are negative: the recorded detections
    of the published system depend on it.

    Args:
        boxes: ``(N, 4)`` ``x1 y1 x2 y2``.
        scores: ``(N,)``.
        labels: ``(N,)``.
        threshold: boxes of a larger IoU are suppressed.

    Returns:
        Indices of the remaining boxes, best first; the lower index first at equal scores.
    """
    if boxes.device.type != "cpu":
        from torchvision.ops import batched_nms as torchvision_nms

        kept: Tensor = torchvision_nms(boxes, scores, labels, threshold)
        return kept
    if 0 < len(boxes) <= _SHIFTED:
        boxes, labels = boxes + labels[:, None] * (boxes.max() + 1), torch.zeros_like(labels)
    order = scores.argsort(descending=True, stable=True)
    labels, grouped = labels[order].sort(stable=True)
    remains = torch.ones(len(order), dtype=torch.bool)
    in_classes = boxes[order[grouped]].float().contiguous()
    suppress(in_classes.numpy(), labels.numpy(), threshold, remains.numpy())
    return order[grouped[remains].sort().values]
