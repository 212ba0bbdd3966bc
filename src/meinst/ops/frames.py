"""Masks and maps seen in boxes."""

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
    grid = _cell_centers(boxes, frames, masks.shape[-1])
    sampled = F.grid_sample(masks[:, None].float(), grid, align_corners=False)  # (N, 1, S, S)
    return (sampled.squeeze(1) >= 0.5).float()


def sample_in_frames(maps: Tensor, image: Tensor, frames: Tensor, side: int) -> Tensor:
    """What maps show inside boxes: RoIAlign with one bilinear sample in the middle of each cell.

    torchvision's ``roi_align`` gives the same inside of the maps, but its gradient takes four
    times as long on the CPU. Beyond a map's border is what the border shows.

    Args:
        maps: ``(B, E, H, W)``.
        image: ``(N,)`` int64, which map each box is in.
        frames: ``(N, 4)`` ``x1 y1 x2 y2`` in the maps' pixels.
        side: ``S``, cells of a box in each direction.

    Returns:
        ``(N, E, S, S)``.
    """
    channels, height, width = maps.shape[1:]
    whole = frames.new_tensor([[0, 0, width, height]])
    order = image.argsort(stable=True)
    grids = _cell_centers(whole, frames[order], side)
    counts = torch.bincount(image, minlength=len(maps)).tolist()
    # Map by map: grid_sample takes as many places of each.
    seen = [
        F.grid_sample(
            one[None], grid.view(1, -1, side, 2), padding_mode="border", align_corners=False
        ).view(channels, count, side, side)
        for one, grid, count in zip(maps, torch.split(grids, counts), counts, strict=True)
    ]
    return torch.cat(seen, dim=1).transpose(0, 1)[order.argsort()]


def _cell_centers(boxes: Tensor, frames: Tensor, side: int) -> Tensor:
    """The middles of the cells of ``(N, 4)`` frames, as grid_sample takes them.

    Returns:
        ``(N, side, side, 2)``, x and y; -1 and 1 are the sides of the boxes ``(N or 1, 4)``.
    """
    steps = (torch.arange(side, device=frames.device) + 0.5) / side  # (S,)
    corners, sizes = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]  # (N, 1, 2)
    frame_sizes = frames[:, None, 2:] - frames[:, None, :2]
    places = frames[:, None, :2] + steps[:, None] * frame_sizes  # (N, S, 2) x of columns, y of rows
    x, y = ((places - corners) / sizes * 2 - 1).unbind(-1)  # (N, S) each
    return torch.stack(
        (x[:, None, :].expand(-1, side, -1), y[:, :, None].expand(-1, -1, side)), dim=-1
    )
