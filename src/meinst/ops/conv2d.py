"""3x3 convolutions for special cases in which torch's own does needless work."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Up to this many outputs, one matrix product and nine sums are faster than torch's conv.
_FEW_OUTPUTS = 5


def conv2d_at_points(
    feature: Tensor, weight: Tensor, bias: Tensor | None, image: Tensor, row: Tensor, column: Tensor
) -> Tensor:
    """Compute a 3x3 conv with padding 1 at the given positions, in the precision of its weights.

    Autocast is ignored, since few positions cost little.

    Args:
        feature: ``(B, C, H, W)``, fastest in channels-last layout.
        weight: ``(O, C, 3, 3)``.
        bias: ``(O,)``; zeros if None.
        image: ``(N,)`` int64, index of each position's image.
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
    index = (image[:, None, None] * height + rows) * width + columns
    vectors = feature.permute(0, 2, 3, 1).reshape(-1, channels)  # a view if channels-last
    patches = vectors.index_select(0, index.flatten()).view(*index.shape, channels)
    patches[(~inside).nonzero(as_tuple=True)] = 0  # few positions, so no mask over all of them
    patches = patches.flatten(1).to(weight.dtype)  # (N, 9 C)
    with torch.autocast(feature.device.type, enabled=False):
        return F.linear(patches, weight.permute(0, 2, 3, 1).flatten(1), bias)


def conv2d_few_outputs(feature: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 conv with padding 1, faster for few output channels and without gradients.

    oneDNN computes at least 16 channels. Here one matrix product gives each pixel's contribution
    to its nine neighbours; the contributions are shifted and added.

    Args:
        feature: ``(B, C, H, W)``, fastest in channels-last layout.
        weight: ``(O, C, 3, 3)``.
        bias: ``(O,)``.

    Returns:
        ``(B, O, H, W)``.
    """
    if not plain_float32(feature, weight) or len(weight) > _FEW_OUTPUTS:
        return F.conv2d(feature, weight, bias, padding=1)
    outputs, channels = weight.shape[:2]
    batch, _, height, width = feature.shape
    taps = weight.permute(2, 3, 0, 1).reshape(-1, channels)  # (9 O, C)
    contributions = (taps @ feature.flatten(2)).view(batch, 3, 3, outputs, height, width)
    result = feature.new_zeros(batch, outputs, height + 2, width + 2)
    for i in range(3):
        for j in range(3):
            result[..., 2 - i : 2 - i + height, 2 - j : 2 - j + width] += contributions[:, i, j]
    return result[..., 1:-1, 1:-1] + bias[:, None, None]


def plain_float32(*tensors: Tensor) -> bool:
    """Whether custom kernels apply: float32 on the CPU, no gradients, tracing or autocast."""
    return not (
        torch.is_grad_enabled()
        or is_tracing()
        or torch.is_autocast_enabled("cpu")
        or any((t.device.type, t.dtype) != ("cpu", torch.float32) for t in tensors)
    )


def is_tracing() -> bool:
    """Whether operations are being traced (jit, export or compile)."""
    tracing: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return tracing or torch.compiler.is_compiling()
