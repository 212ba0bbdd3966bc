"""The head: one small network, shared by all levels, that says everything of a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from meinst.detector.layers import (
    DeformableConv,
    GroupNorm,
    LargeKernelPredictor,
    conv_at,
    conv_to_few,
    convs_of_one,
)
from meinst.ops.points import make_points
from meinst.options import check_range
from meinst.types import HeadOutputs, PerPoint

PRIOR = 0.01  # score of every class before training; keeps the first focal losses small


@dataclass(frozen=True)
class HeadOptions:
    """The head's layers (docs/method.md).

    Attributes:
        num_convs: convs of each of the three towers (class, box, mask).
        num_shared_convs: convs of the tower before all three.
        norm_groups: groups of the group norm after each conv; 0 for no norm.
        deformable: which convs of a tower are deformable: none, the last, or all.
        modulated: whether deformable convs are version 2, with a weight for each tap.
        mask_predictor: codes are predicted by a 3x3 conv, or by large separable kernels.
    """

    num_convs: int = 2
    num_shared_convs: int = 0
    norm_groups: int = 32
    deformable: Literal["none", "last", "all"] = "none"
    modulated: bool = False
    mask_predictor: Literal["conv", "large_kernel"] = "conv"

    def __post_init__(self) -> None:
        """Refuse numbers that make no layers."""
        check_range(self, 0, math.inf, "num_convs", "num_shared_convs", "norm_groups")


class Tower(nn.Sequential):
    """``num_convs`` times 3x3 conv, group norm (if any), ReLU, all of ``channels`` channels."""

    def __init__(self, channels: int, num_convs: int, options: HeadOptions) -> None:
        layers: list[nn.Module] = []
        for index in range(num_convs):
            last = index == num_convs - 1
            if options.deformable == "all" or (options.deformable == "last" and last):
                layers.append(DeformableConv(channels, options.modulated))
            else:
                layers.append(nn.Conv2d(channels, channels, 3, padding=1))
            if options.norm_groups:
                layers.append(GroupNorm(options.norm_groups, channels))
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class Head(nn.Module):
    """Three towers and four predictions (docs/method.md).

    Class logits come from the class tower, box distances and centre-ness from the box tower,
    codes from the mask tower. Box distances are scaled by a learned number for each level and
    rectified, and are in strides.

    Args:
        channels: channels of the pyramid and of the towers.
        num_classes: ``C``.
        num_components: ``K``.
        strides: stride of each level.
        options: its layers.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_components: int,
        strides: Sequence[int],
        options: HeadOptions,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.shared_tower = Tower(channels, options.num_shared_convs, options)
        self.class_tower = Tower(channels, options.num_convs, options)
        self.box_tower = Tower(channels, options.num_convs, options)
        self.mask_tower = Tower(channels, options.num_convs, options)
        self.logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.codes: nn.Module
        if options.mask_predictor == "large_kernel":
            self.codes = LargeKernelPredictor(channels, num_components)
        else:
            self.codes = nn.Conv2d(channels, num_components, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # offsets included, deformable weights not
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Predict from pyramid levels ``(B, channels, H_l, W_l)``, finest first."""
        # One conv for both: it costs as much as one of them.
        box_convs = self.boxes, self.centerness
        weight = torch.cat([conv.weight for conv in box_convs])
        bias = torch.cat([conv.bias for conv in box_convs])  # type: ignore[misc]
        logits, boxes, centerness, mask_features = [], [], [], []
        for level, scale in zip(features, self.scales, strict=True):
            for_class, for_box, for_mask = self._towers(self.shared_tower(level))
            both = conv_to_few(for_box, weight, bias)
            logits.append(
                _per_point(conv_to_few(for_class, self.logits.weight, self.logits.bias))  # type: ignore[arg-type]
            )
            boxes.append(_per_point((both[:, :4] * scale).relu()))
            centerness.append(_per_point(both[:, 4:]))
            mask_features.append(for_mask)
        sizes = [(feature.shape[2], feature.shape[3]) for feature in features]
        points, strides = make_points(sizes, self.strides, features[0].device)
        return HeadOutputs(
            logits=torch.cat(logits, dim=1),
            boxes=torch.cat(boxes, dim=1),
            centerness=torch.cat(centerness, dim=1).squeeze(-1),
            codes=self._codes(mask_features),
            points=points,
            strides=strides,
            level_sizes=tuple(rows * columns for rows, columns in sizes),
        )

    def _towers(self, feature: Tensor) -> list[Tensor]:
        """What the towers of class, box and mask make of a map; their first convs see the same."""
        towers = [list(t) for t in (self.class_tower, self.box_tower, self.mask_tower)]
        if not all(towers):
            return [feature] * len(towers)
        results = convs_of_one(feature, [layers[0] for layers in towers])
        for index, (_, *further) in enumerate(towers):
            for layer in further:
                results[index] = layer(results[index])
        return results

    def _codes(self, mask_features: Sequence[Tensor]) -> PerPoint:
        if isinstance(self.codes, nn.Conv2d):
            return CodesOnDemand(self.codes, mask_features)
        return _everywhere(self.codes, mask_features)


class CodesOnDemand:
    """The codes of the points that are asked for, as ``codes[image, point]``.

    Training asks for those of positives, inference for those of what is kept: a few points in a
    hundred. All would be a tenth of the head's work.

    Args:
        predictor: the conv that says them.
        mask_features: of each level ``(B, channels, H_l, W_l)``, finest first.
    """

    def __init__(self, predictor: nn.Conv2d, mask_features: Sequence[Tensor]) -> None:
        self._predictor = predictor
        self._features = tuple(mask_features)

    def __getitem__(self, where: tuple[Tensor, Tensor], /) -> Tensor:
        """Codes ``(N, K)`` by indices ``(N,)`` of images and of points."""
        image, point = where
        order, codes, start = [], [], 0
        for feature in self._features:
            height, width = feature.shape[2:]
            (here,) = ((point >= start) & (point < start + height * width)).nonzero(as_tuple=True)
            place = point[here] - start
            order.append(here)
            codes.append(
                conv_at(self._predictor, feature, image[here], place // width, place % width)
            )
            start += height * width
        if sum(map(len, order)) != len(point):
            raise IndexError(f"points must be 0 to {start - 1}.")
        return torch.cat(codes)[torch.cat(order).argsort()]

    def everywhere(self) -> Tensor:
        """Those of all points: ``(B, P, K)``."""
        return _everywhere(self._predictor, self._features)


def _everywhere(predictor: nn.Module, features: Sequence[Tensor]) -> Tensor:
    return torch.cat([_per_point(predictor(feature)) for feature in features], dim=1)


def _per_point(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H_l * W_l, channels)
