"""Deformable convolution on the CPU: gather pixels, then multiply matrices.

Results and gradients equal those of torchvision's operator, which takes about ten times as long
as a plain conv on the CPU. Other devices and exported networks use torchvision's operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from meinst.ops.deform_kernels import gather_taps, scatter_taps

# Output pixels are computed in chunks whose gathered inputs mostly stay in the cache. In smaller
# chunks, threads wait for each other; a whole level is slower too, and takes hundreds of megabytes.
COLUMN_BYTES = 16 * 2**20


def deform_conv2d(
    feature: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None = None,
    padding: int = 1,
) -> Tensor:
    """Deformable convolution of stride 1 (v1: arXiv 1703.06211, v2: arXiv 1811.11168).

    Each of the ``T = kh * kw`` taps, in row-major order, samples the feature map bilinearly at
    its position in a plain conv plus its offset. Pixels outside the map are zeros. At integer
    positions, where bilinear interpolation has a kink, the gradient is that to the right.

    Args:
        feature: ``(B, C, H, W)`` float32 or float64 on the CPU; fastest if channels-last.
        offset: ``(B, 2 * T, H', W')``, y and x of each tap in pixels, where
            ``H' = H + 2 * padding - kh + 1`` and ``W'`` likewise.
        weight: ``(O, C, kh, kw)``.
        mask: ``(B, T, H', W')``, weight of each tap; ones if None.
        padding: zeros on all sides, in pixels.

    Returns:
        ``(B, O, H', W')``, channels-last. Differentiable once with respect to all four tensors;
        the same input gives the same bits, forward and backward.

    Raises:
        ValueError: if shapes, types or devices do not match.
    """
    _check(feature, offset, weight, mask, padding)
    batch, _, height, width = offset.shape
    outputs, _, rows, columns = weight.shape
    taps = rows * columns
    per_tap = offset.permute(0, 2, 3, 1).reshape(batch, height, width, taps, 2)
    if mask is None:
        mask = feature.new_ones((batch, taps, height, width))
    result: Tensor = _DeformConv.apply(
        feature.permute(0, 2, 3, 1).contiguous(),  # (B, H, W, C)
        per_tap.contiguous(),  # (B, H', W', T, 2)
        mask.permute(0, 2, 3, 1).contiguous(),  # (B, H', W', T)
        weight.permute(0, 2, 3, 1).flatten(1),  # (O, T * C)
        columns,
        padding,
    )
    return result.view(batch, height, width, outputs).permute(0, 3, 1, 2)


class _DeformConv(torch.autograd.Function):
    """:func:`deform_conv2d` with channels last; ``(P, O)`` for ``P = B * H' * W'`` output pixels.

    The backward pass gathers the inputs again instead of storing them, which takes a twentieth of
    the time of its matrix products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        offset: Tensor,
        mask: Tensor,
        matrix: Tensor,
        kernel_width: int,
        padding: int,
    ) -> Tensor:
        ctx.save_for_backward(pixels, offset, mask, matrix)
        ctx.kernel = (kernel_width, padding)
        taps = pixels.detach().numpy(), offset.detach().numpy(), mask.detach().numpy()
        result = pixels.new_empty((mask[..., 0].numel(), len(matrix)))  # (P, O)
        for first, inputs in _chunks(result, mask, matrix):
            gather_taps(*taps, kernel_width, padding, first, inputs.numpy())
            flat = inputs.flatten(1)  # (n, T * C)
            torch.mm(flat, matrix.t(), out=result[first : first + len(flat)])
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels, offset, mask, matrix = ctx.saved_tensors
        kernel_width, padding = ctx.kernel
        grad = grad.contiguous()
        taps = pixels.detach().numpy(), offset.detach().numpy(), mask.detach().numpy()
        grad_pixels = torch.zeros_like(pixels)
        grad_matrix = matrix.new_zeros(matrix.shape[::-1])  # (T * C, O): faster transposed
        grad_offset, grad_mask = torch.empty_like(offset), torch.empty_like(mask)
        grads = grad_pixels.numpy(), grad_offset.numpy(), grad_mask.numpy()
        for first, inputs in _chunks(grad, mask, matrix):
            flat = inputs.flatten(1)  # (n, T * C)
            chunk = grad[first : first + len(flat)]  # (n, O)
            torch.mm(chunk, matrix, out=flat)
            scatter_taps(*taps, kernel_width, padding, first, inputs.numpy(), *grads)
            grad_matrix.addmm_(flat.t(), chunk)
        return grad_pixels, grad_offset, grad_mask, grad_matrix.t(), None, None


def _chunks(result: Tensor, mask: Tensor, matrix: Tensor) -> Iterator[tuple[int, Tensor]]:
    """For each chunk of ``n`` output pixels, the first pixel and a buffer ``(n, T, C)``."""
    taps, length = mask.shape[-1], matrix.shape[1]
    count = COLUMN_BYTES // (result.itemsize * max(length, 1)) or 1
    buffer = result.new_empty((min(count, len(result)), taps, length // taps))
    for first in range(0, len(result), count):
        yield first, buffer[: len(result) - first]


def _check(
    feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, padding: int
) -> None:
    tensors = [feature, offset, weight] + ([] if mask is None else [mask])
    types = {(str(tensor.dtype), tensor.device.type) for tensor in tensors}
    if types not in ({("torch.float32", "cpu")}, {("torch.float64", "cpu")}):
        raise ValueError(
            "deform_conv2d needs tensors of one type, float32 or float64, on the CPU, got "
            f"{sorted(types)}; use torchvision.ops.deform_conv2d for others."
        )
    batch, channels, height, width = feature.shape
    outputs, _, rows, columns = weight.shape
    size = (height + 2 * padding - rows + 1, width + 2 * padding - columns + 1)
    expected = [("weight", weight, (outputs, channels, rows, columns))]
    expected.append(("offset", offset, (batch, 2 * rows * columns, *size)))
    if mask is not None:
        expected.append(("mask", mask, (batch, rows * columns, *size)))
    for name, tensor, shape in expected:
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must be {shape} for a feature of {tuple(feature.shape)}, a kernel of "
                f"{rows} x {columns} and padding {padding}, got {tuple(tensor.shape)}."
            )
