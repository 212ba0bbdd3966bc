"""The feature pyramid: torchvision's, with the extra levels of the published detector."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from meinst.detector.layers import FloatConv, GroupNorm, rebuild_conv


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
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        extra = num_levels - len(in_channels)
        if extra not in (0, 2):
            raise ValueError(
                f"a pyramid on {len(in_channels)} backbone levels must have {len(in_channels)} or "
                f"{len(in_channels) + 2} levels, got {num_levels} strides."
            )
        extra_blocks = LastLevelP6P7(channels, channels) if extra else None
        if extra_blocks is not None:
            extra_blocks.p6 = rebuild_conv(extra_blocks.p6, FloatConv)
            extra_blocks.p7 = rebuild_conv(extra_blocks.p7, FloatConv)
        self.net = FeaturePyramidNetwork(
            list(in_channels),
            channels,
            extra_blocks=extra_blocks,
            norm_layer=(lambda c: GroupNorm(norm_groups, c)) if norm_groups else None,
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the pyramid levels ``(B, channels, H / stride, W / stride)``, finest first."""
        named = OrderedDict((str(i), feature) for i, feature in enumerate(features))
        return list(self.net(named).values())
