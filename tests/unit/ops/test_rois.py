"""Masks and maps resampled on the grids of boxes."""

from __future__ import annotations

import pytest
import torch

from meinst.ops.rois import masks_in_rois, sample_rois

BOX = torch.tensor([[10.0, 20.0, 38.0, 76.0]])


def random_masks(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 28, 28, generator=generator) > 0.5).to(torch.uint8)


def test_no_masks() -> None:
    nothing = torch.zeros(0, 4)
    assert masks_in_rois(torch.zeros(0, 28, 28), nothing, nothing).shape == (0, 28, 28)


def test_same_box_gives_the_same_mask() -> None:
    masks = random_masks(3)
    boxes = BOX.repeat(3, 1) * torch.tensor([[1.0], [2.0], [0.3]])
    torch.testing.assert_close(masks_in_rois(masks, boxes, boxes), masks.float())


def test_roi_moved_by_whole_cells_shifts_the_mask() -> None:
    mask = random_masks(1)
    cells = torch.tensor([[3.0, 2.0, 3.0, 2.0]])  # a cell is 1 x 2 pixels
    rois = BOX + cells * torch.tensor([1.0, 2.0, 1.0, 2.0])
    expected = torch.zeros(1, 28, 28)
    expected[0, :26, :25] = mask[0, 2:, 3:]
    torch.testing.assert_close(masks_in_rois(mask, BOX, rois), expected)


def test_roi_twice_as_large_contains_the_mask_in_its_middle() -> None:
    full = torch.ones(1, 28, 28, dtype=torch.uint8)
    roi = torch.tensor([[-4.0, -8.0, 52.0, 104.0]])
    expected = torch.zeros(1, 28, 28)
    expected[0, 7:21, 7:21] = 1
    torch.testing.assert_close(masks_in_rois(full, BOX, roi), expected)


def test_roi_outside_the_box_is_empty() -> None:
    assert masks_in_rois(random_masks(1), BOX, BOX + 500).sum() == 0


def test_equals_roi_align_inside_the_maps() -> None:
    from torchvision.ops import roi_align

    generator = torch.Generator().manual_seed(1)
    maps = torch.randn(3, 5, 40, 60, generator=generator, requires_grad=True)
    corners = torch.rand(9, 2, generator=generator) * torch.tensor([30.0, 20.0])
    boxes = torch.cat((corners, corners + 1 + 20 * torch.rand(9, 2, generator=generator)), dim=1)
    image = torch.tensor([2, 0, 0, 2, 2, 0, 2, 0, 0])  # none in the second map
    found = sample_rois(maps, image, boxes, 14)
    rois = torch.cat((image[:, None].float(), boxes), dim=1)
    expected = roi_align(maps, rois, 14, sampling_ratio=1, aligned=True)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    upstream = torch.randn(found.shape, generator=generator)
    gradients = [torch.autograd.grad(result, maps, upstream)[0] for result in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-3)


@pytest.mark.parametrize("images", [1, 3])
def test_same_bits_with_and_without_gradients(images: int) -> None:
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(images, 5, 40, 60, generator=generator)
    maps = maps.contiguous(memory_format=torch.channels_last)
    boxes = torch.tensor([-3.0, 2.0, 20.0, 30.0]) + 9 * torch.rand(7, 4, generator=generator)
    image = torch.tensor([2, 0, 0, 2, 2, 0, 2]) % images
    with_gradients = sample_rois(maps, image, boxes, 14)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(sample_rois(maps, image, boxes, 14), with_gradients)


def test_border_is_repeated_outside_the_map() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 6, 8)
    found = sample_rois(ramp, torch.tensor([0]), torch.tensor([[-4.0, -4.0, 16.0, 16.0]]), 10)
    # Cells of two pixels; pixel i has its centre at i + 0.5.
    expected = (torch.arange(-3.0, 17.0, 2.0) - 0.5).clamp(0, 7).expand(10, 10)
    torch.testing.assert_close(found[0, 0], expected)


def test_no_boxes() -> None:
    nothing = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)
    for images in (1, 2):
        maps = torch.randn(images, 5, 4, 4, requires_grad=True)
        found = sample_rois(maps, *nothing, 7)
        assert found.shape == (0, 5, 7, 7)
        assert found.requires_grad  # distributed training needs a gradient for every weight
        with torch.no_grad():
            assert sample_rois(maps, *nothing, 7).shape == (0, 5, 7, 7)
