import torch

from meinst.detector.assign import assign_points
from meinst.detector.losses import level_ranges
from meinst.ops.points import make_points


def brute_force(points, strides, ranges, boxes, radius):
    """FCOS's centre sampling, one point and one box at a time."""
    found = []
    for (x, y), stride, (low, high) in zip(
        points.tolist(), strides.tolist(), ranges.tolist(), strict=True
    ):
        best, best_area = -1, float("inf")
        for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            cx, cy, half = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
            inside = max(cx - half, x1) < x < min(cx + half, x2)
            inside = inside and max(cy - half, y1) < y < min(cy + half, y2)
            reach = max(x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            if inside and low <= reach <= high and area < best_area:
                best, best_area = g, area
        found.append(best)
    return found


def grid():
    points, strides = make_points([(16, 16), (8, 8)], [8, 16])
    return points, strides, level_ranges(strides, (256, 64), (32,))


def test_no_boxes_give_background() -> None:
    points, strides, ranges = grid()
    index = assign_points(points, strides, ranges, torch.zeros(0, 4))
    assert index.dtype == torch.int64
    assert (index == -1).all()
    assert len(index) == 320


def test_ranges_start_at_minus_one_and_end_at_infinity() -> None:
    _, _, ranges = grid()
    assert ranges[0].tolist() == [-1, 32]
    assert ranges[-1].tolist() == [32, float("inf")]


def test_smallest_box_wins_first_on_ties() -> None:
    points, strides = torch.tensor([[20.0, 20.0]]), torch.tensor([8.0])
    ranges = torch.tensor([[-1.0, 64.0]])
    boxes = torch.tensor([[0.0, 0, 40, 40], [10.0, 10, 30, 30], [10.0, 10, 30, 30]])
    assert assign_points(points, strides, ranges, boxes).tolist() == [1]


def test_both_ends_of_a_range_are_included() -> None:
    points, strides = torch.tensor([[32.0, 32.0]]), torch.tensor([8.0])
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0]])  # the largest distance is exactly 32
    for low, high, index in ((32.0, 64.0, 0), (0.0, 32.0, 0), (32.5, 64.0, -1)):
        ranges = torch.tensor([[low, high]])
        assert assign_points(points, strides, ranges, boxes).tolist() == [index]


def test_equals_brute_force_on_random_boxes() -> None:
    points, strides, ranges = grid()
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand((30, 2), generator=generator) * 110
    boxes = torch.cat((corner, corner + 2 + torch.rand((30, 2), generator=generator) * 60), 1)
    index = assign_points(points, strides, ranges, boxes)
    assert index.tolist() == brute_force(points, strides, ranges, boxes, 1.5)
    assert (index >= 0).sum() > 20
