"""The shapes and letters used everywhere, and the data that travels between packages.

Letters: ``B`` images, ``P`` points (feature-map locations of all levels, finest level first, row
by row), ``G`` ground-truth instances, ``N`` detections, ``C`` classes, ``K`` mask coefficients,
``S`` mask side, ``D = S * S``, ``E`` channels of the mask-refinement features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The instances of one training image, in pixels of the network's input.

    Attributes:
        boxes: ``(G, 4)`` float32, ``x1 y1 x2 y2``.
        labels: ``(G,)`` int64, indices into the class names.
        masks: ``(G, S, S)`` uint8 of 0 and 1, each mask cropped by its own box.
        has_mask: ``(G,)`` bool; the masks of the others are unknown. None if all have one.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor
    has_mask: Tensor | None = None


class PerPoint(Protocol):
    """A tensor ``(B, P, ...)``, or an object that computes the requested rows of one."""

    def __getitem__(self, where: tuple[Tensor, Tensor], /) -> Tensor:
        """Rows ``(N, ...)`` of ``N`` points, by indices ``(N,)`` of images and of points."""
        ...


@dataclass(frozen=True)
class HeadOutputs:
    """The network's predictions for a batch, levels joined along ``P``.

    Attributes:
        logits: ``(B, P, C)`` class logits.
        boxes: ``(B, P, 4)`` distances left, top, right, bottom, at least 0, in strides.
        centerness: ``(B, P)`` centre-ness logits.
        codes: ``(B, P, K)`` mask codes, read as ``codes[image, point]`` because they may be
            computed on demand. After a forward pass in inference mode, read them without
            gradients.
        points: ``(P, 2)`` x, y of the points in pixels of the padded input.
        strides: ``(P,)`` stride of each point's level, in pixels.
        level_sizes: number of points of each level; they sum to ``P``.
        refinement: ``(B, E, H, W)`` features for mask refinement at half the finest stride; None
            for models without it.
    """

    logits: Tensor
    boxes: Tensor
    centerness: Tensor
    codes: PerPoint
    points: Tensor
    strides: Tensor
    level_sizes: tuple[int, ...]
    refinement: Tensor | None = None
