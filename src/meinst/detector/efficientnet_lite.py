"""EfficientNet-Lite0, the backbone of the shipped models.

timm's ``tf_efficientnet_lite0`` with the same layers, names of weights and initialization. timm
itself takes longer to import than a picture takes to predict.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from meinst.detector.layers import DepthwiseConv, SameConv

STEM_CHANNELS = 32
# Each stage: kernel, stride of its first block, expansion, output channels, blocks
# (EfficientNet, arXiv 1905.11946, table 1; Lite has ReLU6 and no squeeze-and-excitation).
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
OUTPUT_STAGES = (0, 1, 2, 4, 6)  # the last stage of each stride: 2, 4, 8, 16, 32


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its head.

    Args:
        levels: which of the five strides 2 to 32 to return, as indices.

    Attributes:
        channels: of each map that is returned.
        strides: of each map that is returned.
        stages: the module that ends each of the five strides.

    Raises:
        ValueError: if a level is not between 0 and 4, or the levels do not ascend.
    """

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or list(levels) != sorted(set(levels) & set(range(len(OUTPUT_STAGES)))):
            raise ValueError(f"levels must be ascending numbers between 0 and 4, got {levels}.")
        self.conv_stem = SameConv(3, STEM_CHANNELS, 3, stride=2, bias=False)
        self.bn1 = NormWithActivation(STEM_CHANNELS, active=True)
        stages, channels = [], STEM_CHANNELS
        for size, stride, expansion, outputs, count in STAGES:
            blocks = [_block(channels, outputs, size, stride, expansion)]
            blocks += [_block(outputs, outputs, size, 1, expansion) for _ in range(1, count)]
            stages.append(nn.Sequential(*blocks))
            channels = outputs
        self.blocks = nn.Sequential(*stages)
        self.outputs = tuple(OUTPUT_STAGES[level] for level in levels)
        self.channels = tuple(STAGES[stage][3] for stage in self.outputs)
        self.strides = tuple(2 ** (level + 1) for level in levels)
        self.stages = tuple(f"blocks.{stage}" for stage in OUTPUT_STAGES)
        self._draw_weights()

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of normalised images ``(B, 3, H, W)``, finest first."""
        feature, features = self.bn1(self.conv_stem(pixels)), []
        for stage, blocks in enumerate(self.blocks):
            feature = blocks(feature)
            if stage in self.outputs:
                features.append(feature)
        return features

    def _draw_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                size = math.prod(module.kernel_size)
                fan_out = size * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))


class NormWithActivation(nn.BatchNorm2d):
    """Batch norm, followed by ReLU6 if ``active``."""

    def __init__(self, channels: int, active: bool) -> None:
        super().__init__(channels, eps=1e-3)
        self.act = nn.ReLU6(inplace=True) if active else nn.Identity()

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape."""
        result: Tensor = self.act(super().forward(feature))
        return result


class DepthwiseBlock(nn.Module):
    """Depthwise conv and 1x1 conv: the first block, which does not expand its channels."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(inputs, size, stride)
        self.bn1 = NormWithActivation(inputs, active=True)
        self.conv_pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = NormWithActivation(outputs, active=False)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, ceil(H / stride), ceil(W / stride))``."""
        result: Tensor = self.bn2(self.conv_pw(self.bn1(self.conv_dw(feature))))
        return result + feature if self.skip else result


class InvertedResidual(nn.Module):
    """1x1 conv that expands the channels, depthwise conv, 1x1 conv (arXiv 1801.04381)."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.conv_pw = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = NormWithActivation(middle, active=True)
        self.conv_dw = _depthwise(middle, size, stride)
        self.bn2 = NormWithActivation(middle, active=True)
        self.conv_pwl = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = NormWithActivation(outputs, active=False)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, ceil(H / stride), ceil(W / stride))``."""
        expanded = self.bn1(self.conv_pw(feature))
        result: Tensor = self.bn3(self.conv_pwl(self.bn2(self.conv_dw(expanded))))
        return result + feature if self.skip else result


def _block(inputs: int, outputs: int, size: int, stride: int, expansion: int) -> nn.Module:
    if expansion == 1:
        return DepthwiseBlock(inputs, outputs, size, stride)
    return InvertedResidual(inputs, outputs, size, stride, expansion)


def _depthwise(channels: int, size: int, stride: int) -> DepthwiseConv:
    padding = size // 2 if stride == 1 else 0
    conv = DepthwiseConv(channels, channels, size, stride, padding, groups=channels, bias=False)
    conv.same = stride > 1
    return conv
