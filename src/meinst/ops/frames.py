"""Masks and maps seen in boxes."""

from __future__ import annotations

from functools import partial

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
    height, width = maps.shape[2:]
    whole = frames.new_tensor([[0, 0, width, height]])
    if len(maps) == 1:
        return _sample(maps[0], _cell_centers(whole, frames, side))
    order = image.argsort(stable=True)
    grids = _cell_centers(whole, frames[order], side)
    counts = torch.bincount(image, minlength=len(maps)).tolist()
    # Map by map: grid_sample takes as many places of each.
    seen = [_sample(*pair) for pair in zip(maps, torch.split(grids, counts), strict=True)]
    return torch.cat(seen)[order.argsort()]


def _sample(one: Tensor, grids: Tensor) -> Tensor:
    """What a map ``(E, H, W)`` shows in the places ``(N, S, S, 2)``: ``(N, E, S, S)``."""
    sample = partial(F.grid_sample, padding_mode="border", align_corners=False)
    if not torch.is_grad_enabled():
        return sample(one.expand(len(grids), -1, -1, -1), grids)  # a thread for each map
    # The gradient of a map that is taken N times would be that of N maps.
    count, side = grids.shape[:2]
    seen = sample(one[None], grids.view(1, count * side, side, 2))
    return seen.view(len(one), count, side, side).transpose(0, 1)


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
