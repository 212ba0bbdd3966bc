"""Masks resampled on the grids of other boxes."""

from __future__ import annotations

import torch

from meinst.ops.frames import masks_in_frames

BOX = torch.tensor([[10.0, 20.0, 38.0, 76.0]])


def random_masks(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 28, 28, generator=generator) > 0.5).to(torch.uint8)


def test_no_masks() -> None:
    nothing = torch.zeros(0, 4)
    assert masks_in_frames(torch.zeros(0, 28, 28), nothing, nothing).shape == (0, 28, 28)


def test_the_same_box_gives_the_same_mask() -> None:
    masks = random_masks(3)
    boxes = BOX.repeat(3, 1) * torch.tensor([[1.0], [2.0], [0.3]])
    torch.testing.assert_close(masks_in_frames(masks, boxes, boxes), masks.float())


def test_a_frame_moved_by_whole_cells_shifts_the_mask() -> None:
    mask = random_masks(1)
    cells = torch.tensor([[3.0, 2.0, 3.0, 2.0]])  # a cell is 1 x 2 pixels
    frames = BOX + cells * torch.tensor([1.0, 2.0, 1.0, 2.0])
    expected = torch.zeros(1, 28, 28)
    expected[0, :26, :25] = mask[0, 2:, 3:]
    torch.testing.assert_close(masks_in_frames(mask, BOX, frames), expected)


def test_a_frame_twice_as_large_shows_the_mask_in_its_middle() -> None:
    full = torch.ones(1, 28, 28, dtype=torch.uint8)
    frame = torch.tensor([[-4.0, -8.0, 52.0, 104.0]])
    expected = torch.zeros(1, 28, 28)
    expected[0, 7:21, 7:21] = 1
    torch.testing.assert_close(masks_in_frames(full, BOX, frame), expected)


def test_a_frame_elsewhere_is_empty() -> None:
    assert masks_in_frames(random_masks(1), BOX, BOX + 500).sum() == 0
