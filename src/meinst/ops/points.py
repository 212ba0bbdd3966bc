"""Positions of feature-map cells in the input image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def make_points(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Place one point in the middle of each feature-map cell.

    The cell in row ``i``, column ``j`` of a level lies at
    ``(j * stride + stride // 2, i * stride + stride // 2)`` (FCOS, equation of section 3.1).

    Args:
        sizes: ``(rows, columns)`` of each level.
        strides: stride of each level, in pixels.
        device: of the result.

    Returns:
        ``points (P, 2)``, x and y in pixels of the input, and ``strides (P,)``, both float32,
        level by level and row by row.
    """
    points = []
    for (rows, columns), stride in zip(sizes, strides, strict=True):
        x = torch.arange(columns, device=device, dtype=torch.float32) * stride + stride // 2
        y = torch.arange(rows, device=device, dtype=torch.float32) * stride + stride // 2
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), dim=-1).reshape(-1, 2))  # (rows * columns, 2)
    counts = torch.tensor([len(level) for level in points], device=device)
    per_point = torch.tensor(strides, device=device, dtype=torch.float32)
    return torch.cat(points), per_point.repeat_interleave(counts)
