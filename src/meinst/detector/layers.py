"""Layers that torch does not have, or not as fast: convs and group norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from meinst.ops.deform_conv import deform_conv2d
from meinst.ops.depthwise import depthwise_conv2d
from meinst.ops.winograd import transform_weight, winograd_convs2d
from meinst.ops.winograd_kernels import TILE


class DeformableConv(nn.Module):
    """3x3 deformable conv without bias whose offsets a plain 3x3 conv predicts.

    Version 1 (arXiv 1703.06211) has two offsets for each of the nine taps; version 2 (arXiv
    1811.11168) nine weights through a sigmoid as well, from 27 channels: offsets, then weights.

    Args:
        channels: in and out.
        modulated: whether it is version 2.
    """

    def __init__(self, channels: int, modulated: bool) -> None:
        super().__init__()
        self.modulated = modulated
        self.offset = nn.Conv2d(channels, 27 if modulated else 18, 3, padding=1)
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to the same shape."""
        offset, mask = self.offset(feature), None
        if self.modulated:
            offset, mask = offset[:, :18], offset[:, 18:].sigmoid()
        # Neither kernel knows bfloat16.
        with torch.autocast(feature.device.type, enabled=False):
            mask = None if mask is None else mask.float()
            return _deform_conv(feature.float(), offset.float(), self.weight, mask)


def _deform_conv(feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """Ours on the CPU; torchvision's elsewhere, and where the network is recorded for an export.

    OpenVINO, ONNX and ``torch.compile`` know torchvision's operator, and no other.
    """
    if _recorded() or feature.device.type != "cpu":
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

        result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=1, mask=mask)
        return result
    return deform_conv2d(feature, offset, weight, mask)


def _recorded() -> bool:
    """Whether somebody records what the network does, instead of having it done."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_compiling()


class LargeKernelPredictor(nn.Module):
    """Global convolutional network's predictor (arXiv 1703.02719): two separable large kernels.

    A ``k x 1`` then a ``1 x k`` conv, and the same in the other order, summed.

    Args:
        channels: in.
        outputs: out, and between the two convs.
        kernel: ``k``, odd.
    """

    def __init__(self, channels: int, outputs: int, kernel: int = 9) -> None:
        super().__init__()
        half = kernel // 2
        self.tall_first = nn.Sequential(
            nn.Conv2d(channels, outputs, (kernel, 1), padding=(half, 0)),
            nn.Conv2d(outputs, outputs, (1, kernel), padding=(0, half)),
        )
        self.wide_first = nn.Sequential(
            nn.Conv2d(channels, outputs, (1, kernel), padding=(0, half)),
            nn.Conv2d(outputs, outputs, (kernel, 1), padding=(half, 0)),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, channels, H, W)`` to ``(B, outputs, H, W)``."""
        result: Tensor = self.tall_first(feature) + self.wide_first(feature)
        return result


class GroupNorm(nn.GroupNorm):
    """torch's, with a faster gradient in bfloat16.

    That of channels-last maps takes three times as long on the CPU as that of maps one after the
    other, with copying there and back.
    """

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape and order in memory."""
        here = feature.device.type, feature.dtype
        if not torch.is_grad_enabled() or here != ("cpu", torch.bfloat16):
            return super().forward(feature)
        result: Tensor = super().forward(feature.contiguous())
        return result.contiguous(memory_format=torch.channels_last)


class FloatConv(nn.Conv2d):
    """A conv that is computed in float32 on the CPU under autocast, too.

    oneDNN's bfloat16 gradient of the weights of a 3x3 conv of stride 2 whose input is one pixel
    wide (torch 2.14.1) is what was in memory before: now and then NaN, or large enough that
    clipping leaves nothing of all others.
    """

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, H', W')``."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(feature.to(self.weight.dtype))


class DepthwiseConv(nn.Conv2d):
    """A conv of each channel by itself, with a faster gradient in float32 on the CPU.

    :func:`use_depthwise_convs` makes them.
    """

    same = False  # padding as TensorFlow's

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H', W')``."""
        return depthwise_conv2d(feature, self.weight, self.bias, self.stride[0], self.same)


