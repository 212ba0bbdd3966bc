"""Depthwise convolution on the CPU: oneDNN's, with a faster gradient of the weights.

For 5 x 5 kernels, oneDNN's gradient takes ten times as long as the conv itself (torch 2.14.1).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from meinst.ops.depthwise_kernels import weight_gradient_of


def depthwise_conv2d(
    feature: Tensor, weight: Tensor, bias: Tensor | None, stride: int, same: bool
) -> Tensor:
    """Convolve each channel with its own kernel, padding the map with zeros.

    Args:
        feature: ``(B, C, H, W)``; fastest if channels-last.
        weight: ``(C, 1, k, k)``, ``k`` odd, 3 or more.
        bias: ``(C,)``; zeros if None.
        stride: of rows and columns; 1 or 2 if ``same``.
        same: pad as TensorFlow's ``same``: at stride 2, an even number of rows (columns) gets
            one row (column) of zeros less at the top (left). Otherwise ``k // 2`` on all sides.

    Returns:
        ``(B, C, ceil(H / stride), ceil(W / stride))``. Differentiable; only once for float32 on
        the CPU. The same input gives the same bits, forward and backward.
    """
    # Pad kernels with leading zeros instead of padding maps less, which would copy the maps.
    skipped = tuple(int(same and stride == 2 and side % 2 == 0) for side in feature.shape[2:])
    custom = (feature.device.type, feature.dtype) == ("cpu", torch.float32)
    if not (custom and torch.is_grad_enabled()) or torch.is_autocast_enabled("cpu"):
        return _convolve(feature, weight, bias, stride, skipped)
    result: Tensor = _DepthwiseConv.apply(feature, weight, bias, stride, skipped)
    return result


def _convolve(
    feature: Tensor, weight: Tensor, bias: Tensor | None, stride: int, skipped: tuple[int, ...]
) -> Tensor:
    padding = weight.shape[-1] // 2
    return F.conv2d(feature, _pad_kernels(weight, skipped), bias, stride, padding, 1, len(weight))


def _pad_kernels(weight: Tensor, skipped: tuple[int, ...]) -> Tensor:
    rows, columns = skipped
    return F.pad(weight, (columns, 0, rows, 0)) if rows or columns else weight


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        feature: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: int,
        skipped: tuple[int, ...],
    ) -> Tensor:
        ctx.save_for_backward(feature, weight)
        ctx.stride, ctx.skipped = stride, skipped
        return _convolve(feature, weight, bias, stride, skipped)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        feature, weight = ctx.saved_tensors
        for_feature, for_weight, for_bias = ctx.needs_input_grad[:3]
        size, stride, skipped = weight.shape[-1], ctx.stride, ctx.skipped
        # For plain 3 x 3 weights, oneDNN's gradient is as fast on two threads.
        by_onednn = for_weight and size == 3 and not any(skipped)
        grads = torch.ops.aten.convolution_backward(
            gradient,
            feature,
            _pad_kernels(weight, skipped),
            [len(weight)],  # of the bias
            [stride, stride],
            [size // 2, size // 2],  # padding
            [1, 1],  # dilation
            False,  # transposed
            [0, 0],  # output padding
            len(weight),  # groups
            [for_feature, by_onednn, for_bias],
        )
        if by_onednn or not for_weight:
            return *grads, None, None
        sums = weight.new_zeros(size, size, len(weight))
        top, left = (size // 2 - side for side in skipped)
        pixels, slope = (t.permute(0, 2, 3, 1).contiguous() for t in (feature, gradient))
        weight_gradient_of(size)(pixels.numpy(), slope.numpy(), stride, top, left, sums.numpy())
        return grads[0], sums.permute(2, 0, 1)[:, None], grads[2], None, None
