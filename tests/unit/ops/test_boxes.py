import math

import pytest
import torch

from meinst.ops.boxes import (
    box_areas,
    boxes_to_distances,
    centerness,
    distances_to_boxes,
    elementwise_box_iou,
    giou_of_distances,
    pairwise_box_iou,
)


def test_empty_inputs_give_empty_results() -> None:
    none = torch.zeros(0, 4)
    assert distances_to_boxes(torch.zeros(0, 2), none).shape == (0, 4)
    assert giou_of_distances(none, none).shape == (0,)
    assert centerness(none).shape == (0,)


def test_distances_and_boxes_are_inverse() -> None:
    points = torch.tensor([[10.0, 20.0], [0.0, 0.0]])
    distances = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, -1.0, 5.0, 2.0]])
    boxes = distances_to_boxes(points, distances)
    assert boxes.tolist() == [[9, 18, 13, 24], [0, 1, 5, 2]]
    assert torch.equal(boxes_to_distances(points, boxes), distances)
    assert box_areas(boxes).tolist() == [24, 5]


def test_iou_of_pairs() -> None:
    one = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(4, 1)
    # The same box; a quarter of it; two of four columns shared; apart on both axes.
    other = torch.tensor([[0.0, 0, 4, 4], [2, 2, 4, 4], [2, 0, 6, 4], [5, 5, 9, 9]])
    assert elementwise_box_iou(one, other).tolist() == pytest.approx([1, 4 / 16, 8 / 24, 0])
    nothing = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert elementwise_box_iou(nothing, one[:1]).tolist() == [0]


def test_pairwise_iou_equals_elementwise_iou() -> None:
    corners = torch.rand(7, 2, 2, generator=torch.Generator().manual_seed(0)).sort(1).values * 9
    one, other = corners[:3].flatten(1), corners[2:].flatten(1)
    found = pairwise_box_iou(one, other)
    expected = elementwise_box_iou(one[:, None], other)
    assert (expected > 0).sum() > 5
    torch.testing.assert_close(found, expected)
    assert pairwise_box_iou(one[:0], other).shape == (0, 5)
    nothing = torch.ones(1, 4)
    assert pairwise_box_iou(nothing, nothing).isnan().all()


def test_centerness_by_hand() -> None:
    # sqrt(1/3 * 2/4) with l=1, r=3, t=4, b=2
    value = centerness(torch.tensor([[1.0, 4.0, 3.0, 2.0], [5.0, 7.0, 5.0, 7.0]]))
    assert value.tolist() == pytest.approx([math.sqrt(1 / 6), 1.0])


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_giou_by_hand(smooth: float) -> None:
    # predicted 2 x 2 left of the point, target 2 x 4 around it: boxes -2..0 x -1..1 and
    # -1..1 x -2..2. I = 1 * 2, U = 4 + 8 - 2 = 10, enclosing -2..1 x -2..2 = 12
    predicted = torch.tensor([[2.0, 1.0, 0.0, 1.0]])
    target = torch.tensor([[1.0, 2.0, 1.0, 2.0]])
    expected = (2 + smooth) / (10 + smooth) - 2 / 12
    assert giou_of_distances(predicted, target, smooth).item() == pytest.approx(expected)


def test_giou_equals_torchvision() -> None:
    from torchvision.ops import generalized_box_iou

    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.rand((2, 50, 4), generator=generator) + 0.1
    origin = torch.zeros(50, 2)
    expected = generalized_box_iou(
        distances_to_boxes(origin, predicted), distances_to_boxes(origin, target)
    ).diag()
    torch.testing.assert_close(giou_of_distances(predicted, target), expected)