def use_depthwise_convs(network: nn.Module) -> None:
    """Turn every conv of a network that can be a :class:`DepthwiseConv` into one, as it stands."""
    from timm.layers.conv2d_same import Conv2dSame

    for module in network.modules():
        same = type(module) is Conv2dSame
        if not isinstance(module, nn.Conv2d) or not (same or type(module) is nn.Conv2d):
            continue
        size, stride = module.kernel_size[0], module.stride[0]
        if (
            module.groups == module.in_channels == module.out_channels > 1
            and size >= 3
            and size % 2 == 1
            and module.kernel_size == (size, size)
            and module.stride == (stride, stride)
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and (stride <= 2 if same else module.padding == (size // 2, size // 2))
        ):
            module.__class__ = DepthwiseConv
            assert isinstance(module, DepthwiseConv)
            module.same = same


def conv_at(conv: nn.Conv2d, feature: Tensor, image: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """What a 3x3 conv with padding 1 says at some places alone, in the precision of its weights.

    Also under autocast: what it says of few places costs little.

    Args:
        conv: plain; only its weight and bias are taken.
        feature: ``(B, C, H, W)``, fastest channels-last.
        image: ``(N,)`` int64, which of the ``B`` each place is in.
        row: ``(N,)`` int64, 0 to ``H - 1``.
        column: ``(N,)`` int64, 0 to ``W - 1``.

    Returns:
        ``(N, O)``.
    """
    _, channels, height, width = feature.shape
    step = torch.arange(-1, 2, device=feature.device)
    rows, columns = row[:, None, None] + step[:, None], column[:, None, None] + step  # (N, 3, 3)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    taken = (image[:, None, None] * height + rows) * width + columns
    vectors = feature.permute(0, 2, 3, 1).reshape(-1, channels)  # a view where channels-last
    patches = vectors.index_select(0, taken.flatten()).view(*taken.shape, channels)
    patches[(~inside).nonzero(as_tuple=True)] = 0  # few, so not as a mask over all
    patches = patches.flatten(1).to(conv.weight.dtype)  # (N, 9 C)
    with torch.autocast(feature.device.type, enabled=False):
        return nn.functional.linear(patches, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _float32_on_cpu(*tensors: Tensor) -> bool:
    """Whether convs without gradients, neither recorded nor in mixed precision, may be ours."""
    return not (
        torch.is_grad_enabled()
        or _recorded()
        or torch.is_autocast_enabled("cpu")
        or any((t.device.type, t.dtype) != ("cpu", torch.float32) for t in tensors)
    )


_FEW_OUTPUTS = 5  # up to which a product and nine sums are faster than torch's conv


def conv_to_few(feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 conv with padding 1 that is faster where it says few numbers, without gradients.

    oneDNN computes 16 channels where fewer are asked for. One product says what every pixel adds
    to its nine neighbours; shifted, they are summed up.

    Args:
        feature: ``(B, C, H, W)``, fastest channels-last.
        weight: ``(O, C, 3, 3)``.
        bias: ``(O,)``.

    Returns:
        ``(B, O, H, W)``.
    """
    if not _float32_on_cpu(feature, weight) or len(weight) > _FEW_OUTPUTS:
        return nn.functional.conv2d(feature, weight, bias, padding=1)
    outputs, channels = weight.shape[:2]
    batch, _, height, width = feature.shape
    taps = weight.permute(2, 3, 0, 1).reshape(-1, channels)  # (9 O, C)
    added = (taps @ feature.flatten(2)).view(batch, 3, 3, outputs, height, width)
    result = feature.new_zeros(batch, outputs, height + 2, width + 2)
    for i in range(3):
        for j in range(3):
            result[..., 2 - i : 2 - i + height, 2 - j : 2 - j + width] += added[:, i, j]
    return result[..., 1:-1, 1:-1] + bias[:, None, None]


# Winograd's conv pays from as many channels, in and out, and as many tiles of 4 x 4 pixels.
_FAST_CHANNELS, _FAST_TILES = 48, 16
_FAST: dict[str, Any] = {
    "kernel_size": (3, 3),
    "stride": (1, 1),
    "padding": (1, 1),
    "dilation": (1, 1),
    "groups": 1,
    "padding_mode": "zeros",
}


class FastConv(nn.Conv2d):
    """A conv that is up to twice as fast where no gradients are wanted, on the CPU, in float32.

    :func:`use_fast_convs` makes them. Everywhere else (training, other devices, mixed precision,
    exports) it is torch's.
    """

    # The weights as they were, and transformed. No buffer: neither saved nor moved.
    _known: tuple[Tensor, Tensor] | None = None

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, H, W)``."""
        if not self.fast_on(feature):
            return super().forward(feature)
        return winograd_convs2d(feature, [self.transformed()], [self.bias])[0]

    def fast_on(self, feature: Tensor) -> bool:
        """Whether Winograd's conv can be taken for a map, and pays."""
        if not _float32_on_cpu(feature, self.weight):
            return False
        batch, _, height, width = feature.shape
        return batch * -(-height // TILE) * -(-width // TILE) >= _FAST_TILES

    def transformed(self) -> Tensor:
        """The weights as :func:`winograd_convs2d` takes them, which are kept."""
        known = self._known
        # Compared, not noted when they change: averages are written past autograd's counters.
        if known is None or not torch.equal(known[0], self.weight):
            known = self.weight.detach().clone(), transform_weight(self.weight)
            self._known = known
        return known[1]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files do without what can be made anew."""
        return {**self.__dict__, "_known": None}


def use_fast_convs(network: nn.Module) -> None:
    """Turn every conv of a network that can be a :class:`FastConv` into one, as it stands."""
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and min(module.in_channels, module.out_channels) >= _FAST_CHANNELS
            and all(getattr(module, name) == value for name, value in _FAST.items())
        ):
            module.__class__ = FastConv


def convs_of_one(feature: Tensor, convs: Sequence[nn.Module]) -> list[Tensor]:
    """What each of some convs says of one map ``(B, C, H, W)``; faster than one after the other.

    Fast convs share what they make of the map.
    """
    fast = [conv for conv in convs if isinstance(conv, FastConv) and conv.fast_on(feature)]
    if not fast or len(fast) < len(convs):
        return [conv(feature) for conv in convs]
    return winograd_convs2d(
        feature, [conv.transformed() for conv in fast], [conv.bias for conv in fast]
    )
