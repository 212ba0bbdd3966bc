"""The feature pyramid: torchvision's, with the levels that a detector asks for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from meinst.detector.layers import FloatConv, GroupNorm


class FPN(nn.Module):
    """Feature pyramid (arXiv 1612.03144) of the published detector (docs/method.md).

    Lateral 1x1, nearest up-sampling and sum, output 3x3; two further levels, if asked for, are
    stride-2 convs of the coarsest output and of the rectified first of them.

    Args:
        in_channels: channels of the backbone's maps, finest first.
        channels: channels of every output.
        num_levels: ``len(in_channels)`` or two more.
        norm_groups: groups of the group norm after each conv, the two further levels' excepted;
            0 for no norm.

    Raises:
        ValueError: for another number of levels.
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
                f"a pyramid on {len(in_channels)} backbone levels has {len(in_channels)} or "
                f"{len(in_channels) + 2} levels, not {num_levels}: give as many strides."
            )
        further = LastLevelP6P7(channels, channels) if extra else None
        if further is not None:
            further.p6.__class__ = further.p7.__class__ = FloatConv
        self.net = FeaturePyramidNetwork(
            list(in_channels),
            channels,
            extra_blocks=further,
            norm_layer=(lambda c: GroupNorm(norm_groups, c)) if norm_groups else None,
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Pyramid levels ``(B, channels, H / stride, W / stride)``, finest first."""
        named = OrderedDict((str(i), feature) for i, feature in enumerate(features))
        return list(self.net(named).values())
