"""Compiled loops of COCO's matching and precision; called through ``diagnosis``."""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled

RECALL_LEVELS = 101


@compiled
def match_greedily(iou: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Match detections to objects as COCO does, best detection first, at several thresholds.

    A detection takes the free object of largest IoU; of equal ones the last. Only a detection
    without such an object takes a crowd region, which stays free.

    Args:
        iou: ``(N, G)`` float64, best detection first; negative where the classes differ.
        crowd: ``(G,)`` bool.
        thresholds: ``(T,)`` float64, smallest IoU of a match.

    Returns:
        ``(T, N)`` int64 indices of objects, -1 for none.
    """
    matches = np.full((len(thresholds), len(iou)), -1)
    for t in range(len(thresholds)):
        least = min(thresholds[t], 1 - 1e-10)
        free = np.ones(len(crowd), dtype=np.bool_)
        for n in range(len(iou)):
            for crowds in range(2):
                best, found = least, -1
                for g in range(len(crowd)):
                    if crowd[g] == (crowds == 1) and free[g] and iou[n, g] >= best:
                        best, found = iou[n, g], g
                if found >= 0:
                    matches[t, n] = found
                    free[found] = crowds == 1
                    break
    return matches


@compiled
def interpolate_precision(
    correct: np.ndarray, starts: np.ndarray, objects: np.ndarray
) -> np.ndarray:
    """COCO's interpolated precision of classes at the recalls 0, 0.01, ..., 1.

    Args:
        correct: ``(M,)`` bool, whether each detection is correct; by class, best first in each.
        starts: ``(C + 1,)`` int64, the first detection of each class, and ``M``.
        objects: ``(C,)`` int64, number of objects to find.

    Returns:
        ``(C, 101)`` float64; 0 at recalls that are not reached, and for classes without objects.
    """
    precision = np.zeros((len(objects), RECALL_LEVELS))
    for c in range(len(objects)):
        first, last = starts[c], starts[c + 1]
        if objects[c] == 0 or first == last:
            continue
        true = np.cumsum(correct[first:last])
        # The best precision from each detection on.
        best = np.empty(last - first)
        highest = 0.0
        for k in range(last - first - 1, -1, -1):
            highest = max(highest, true[k] / (k + 1 + 2.0**-52))
            best[k] = highest
        k = 0
        for level in range(RECALL_LEVELS):
            recall = level * 0.01  # as numpy.linspace computes it
            while k < last - first and true[k] / objects[c] < recall:
                k += 1
            if k == last - first:
                break
            precision[c, level] = best[k]
    return precision
