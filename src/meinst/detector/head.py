"""The head: one small network, shared by all levels, that says everything of every point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from meinst.ops.points import make_points
from meinst.types import HeadOutputs

PRIOR = 0.01  # score of every class before training; keeps the first focal losses small


class Tower(nn.Sequential):
    """``num_convs`` times 3x3 conv, group norm, ReLU, all of ``channels`` channels."""

    def __init__(self, channels: int, num_convs: int, norm_groups: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1),
                nn.GroupNorm(norm_groups, channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class Head(nn.Module):
    """Three towers and four predictions (METHOD 2).

    Class logits come from the class tower, box distances and centre-ness from the box tower,
    codes from the mask tower. Box distances are scaled by a learned number for each level and
    rectified, and are in strides.

    Args:
        channels: channels of the pyramid and of the towers.
        num_classes: ``C``.
        num_components: ``K``.
        num_convs: convs of each tower.
        strides: stride of each level.
        norm_groups: groups of the towers' group norms.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        num_components: int,
        num_convs: int,
        strides: Sequence[int],
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.class_tower = Tower(channels, num_convs, norm_groups)
        self.box_tower = Tower(channels, num_convs, norm_groups)
        self.mask_tower = Tower(channels, num_convs, norm_groups)
        self.logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.boxes = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.codes = nn.Conv2d(channels, num_components, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Predict from pyramid levels ``(B, channels, H_l, W_l)``, finest first."""
        logits, boxes, centerness, codes = [], [], [], []
        for feature, scale in zip(features, self.scales, strict=True):
            box_feature = self.box_tower(feature)
            logits.append(_per_point(self.logits(self.class_tower(feature))))
            boxes.append(_per_point((self.boxes(box_feature) * scale).relu()))
            centerness.append(_per_point(self.centerness(box_feature)))
            codes.append(_per_point(self.codes(self.mask_tower(feature))))
        sizes = [(feature.shape[2], feature.shape[3]) for feature in features]
        points, strides = make_points(sizes, self.strides, features[0].device)
        return HeadOutputs(
            logits=torch.cat(logits, dim=1),
            boxes=torch.cat(boxes, dim=1),
            centerness=torch.cat(centerness, dim=1).squeeze(-1),
            codes=torch.cat(codes, dim=1),
            points=points,
            strides=strides,
            level_sizes=tuple(rows * columns for rows, columns in sizes),
        )


def _per_point(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H_l * W_l, channels)
