"""The feature pyramid, with the extra levels of the published detector.

Layers and names of weights are those of torchvision's ``FeaturePyramidNetwork``; torchvision itself
takes longer to import than a picture takes to predict.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from meinst.detector.layers import FloatConv, GroupNorm


class FPN(nn.Module):
    """Feature pyramid network (arXiv 1612.03144).

    Lateral 1x1 convs, nearest upsampling and addition, 3x3 output convs. Two extra levels are
    optional: a stride-2 conv of the coarsest output, and one of the first extra level after ReLU.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        channels: channels of every output.
        num_levels: ``len(in_channels)``, or two more.
        norm_groups: groups of the group norm after each conv except those of the extra levels; 0
            for no norm.

    Raises:
        ValueError: if the number of levels is neither.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_levels: int,
        norm_groups: int = 0,
    ) -> None:
        super().__init__()
        extra = num_levels - len(in_channels)
        if extra not in (0, 2):
            raise ValueError(
                f"a pyramid on {len(in_channels)} backbone levels must have {len(in_channels)} or "
                f"{len(in_channels) + 2} levels, got {num_levels} strides."
            )
        self.net = _Convs(in_channels, channels, norm_groups, extra > 0)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid levels ``(B, channels, H / stride, W / stride)``, finest first."""
        lateral = [conv(f) for conv, f in zip(self.net.inner_blocks, features, strict=True)]
        merged = lateral[-1:]
        for finer in reversed(lateral[:-1]):
            merged.append(finer + F.interpolate(merged[-1], size=finer.shape[-2:], mode="nearest"))
        merged.reverse()
        levels = [conv(f) for conv, f in zip(self.net.layer_blocks, merged, strict=True)]
        if self.net.extra_blocks is not None:
            levels.append(self.net.extra_blocks["p6"](levels[-1]))
            levels.append(self.net.extra_blocks["p7"](F.relu(levels[-1])))
        return levels


class _Convs(nn.Module):
    """The convs of the pyramid, under the names that model files have for them."""

    def __init__(
        self, in_channels: Sequence[int], channels: int, norm_groups: int, extra: bool
    ) -> None:
        super().__init__()

        def conv(inputs: int, size: int) -> nn.Module:
            conv = nn.Conv2d(inputs, channels, size, padding=size // 2, bias=not norm_groups)
            norms = [GroupNorm(norm_groups, channels)] if norm_groups else []
            return nn.Sequential(conv, *norms)

        extra_blocks = None
        if extra:
            extra_blocks = nn.ModuleDict(
                {name: FloatConv(channels, channels, 3, 2, 1) for name in ("p6", "p7")}
            )
            _draw_weights(extra_blocks)
        self.inner_blocks, self.layer_blocks = nn.ModuleList(), nn.ModuleList()
        for inputs in in_channels:
            self.inner_blocks.append(conv(inputs, 1))
            self.layer_blocks.append(conv(channels, 3))
        _draw_weights(self)
        self.extra_blocks = extra_blocks


def _draw_weights(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
