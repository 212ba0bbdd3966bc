"""Layers that torch does not have, or has only in a slower form: convs and group norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from meinst.ops.conv2d import is_tracing, plain_float32
from meinst.ops.deform_conv import deform_conv2d
from meinst.ops.depthwise import depthwise_conv2d
from meinst.ops.winograd import transform_weight, winograd_convs2d
from meinst.ops.winograd_kernels import TILE

Conv = TypeVar("Conv", bound=nn.Conv2d)


class DeformableConv(nn.Module):
    """3x3 deformable conv without bias; a plain 3x3 conv predicts its offsets.

    Version 1 (arXiv 1703.06211) has two offsets for each of the nine taps. Version 2 (arXiv
    1811.11168) also has nine modulation weights, predicted as logits: 27 channels, offsets first.

    Args:
        channels: input and output channels.
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
        # Neither kernel supports bfloat16.
        with torch.autocast(feature.device.type, enabled=False):
            mask = None if mask is None else mask.float()
            return _deform_conv2d(feature.float(), offset.float(), self.weight, mask)


def _deform_conv2d(feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
    """Our kernel on the CPU; torchvision's elsewhere and when tracing.

    OpenVINO, ONNX and ``torch.compile`` support torchvision's operator only.
    """
    if is_tracing() or feature.device.type != "cpu":
        from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

        result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=1, mask=mask)
        return result
    return deform_conv2d(feature, offset, weight, mask)


class GroupNorm(nn.GroupNorm):
    """torch's group norm with a faster gradient in bfloat16.

    On the CPU torch's gradient takes three times as long for channels-last maps as for contiguous
    ones, even with the copies there and back.
    """

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to the same shape and memory layout."""
        kind = feature.device.type, feature.dtype
        if not torch.is_grad_enabled() or kind != ("cpu", torch.bfloat16):
            return super().forward(feature)
        result: Tensor = super().forward(feature.contiguous())
        return result.contiguous(memory_format=torch.channels_last)


class FloatConv(nn.Conv2d):
    """A conv that always runs in float32 on the CPU, even under autocast.

    In bfloat16 oneDNN leaves the weight gradient of a 3x3 conv of stride 2 partly uninitialised if
    the input is one pixel wide (torch 2.14.1): sometimes NaN, sometimes so large that gradient
    clipping leaves nothing of the other gradients.
    """

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, H', W')``."""
        with torch.autocast("cpu", enabled=False):
            return super().forward(feature.to(self.weight.dtype))


class SameConv(nn.Conv2d):
    """A conv that pads as TensorFlow's ``same``: an odd row or column goes below or right."""

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, ceil(H / stride), ceil(W / stride))``."""
        sides = zip(feature.shape[2:], self.kernel_size, self.stride, strict=True)
        tall, wide = (max((-(-n // step) - 1) * step + size - n, 0) for n, size, step in sides)
        return super().forward(
            F.pad(feature, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2))
        )


class DepthwiseConv(nn.Conv2d):
    """A depthwise conv with a faster gradient in float32 on the CPU.

    Made by :func:`use_depthwise_convs`.
    """

    same = False  # whether padding is TensorFlow's "SAME"

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, C, H', W')``."""
        return depthwise_conv2d(feature, self.weight, self.bias, self.stride[0], self.same)


