"""Masks seen in other boxes than their own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masks_in_frames(masks: Tensor, boxes: Tensor, frames: Tensor) -> Tensor:
    """Resample masks, each stretched over its box, on the grids of other boxes.

    A pixel's centre takes the bilinear value there; outside of a mask's own box is background.

    Args:
        masks: ``(N, S, S)`` of 0 and 1.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` that the masks fill; of positive size.
        frames: ``(N, 4)`` in the same pixels.

    Returns:
        ``(N, S, S)`` float32 of 0 and 1.
    """
    side = masks.shape[-1]
    steps = (torch.arange(side, device=masks.device) + 0.5) / side  # (S,)
    corners, sizes = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]  # (N, 1, 2)
    frame_sizes = frames[:, None, 2:] - frames[:, None, :2]
    places = frames[:, None, :2] + steps[:, None] * frame_sizes  # (N, S, 2) x of columns, y of rows
    x, y = ((places - corners) / sizes * 2 - 1).unbind(-1)  # (N, S) each, -1 to 1 in the box
    grid = torch.stack(
        (x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)), dim=-1
    )
    sampled = F.grid_sample(masks[:, None].float(), grid, align_corners=False)  # (N, 1, S, S)
    return (sampled.squeeze(1) >= 0.5).float()
