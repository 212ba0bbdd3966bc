"""The alphabet of shapes: what travels between the parts of the project.

Letters: ``B`` images, ``P`` points (feature-map locations of all levels, finest level
first, row by row), ``G`` ground-truth instances, ``N`` detections, ``C`` classes,
``K`` mask coefficients, ``S`` mask side, ``D = S * S``, ``E`` channels of sight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Target:
    """The instances of one training image, in the pixels of the image that the network sees.

    Attributes:
        boxes: ``(G, 4)`` float32, ``x1 y1 x2 y2``.
        labels: ``(G,)`` int64, indices into the class names.
        masks: ``(G, S, S)`` uint8 of 0 and 1, each mask cropped by its own box.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor


class PerPoint(Protocol):
    """A tensor ``(B, P, ...)``, or what can tell its rows where it is asked for them."""

    def __getitem__(self, where: tuple[Tensor, Tensor], /) -> Tensor:
        """Rows of ``N`` points, by indices ``(N,)`` of images and of points: ``(N, ...)``."""
        ...


@dataclass(frozen=True)
class HeadOutputs:
    """What the network says of a batch, levels joined along ``P``.

    Attributes:
        logits: ``(B, P, C)`` class logits.
        boxes: ``(B, P, 4)`` distances left, top, right, bottom, at least 0, in strides.
        centerness: ``(B, P)`` centre-ness logits.
        codes: ``(B, P, K)`` mask codes, told as ``codes[image, point]`` alone: they may be computed
            when they are asked for, with the weights of that moment. Those of a network that ran
            in inference mode are to be asked for without gradients.
        points: ``(P, 2)`` x, y of the points in the padded input's pixels.
        strides: ``(P,)`` stride of each point's level, in pixels.
        level_sizes: number of points of each level; they sum to ``P``.
        sight: ``(B, E, H, W)`` at half the finest stride, for models with sight; else None.
    """

    logits: Tensor
    boxes: Tensor
    centerness: Tensor
    codes: PerPoint
    points: Tensor
    strides: Tensor
    level_sizes: tuple[int, ...]
    sight: Tensor | None = None