class FastConv(nn.Conv2d):
    """A 3x3 conv that uses Winograd's algorithm on the CPU when no gradients are needed.

    Up to twice as fast as torch's conv, in float32 only. In all other cases (training, other
    devices, mixed precision, tracing) it is torch's conv. Made by :func:`use_fast_convs`.
    """

    # Transformed weights: once and for all after freeze(), or those of the last call with a copy
    # of the weights that they belong to. Neither saved nor moved.
    _frozen: Tensor | None = None
    _cached: tuple[Tensor, Tensor] | None = None

    def freeze(self) -> None:
        """Transform the weights once and for all; they must not change afterwards."""
        if (self.weight.device.type, self.weight.dtype) == ("cpu", torch.float32):
            self._frozen = transform_weight(self.weight)

    def forward(self, feature: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, O, H, W)``."""
        if not self.pays_off(feature):
            return super().forward(feature)
        return winograd_convs2d(feature, [self.transformed()], [self.bias])[0]

    def pays_off(self, feature: Tensor) -> bool:
        """Whether Winograd's algorithm is possible and faster for this input."""
        if not plain_float32(feature, self.weight):
            return False
        batch, _, height, width = feature.shape
        return batch * -(-height // TILE) * -(-width // TILE) >= _FAST_TILES

    def transformed(self) -> Tensor:
        """The weights in the form that :func:`winograd_convs2d` takes."""
        if self._frozen is not None:
            return self._frozen
        # Compare the weights: a moving average is written past autograd's version counters.
        if self._cached is None or not torch.equal(self._cached[0], self.weight):
            self._cached = self.weight.detach().clone(), transform_weight(self.weight)
        return self._cached[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FastConv:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._frozen is not None:  # another type or device may have changed the weights
            self._frozen = None
            self.freeze()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be computed again."""
        return {**self.__dict__, "_cached": None}


# Winograd's algorithm pays off from this many channels (input and output) and tiles of 4 x 4.
_FAST_CHANNELS, _FAST_TILES = 48, 16
_FAST: dict[str, Any] = {
    "kernel_size": (3, 3),
    "stride": (1, 1),
    "padding": (1, 1),
    "dilation": (1, 1),
    "groups": 1,
    "padding_mode": "zeros",
}


def use_fast_convs(network: nn.Module) -> None:
    """Replace every conv that can be a :class:`FastConv`; parameters stay the same objects."""
    for name, module in list(network.named_modules()):
        if (
            type(module) is nn.Conv2d
            and min(module.in_channels, module.out_channels) >= _FAST_CHANNELS
            and all(getattr(module, key) == value for key, value in _FAST.items())
        ):
            network.set_submodule(name, rebuild_conv(module, FastConv))


def use_depthwise_convs(network: nn.Module) -> None:
    """Replace every conv that can be a :class:`DepthwiseConv`; parameters stay the same objects."""
    from timm.layers.conv2d_same import Conv2dSame

    for name, module in list(network.named_modules()):
        same = type(module) is Conv2dSame
        if (same or type(module) is nn.Conv2d) and _is_depthwise(module, same):
            conv = rebuild_conv(module, DepthwiseConv)
            conv.same = same
            network.set_submodule(name, conv)


def _is_depthwise(conv: nn.Conv2d, same: bool) -> bool:
    """Whether our kernel supports this conv; ``same`` is TensorFlow's padding."""
    size, stride = conv.kernel_size[0], conv.stride[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels > 1
        and size >= 3
        and size % 2 == 1
        and conv.kernel_size == (size, size)
        and conv.stride == (stride, stride)
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and (stride <= 2 if same else conv.padding == (size // 2, size // 2))
    )


def rebuild_conv(conv: nn.Conv2d, kind: type[Conv]) -> Conv:
    """The same conv as another class, sharing its parameters. Draws no random numbers."""
    rebuilt = kind(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",
    )
    rebuilt.weight, rebuilt.bias = conv.weight, conv.bias
    return rebuilt.train(conv.training)


def conv2d_shared_input(feature: Tensor, convs: Sequence[nn.Module]) -> list[Tensor]:
    """Apply several convs to one map ``(B, C, H, W)``; fast convs transform it only once."""
    fast = [conv for conv in convs if isinstance(conv, FastConv) and conv.pays_off(feature)]
    if not fast or len(fast) < len(convs):
        return [conv(feature) for conv in convs]
    return winograd_convs2d(
        feature, [conv.transformed() for conv in fast], [conv.bias for conv in fast]
    )
