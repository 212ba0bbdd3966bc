import math
from typing import Any

import pytest
import torch

from meinst.detector.fpn import FPN
from meinst.detector.head import CodesOnDemand, Head, HeadOptions


def make_head(**changes: Any) -> Head:
    torch.manual_seed(0)
    return Head(32, 3, 5, (8, 16), HeadOptions(num_convs=1, norm_groups=8, **changes))


def features(images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn((images, 32, *size), generator=generator) for size in ((4, 6), (2, 3))]


def test_output_shapes_and_order_of_points() -> None:
    outputs = make_head()(features())
    assert outputs.logits.shape == (2, 30, 3)
    assert outputs.boxes.shape == (2, 30, 4)
    assert outputs.centerness.shape == (2, 30)
    assert outputs.codes.dense().shape == (2, 30, 5)
    assert outputs.level_sizes == (24, 6)
    assert outputs.points[7].tolist() == [12, 12]  # row 1, column 1 of six columns
    assert outputs.strides.tolist() == [8.0] * 24 + [16.0] * 6


def test_predictions_belong_to_their_points() -> None:
    head, maps = make_head().eval(), features(1)
    outputs = head(maps)
    by_hand = head.codes(head.mask_tower(maps[0]))[0, :, 1, 2]  # row 1, column 2
    found = outputs.codes[torch.tensor([0]), torch.tensor([6 + 2])]
    torch.testing.assert_close(found, by_hand[None])
    by_hand = (head.boxes(head.box_tower(maps[1])) * head.scales[1]).relu()[0, :, 1, 0]
    torch.testing.assert_close(outputs.boxes[0, 24 + 3], by_hand)
    by_hand = head.centerness(head.box_tower(maps[0]))[0, 0, 3, 5]
    torch.testing.assert_close(outputs.centerness[0, 3 * 6 + 5], by_hand)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_codes_on_demand_equal_the_dense_conv(layout: torch.memory_format) -> None:
    head = make_head()
    outputs = head([level.to(memory_format=layout) for level in features()])
    assert isinstance(outputs.codes, CodesOnDemand)
    dense = outputs.codes.dense()
    # All points of both images and levels, shuffled, some of them twice.
    image, point = torch.meshgrid(torch.arange(2), torch.arange(30), indexing="ij")
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1)).repeat(2)[:70]
    image, point = image.flatten()[order], point.flatten()[order]
    found = outputs.codes[image, point]
    torch.testing.assert_close(found, dense[image, point])

    weights = list(head.mask_tower.parameters()) + list(head.codes.parameters())
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    gradients = torch.autograd.grad((found * upstream).sum(), weights, retain_graph=True)
    expected = torch.autograd.grad((dense[image, point] * upstream).sum(), weights)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference)


def test_codes_of_no_points_and_of_missing_points() -> None:
    head = make_head()
    codes = head(features()).codes
    none = torch.zeros(0, dtype=torch.int64)
    assert codes[none, none].shape == (0, 5)
    codes[none, none].sum().backward()
    for name, parameter in [*head.codes.named_parameters(), *head.mask_tower.named_parameters()]:
        assert parameter.grad is not None, name  # otherwise processes would wait for each other
        assert parameter.grad.abs().sum() == 0
    with pytest.raises(IndexError, match="0 and 29"):
        codes[none.new_zeros(2), torch.tensor([3, 30])]


def test_codes_are_float32_in_mixed_precision() -> None:
    image, point = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([26, 3, 4, 23, 10])
    gradients, found = [], []
    for mixed in (False, True):
        head = make_head()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            outputs = head(features())
            inside = outputs.codes[image, point]
        codes = outputs.codes[image, point]
        assert codes.dtype == torch.float32
        assert torch.equal(codes, inside)  # computed in float32 from rounded features
        codes.square().sum().backward()
        found.append(codes)
        gradients.append([p.grad for p in head.mask_tower.parameters()] + [head.codes.weight.grad])
    scale = found[0].abs().max().item()
    torch.testing.assert_close(found[1], found[0], atol=0.02 * scale, rtol=0)
    for exact, mixed in zip(*gradients, strict=True):
        assert (mixed - exact).norm() < 0.1 * exact.norm()


def test_initial_scores_are_one_percent_and_distances_are_not_negative() -> None:
    outputs = make_head()(features())
    assert abs(outputs.logits.sigmoid().mean().item() - 0.01) < 0.005
    assert (outputs.boxes >= 0).all()
    assert make_head().logits.bias[0].item() == -torch.tensor(99.0).log().item()


def test_initial_weights_have_standard_deviation_one_hundredth() -> None:
    weight = make_head().codes.weight
    assert abs(weight.std().item() - 0.01) < 0.001
    assert make_head().codes.bias.abs().sum() == 0


def test_every_parameter_gets_a_gradient() -> None:
    head = make_head()
    outputs = head(features())
    # Squares, since the ReLU of the boxes blocks part of the gradients.
    total = outputs.logits.sum() + outputs.boxes.square().sum()
    codes = outputs.codes[torch.tensor([0, 1]), torch.tensor([7, 28])]
    (total + outputs.centerness.sum() + codes.square().sum()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert math.isfinite(parameter.grad.abs().sum().item()), name


def test_pyramid_has_three_or_five_levels() -> None:
    maps = [torch.randn(1, c, s, s) for c, s in ((8, 16), (16, 8), (24, 4))]
    levels = FPN((8, 16, 24), 12, 5)(maps)
    assert [tuple(level.shape) for level in levels] == [
        (1, 12, 16, 16),
        (1, 12, 8, 8),
        (1, 12, 4, 4),
        (1, 12, 2, 2),
        (1, 12, 1, 1),
    ]
    assert len(FPN((8, 16, 24), 12, 3)(maps)) == 3
    with pytest.raises(ValueError, match="3 or 5 levels, got 4"):
        FPN((8, 16, 24), 12, 4)


def test_coarsest_levels_come_from_p5() -> None:
    pyramid = FPN((8, 16, 24), 12, 5)
    maps = [torch.randn(1, c, s, s) for c, s in ((8, 16), (16, 8), (24, 4))]
    levels = pyramid(maps)
    extra = pyramid.net.extra_blocks
    torch.testing.assert_close(levels[3], extra.p6(levels[2]))
    torch.testing.assert_close(levels[4], extra.p7(levels[3].relu()))
