"""Votes: what the doubles that NMS suppresses say of the box that it keeps.

Several points see each object, and each predicts a box and a code of its own. NMS keeps those of
the best. Their mean, weighted by score, is better than any one of them (box voting, arXiv
1505.01749); of codes it is the mean of what they decode to, as the codec is linear. And how
well they agree tells how good the box is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meinst.ops.boxes import box_iou_of_all

# From which IoU with the kept box a candidate votes on score, code and box (docs/accuracy.md).
_ON_SCORE, _ON_CODE, _ON_BOX = 0.6, 0.7, 0.8
_DOUBT = 0.5  # weight of one more vote, of IoU 0: few or low scores tell little


@dataclass(frozen=True)
class Elected:
    """What became of the ``N`` that NMS kept.

    Attributes:
        boxes: ``(N, 4)`` ``x1 y1 x2 y2``.
        codes: ``(N, K)``.
        agreement: ``(N,)`` above 0 and below 1, to be multiplied with the score.
    """

    boxes: Tensor
    codes: Tensor
    agreement: Tensor


def hold_votes(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    keep: Tensor,
    codes_of: Callable[[Tensor], Tensor],
) -> Elected:
    """Replace what is kept by the mean of its class's candidates that overlap it much.

    Args:
        boxes: ``(M, 4)`` ``x1 y1 x2 y2`` of all candidates.
        scores: ``(M,)`` above 0.
        labels: ``(M,)`` int64.
        keep: ``(N,)`` int64, which of them NMS kept.
        codes_of: codes ``(V, K)`` of the candidates with the indices ``(V,)``.
    """
    overlap = box_iou_of_all(boxes[keep], boxes)  # (N, M)
    own = torch.arange(len(keep), device=keep.device)
    overlap[own, keep] = 1  # each has its own vote, also with an empty box
    # Few of these pairs overlap that much: from here on those alone count, (P,) of each.
    elect, voter = (overlap >= _ON_SCORE).nonzero(as_tuple=True)
    same = labels[keep[elect]] == labels[voter]
    elect, voter = elect[same], voter[same]
    overlap, weights = overlap[elect, voter], scores[voter]

    def table(values: Tensor, least: float, columns: Tensor, width: int) -> Tensor:
        """Values of pairs as ``(N, width)``, whose sums are the same bits on every run."""
        near = overlap >= least
        result = values.new_zeros(len(keep), width)
        result[elect[near], columns[near]] = values[near]
        return result

    # Codes are computed when asked for, so each is asked for once.
    (asked,) = voter[overlap >= _ON_CODE].bincount().nonzero(as_tuple=True)
    column = torch.zeros_like(labels)
    column[asked] = torch.arange(len(asked), device=asked.device)
    every = voter, len(boxes)
    agreed = table(weights * overlap, _ON_SCORE, *every)
    given = table(weights, _ON_SCORE, *every)
    return Elected(
        boxes=_mean(boxes, table(weights, _ON_BOX, *every)),
        codes=_mean(codes_of(asked), table(weights, _ON_CODE, column[voter], len(asked))),
        agreement=agreed.sum(1) / (given.sum(1) + _DOUBT),
    )


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Means ``(N, ...)`` of values ``(V, ...)``, by weights ``(N, V)``."""
    return weights @ values / weights.sum(1, keepdim=True)
