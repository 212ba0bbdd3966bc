"""Compiled loop of non-maximum suppression."""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled


@compiled
def suppress(boxes: np.ndarray, labels: np.ndarray, threshold: float, keep: np.ndarray) -> None:
    """Clear ``keep`` for boxes that overlap an earlier, kept box of the same class.

    Args:
        boxes: ``(N, 4)`` float32 ``x1 y1 x2 y2``, sorted by class, best first in each.
        labels: ``(N,)`` int64, ascending.
        threshold: boxes of a larger IoU are suppressed.
        keep: ``(N,)`` bool, all True; changed in place.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    zero = np.float32(0)
    for i in range(len(boxes)):
        if not keep[i]:
            continue
        x1, y1, x2, y2 = boxes[i]
        for j in range(i + 1, len(boxes)):
            if labels[j] != labels[i]:
                break
            width = max(zero, min(x2, boxes[j, 2]) - max(x1, boxes[j, 0]))
            height = max(zero, min(y2, boxes[j, 3]) - max(y1, boxes[j, 1]))
            shared = width * height
            union = areas[i] + areas[j] - shared
            if union > 0 and shared / union > threshold:
                keep[j] = False
