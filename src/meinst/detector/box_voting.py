"""Box voting: candidates that NMS suppresses improve the detection that it keeps.

Several points usually predict the same object, each with a box and a code of its own, and NMS keeps
the best-scoring one. The score-weighted mean of all of them is more accurate than any single one
(box voting, arXiv 1505.01749). For codes the mean is equivalent to averaging the decoded masks,
because linear codecs decode linearly. How well the candidates agree also indicates how good the box
is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meinst.ops.boxes import pairwise_box_iou

# Smallest IoU with the kept box at which a candidate votes on the score, the code and the box;
# tuned on both validation sets (docs/experiments).
_SCORE_IOU, _CODE_IOU, _BOX_IOU = 0.6, 0.7, 0.8
# Weight of one imaginary dissenting vote of IoU 0: few or low-scoring voters prove little.
_PRIOR_WEIGHT = 0.5


@dataclass(frozen=True)
class VotedBoxes:
    """The ``N`` detections kept by NMS, after voting.

    Attributes:
        boxes: ``(N, 4)`` ``x1 y1 x2 y2``.
        codes: ``(N, K)``.
        agreement: ``(N,)`` between 0 and 1, a factor for the score.
    """

    boxes: Tensor
    codes: Tensor
    agreement: Tensor


def vote_boxes(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    keep: Tensor,
    codes_of: Callable[[Tensor], Tensor],
) -> VotedBoxes:
    """Replace kept boxes and codes by the mean over overlapping candidates of the same class.

    Args:
        boxes: ``(M, 4)`` ``x1 y1 x2 y2`` of all candidates.
        scores: ``(M,)`` above 0.
        labels: ``(M,)`` int64.
        keep: ``(N,)`` int64, the candidates that NMS kept.
        codes_of: returns the codes ``(V, K)`` of the candidates with the indices ``(V,)``.
    """
    overlap = pairwise_box_iou(boxes[keep], boxes)  # (N, M)
    own = torch.arange(len(keep), device=keep.device)
    overlap[own, keep] = 1  # a candidate votes for itself, even if its box is empty
    # Few pairs overlap this much; only these, (P,) of them, matter from here on.
    kept, voter = (overlap >= _SCORE_IOU).nonzero(as_tuple=True)
    same = labels[keep[kept]] == labels[voter]
    kept, voter = kept[same], voter[same]
    overlap, weights = overlap[kept, voter], scores[voter]

    def table(values: Tensor, iou: float, columns: Tensor, width: int) -> Tensor:
        """Scatter the values of pairs into ``(N, width)``; its sums are deterministic."""
        near = overlap >= iou
        result = values.new_zeros(len(keep), width)
        result[kept[near], columns[near]] = values[near]
        return result

    # Codes are computed on demand, so each voter's code is requested once.
    (requested,) = voter[overlap >= _CODE_IOU].bincount().nonzero(as_tuple=True)
    column = torch.zeros_like(labels)
    column[requested] = torch.arange(len(requested), device=requested.device)
    everyone = voter, len(boxes)
    agreeing = table(weights * overlap, _SCORE_IOU, *everyone)
    total = table(weights, _SCORE_IOU, *everyone)
    code_weights = table(weights, _CODE_IOU, column[voter], len(requested))
    return VotedBoxes(
        boxes=_weighted_mean(boxes, table(weights, _BOX_IOU, *everyone)),
        codes=_weighted_mean(codes_of(requested), code_weights),
        agreement=agreeing.sum(1) / (total.sum(1) + _PRIOR_WEIGHT),
    )


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Means ``(N, ...)`` of the values ``(V, ...)`` with the weights ``(N, V)``."""
    return weights @ values / weights.sum(1, keepdim=True)
