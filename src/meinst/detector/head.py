"""The head: one small network, shared by all levels, that predicts everything about a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from meinst.detector.layers import DeformableConv, GroupNorm, conv2d_shared_input
from meinst.ops.conv2d import conv2d_at_points, conv2d_few_outputs
from meinst.ops.points import make_points
from meinst.options import check_range
from meinst.types import HeadOutputs

PRIOR = 0.01  # initial score of every class, which keeps the first focal losses small


@dataclass(frozen=True)
class HeadOptions:
    """The layers of the head.

    Attributes:
        num_convs: convs in each of the three towers (class, box, mask).
        num_shared_convs: convs in the tower before all three.
        norm_groups: groups of the group norm after each conv; 0 for no norm.
        deformable: which convs of a tower are deformable.
        modulated: whether deformable convs are version 2, with a weight for each tap.
    """

    num_convs: int = 2
    num_shared_convs: int = 0
    norm_groups: int = 32
    deformable: Literal["none", "last", "all"] = "none"
    modulated: bool = False

    def __post_init__(self) -> None:
        """Reject negative and absurd numbers."""
        check_range(self, 0, 64, "num_convs", "num_shared_convs")
        check_range(self, 0, 4096, "norm_groups")


class Tower(nn.Sequential):
    """``num_convs`` times a 3x3 conv, a group norm (if any) and a ReLU, all of ``channels``."""

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
    """Three towers and four predictions (FCOS, arXiv 1904.01355; MEInst, arXiv 2003.11712).

    Class logits come from the class tower, box distances and centre-ness from the box tower, codes
    from the mask tower. Box distances are multiplied by a learned scale for each level, rectified,
    and in units of strides.

    Args:
        channels: channels of the pyramid and of the towers.
        num_classes: ``C``.
        num_components: ``K``.
        strides: stride of each level.
        options: the layers.
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
        self.codes = nn.Conv2d(channels, num_components, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # including offsets, not deformable weights
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.constant_(self.logits.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """Predict from pyramid levels ``(B, channels, H_l, W_l)``, finest first."""
        # Boxes and centre-ness share one conv, which costs as much as either of them.
        box_convs = self.boxes, self.centerness
        weight = torch.cat([conv.weight for conv in box_convs])
        bias = torch.cat([conv.bias for conv in box_convs])  # type: ignore[misc]
        logits, boxes, centerness, mask_features = [], [], [], []
        for level, scale in zip(features, self.scales, strict=True):
            class_feature, box_feature, mask_feature = self._towers(self.shared_tower(level))
            both = conv2d_few_outputs(box_feature, weight, bias)
            class_logits = conv2d_few_outputs(class_feature, self.logits.weight, self.logits.bias)  # type: ignore[arg-type]
            logits.append(_per_point(class_logits))
            boxes.append(_per_point((both[:, :4] * scale).relu()))
            centerness.append(_per_point(both[:, 4:]))
            mask_features.append(mask_feature)
        sizes = [(feature.shape[2], feature.shape[3]) for feature in features]
        points, strides = make_points(sizes, self.strides, features[0].device)
        return HeadOutputs(
            logits=torch.cat(logits, dim=1),
            boxes=torch.cat(boxes, dim=1),
            centerness=torch.cat(centerness, dim=1).squeeze(-1),
            codes=CodesOnDemand(self.codes, mask_features),
            points=points,
            strides=strides,
            level_sizes=tuple(rows * columns for rows, columns in sizes),
        )

    def _towers(self, feature: Tensor) -> list[Tensor]:
        """Outputs of the class, box and mask towers, whose first convs share their input."""
        towers = [list(t) for t in (self.class_tower, self.box_tower, self.mask_tower)]
        if not all(towers):
            return [feature] * len(towers)
        results = conv2d_shared_input(feature, [layers[0] for layers in towers])
        for index, (_, *further) in enumerate(towers):
            for layer in further:
                results[index] = layer(results[index])
        return results


class CodesOnDemand:
    """Codes of requested points only, as ``codes[image, point]``.

    Training needs the codes of positive points and inference those of kept detections: a few
    percent of all points, whose codes would be a tenth of the head's work. The weights are copied,
    so that later changes of the network do not change the codes.

    Args:
        conv: the 3x3 conv that predicts codes.
        mask_features: ``(B, channels, H_l, W_l)`` of each level, finest first.
    """

    def __init__(self, conv: nn.Conv2d, mask_features: Sequence[Tensor]) -> None:
        self._weight = conv.weight.clone()
        self._bias = None if conv.bias is None else conv.bias.clone()
        self._features = tuple(mask_features)

    def __getitem__(self, where: tuple[Tensor, Tensor], /) -> Tensor:
        """Codes ``(N, K)`` by indices ``(N,)`` of images and of points.

        Raises:
            IndexError: if a point does not exist.
        """
        image, point = where
        order, codes, start = [], [], 0
        for feature in self._features:
            height, width = feature.shape[2:]
            (here,) = ((point >= start) & (point < start + height * width)).nonzero(as_tuple=True)
            row, column = (point[here] - start) // width, (point[here] - start) % width
            order.append(here)
            codes.append(
                conv2d_at_points(feature, self._weight, self._bias, image[here], row, column)
            )
            start += height * width
        if sum(map(len, order)) != len(point):
            raise IndexError(f"points must be between 0 and {start - 1}.")
        return torch.cat(codes)[torch.cat(order).argsort()]

    def dense(self) -> Tensor:
        """Codes of all points: ``(B, P, K)``."""
        maps = [
            nn.functional.conv2d(feature, self._weight, self._bias, padding=1)
            for feature in self._features
        ]
        return torch.cat([_per_point(each) for each in maps], dim=1)


def _per_point(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H_l * W_l, channels)
