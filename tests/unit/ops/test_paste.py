from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from meinst.ops.paste import (
    crop_masks,
    group_crops,
    paste_labels,
    paste_masks,
    pixel_windows,
    soft_masks_to_rle,
)


def sampled(soft: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Sample soft masks with grid_sample over the whole image: ``(N, H, W)``."""
    height, width = size
    values = []
    for mask, (x1, y1, x2, y2) in zip(soft, boxes, strict=True):
        x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (H, W, 2)
        values.append(F.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0])
    return torch.stack(values)


def coco_counts(masks: Tensor) -> list[str]:
    encoded = coco_mask.encode(np.asfortranarray(masks.permute(1, 2, 0).numpy().astype(np.uint8)))
    return [rle["counts"].decode() for rle in encoded]


def random_soft(generator: torch.Generator, count: int, size: int, variant: int) -> Tensor:
    noise = torch.rand(count, size, size, generator=generator)
    if variant == 0:
        return noise
    if variant == 1:  # binary: interpolated values of exactly one half occur
        return (noise >= 0.5).float()
    smooth = F.avg_pool2d(noise[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
    return torch.sigmoid(40 * (smooth - 0.5)) if variant == 2 else (noise < 0.97).float()


def random_boxes(
    generator: torch.Generator, count: int, size: tuple[int, int], variant: int
) -> Tensor:
    extent = torch.tensor([size[1], size[0]], dtype=torch.float32)
    centre = torch.rand(count, 2, generator=generator) * extent
    half = torch.rand(count, 2, generator=generator) * extent * 0.6 + 1e-3
    if variant == 1:  # below one pixel
        half = torch.rand(count, 2, generator=generator) * 0.7 + 1e-3
    boxes = torch.cat((centre - half, centre + half), dim=1)
    if variant == 2:  # on pixel borders, touching the image's edges
        boxes = boxes.round()
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        boxes[: count // 2] = boxes[: count // 2].clamp(min=0).minimum(extent.repeat(2))
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    if variant == 3:  # the whole image or more; sides on pixel centres
        boxes = torch.cat((torch.zeros(count, 2), extent.expand(count, 2)), dim=1)
        shift = torch.randint(-3, 4, (count, 4), generator=generator) * 0.5
        boxes[1:] += shift[1:] * torch.tensor([1, 1, 0.5, 0.5])
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    return boxes


def test_no_masks():
    soft, boxes = torch.zeros(0, 28, 28), torch.zeros(0, 4)
    assert soft_masks_to_rle(soft, boxes, (5, 7)) == []
    assert paste_masks(soft, boxes, (5, 7)).shape == (0, 5, 7)
    crops, corners = crop_masks(soft, boxes, (5, 7))
    assert crops == []
    assert corners.shape == (0, 2)


def test_hand_computed_rle():
    # u = (x + 0.5 - x1) / (x2 - x1) * S - 0.5 = 0 and 1 for x = 1 and 2: value 1 each.
    # Column by column: 3 out, 2 in, 1 out, 2 in, 4 out. Written as 3, 2, 1, 2 - 2, 4 - 1.
    soft, boxes = torch.ones(1, 2, 2), torch.tensor([[1.0, 0.0, 3.0, 2.0]])
    assert soft_masks_to_rle(soft, boxes, (3, 4)) == [{"size": [3, 4], "counts": "32103"}]


def test_hand_computed_long_and_negative_counts():
    # A column of 1000: 990 out, 10 in. 990 = 30 + 32 * 30: 30 + 32 more, then 30, whose sign
    # bit is set, so a zero follows: 48 + 62, 48 + 62, 48. 10: 48 + 10.
    soft, boxes = torch.ones(1, 1, 1), torch.tensor([[0.0, 990.0, 1.0, 1000.0]])
    counts = soft_masks_to_rle(soft, boxes, (1000, 1))[0]["counts"]
    # S = 1: v = t - 0.5 for t = 0.05 .. 0.95, weight 1 - |v|: 0.55 .. 1 .. 0.55, all inside.
    assert counts == chr(110) + chr(110) + chr(48) + chr(58)
    # 2 x 5 pixels: 0 out, 3 in, 2 out, 1 in, 4 out: the second run is written as 1 - 3 = -2,
    # low bits 30 with the sign bit set and nothing to follow: 48 + 30; the last as 4 - 2.
    soft = torch.tensor([[[1.0, 1, 0, 0, 0], [1, 0, 1, 0, 0]]])
    soft = F.interpolate(soft[None], size=(10, 10), mode="nearest")[0]
    counts = soft_masks_to_rle(soft, torch.tensor([[0.0, 0.0, 5.0, 2.0]]), (2, 5))[0]["counts"]
    assert counts == "032" + chr(78) + "2"


def test_box_sides_on_pixel_centres_belong_to_the_mask():
    # u = -0.5, 0.5, 1.5 for x = 0, 1, 2: weights 0.5, 1, 0.5; a corner has 0.25.
    masks = paste_masks(torch.ones(1, 2, 2), torch.tensor([[0.5, 0.5, 2.5, 2.5]]), (4, 4))
    assert masks[0].int().tolist() == [[0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("box_kind", range(4))
@pytest.mark.parametrize("soft_kind", range(4))
def test_random_masks_follow_grid_sample_and_pycocotools(box_kind, soft_kind):
    generator = torch.Generator().manual_seed(10 * box_kind + soft_kind)
    inside = 0
    for _ in range(16):
        size = tuple(torch.randint(1, 60, (2,), generator=generator).tolist())
        side = int(torch.randint(1, 30, (1,), generator=generator))
        soft = random_soft(generator, 16, side, soft_kind)
        boxes = random_boxes(generator, 16, size, box_kind)
        before = soft.clone(), boxes.clone()
        masks = paste_masks(soft, boxes, size)
        values = sampled(soft, boxes, size)
        wrong = (values >= 0.5) != masks
        assert (values[wrong] - 0.5).abs().le(1e-5).all()

        rles = soft_masks_to_rle(soft, boxes, size)
        assert [rle["counts"] for rle in rles] == coco_counts(masks)
        assert all(rle["size"] == list(size) for rle in rles)

        crops, corners = crop_masks(soft, boxes, size)
        rebuilt = torch.zeros_like(masks)
        for n, (crop, (x, y)) in enumerate(zip(crops, corners.tolist(), strict=True)):
            rebuilt[n, y : y + crop.shape[0], x : x + crop.shape[1]] = torch.from_numpy(crop)
        assert torch.equal(rebuilt, masks)
        assert torch.equal(soft, before[0])
        assert torch.equal(boxes, before[1])
        inside += int(masks.sum())
    assert inside > 0


def test_batch_equals_single():
    generator = torch.Generator().manual_seed(3)
    soft, boxes = random_soft(generator, 40, 28, 2), random_boxes(generator, 40, (50, 70), 0)
    together = soft_masks_to_rle(soft, boxes, (50, 70))
    alone = [soft_masks_to_rle(soft[n : n + 1], boxes[n : n + 1], (50, 70))[0] for n in range(40)]
    assert together == alone


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_image_of_one_pixel(value):
    soft, boxes = torch.full((1, 28, 28), value), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    masks = paste_masks(soft, boxes, (1, 1))
    assert masks.tolist() == [[[bool(value)]]]
    assert [rle["counts"] for rle in soft_masks_to_rle(soft, boxes, (1, 1))] == coco_counts(masks)


@pytest.mark.parametrize(
    "box",
    [
        [3.0, 3.0, 3.0, 8.0],  # no width
        [3.5, 3.5, 3.5, 3.5],  # no area, on a pixel's centre
        [8.0, 3.0, 3.0, 8.0],  # corners swapped
        [3.6, 3.6, 4.4, 4.4],  # between pixel centres
        [-9.0, -9.0, -1.0, -1.0],  # outside
        [10.0, 0.0, 1e30, 10.0],  # outside and beyond any integer
    ],
)
def test_boxes_without_pixels_give_empty_masks(box):
    soft, boxes = torch.ones(1, 28, 28), torch.tensor([box])
    assert not paste_masks(soft, boxes, (10, 10)).any()
    assert (
        soft_masks_to_rle(soft, boxes, (10, 10))[0]["counts"]
        == coco_counts(torch.zeros(1, 10, 10))[0]
    )
    assert crop_masks(soft, boxes, (10, 10))[0][0].size == 0


def test_nan_is_background():
    soft = torch.full((1, 4, 4), float("nan"))
    assert not paste_masks(soft, torch.tensor([[0.0, 0.0, 9.0, 9.0]]), (9, 9)).any()


def test_no_full_size_masks_for_rle_and_crops():
    # 60,000 x 60,000 pixels: one full-size mask alone would take 3.6 GB.
    soft = torch.ones(50, 28, 28)
    boxes = torch.tensor([59_980.0, 59_970.0, 60_000.0, 60_000.0]).expand(50, 4)
    rles = soft_masks_to_rle(soft, boxes, (60_000, 60_000))
    assert coco_mask.area(rles[7]) == crop_masks(soft, boxes, (60_000, 60_000))[0][7].sum() > 550
    assert coco_mask.toBbox(rles[7]).tolist() == [59_980, 59_970, 20, 30]


def test_groups_of_crops_take_little_memory() -> None:
    sides = np.array([[3, 4], [0, 0], [9, 9], [5, 4], [1, 20], [0, 7]])
    boxes = np.concatenate((np.zeros_like(sides), sides), axis=1).astype(np.float32)

    def groups(count: int, pixels: int) -> list[list[int]]:
        parts = group_crops(boxes, (30, 30), count, pixels)
        return [list(range(6)[part]) for part in parts]

    assert groups(9, 20) == [[0, 1], [2], [3], [4, 5]]
    assert groups(9, 40) == [[0, 1], [2], [3, 4, 5]]
    assert groups(2, 1000) == [[0, 1], [2, 3], [4, 5]]
    assert list(group_crops(boxes[:0], (30, 30), 5)) == []


def test_boxes_of_too_many_pixels_are_rejected() -> None:
    boxes = torch.tensor([[0.0, 0.0, 60_000.0, 60_000.0]])
    with pytest.raises(ValueError, match="1 boxes have 3600000000 pixels, masks are limited to"):
        crop_masks(torch.ones(1, 28, 28), boxes, (60_000, 60_000))


def test_windows_contain_the_pixel_centres_inside_the_boxes():
    # Centres 1.5 .. 3.5 are in 1.5 .. 3.9; centres 0.5 and 1.5 in -3 .. 2.
    windows = pixel_windows(np.array([[1.5, -3.0, 3.9, 2.0]]), (10, 20))
    assert windows.tolist() == [[1, 0, 3, 2]]


@pytest.mark.parametrize(
    ("soft", "boxes", "size", "message"),
    [
        (torch.ones(2, 3, 4), torch.ones(2, 4), (5, 5), r"\(N, S, S\), got \(2, 3, 4\)"),
        (torch.ones(2, 4, 4), torch.ones(3, 4), (5, 5), r"\(2, 4\).*got \(3, 4\)"),
        (torch.ones(1, 4, 4), torch.ones(1, 4), (0, 5), "0 x 5"),
        (torch.ones(1, 4, 4), torch.full((1, 4), float("inf")), (5, 5), "finite"),
    ],
)
def test_faulty_arguments_are_rejected(soft, boxes, size, message):
    for function in (soft_masks_to_rle, paste_masks, crop_masks):
        with pytest.raises(ValueError, match=message):
            function(soft, boxes, size)


def test_rle_of_more_pixels_than_it_counts_is_an_error() -> None:
    soft, boxes = torch.ones(1, 4, 4), torch.tensor([[0.0, 0.0, 9.0, 9.0]])
    with pytest.raises(ValueError, match=r"limited to images of 4294967295 pixels"):
        soft_masks_to_rle(soft, boxes, (70_000, 70_000))


@pytest.mark.parametrize("variant", range(4))
def test_labels_are_the_masks_in_order(variant: int) -> None:
    generator = torch.Generator().manual_seed(variant)
    size = (37, 53)
    soft = random_soft(generator, 40, 9, variant)
    boxes = random_boxes(generator, 40, size, variant)
    numbers = np.arange(1, 41) * 7
    expected = np.zeros(size, np.uint16)
    for mask, number in zip(paste_masks(soft, boxes, size).numpy(), numbers, strict=True):
        expected[mask] = number
    for step in (1, 10, 37):
        for top in range(0, 37, step):
            canvas = np.zeros((min(step, 37 - top), 53), np.uint16)
            paste_labels(soft, boxes, size, numbers, canvas, top)
            assert np.array_equal(canvas, expected[top : top + step])


def test_labels_need_rows_of_the_image() -> None:
    nothing = torch.zeros(0, 5, 5), torch.zeros(0, 4), (10, 20), np.zeros(0)
    canvas = np.full((4, 20), 3, np.uint16)
    paste_labels(*nothing, canvas, top=6)
    assert (canvas == 3).all()
    for wrong, top in ((canvas, 7), (canvas[:, :-1], 0), (canvas, -1), (canvas[0], 0)):
        with pytest.raises(ValueError, match="the canvas must be some of the 10 rows of 20 pixels"):
            paste_labels(*nothing, wrong, top=top)
