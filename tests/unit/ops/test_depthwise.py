"""Depthwise convs against torch's own, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor

from meinst.ops.depthwise import depthwise_conv2d


def made(channels: int, size: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(2, channels, height, width, generator=generator)
    weight = torch.randn(channels, 1, size, size, generator=generator)
    bias = torch.randn(channels, generator=generator)
    return feature, weight, bias


def test_no_images() -> None:
    feature, weight, bias = (t.requires_grad_() for t in made(4, 3, 6, 6))
    found = depthwise_conv2d(feature[:0], weight, bias, 2, same=True)
    assert found.shape == (0, 4, 3, 3)
    found.sum().backward()
    assert not weight.grad.any()


def test_same_leaves_out_the_first_row_and_column_of_even_maps() -> None:
    # A kernel of ones, stride 2: of a map of 4 it sees pixels 0..2 and 2..3, of one of 3 pixels
    # 0..1 and 1..2. Rows hold 1, 10, 100 (, 1000), all columns alike.
    for height, sums in ((4, (111, 1100)), (3, (11, 110))):
        rows = 10.0 ** torch.arange(height)
        feature = rows.view(1, 1, height, 1).expand(1, 1, height, 4)
        found = depthwise_conv2d(feature, torch.ones(1, 1, 3, 3), None, 2, same=True)
        assert found.tolist() == [[[[3 * total, 2 * total] for total in sums]]]


@pytest.mark.parametrize(("height", "width"), [(12, 20), (13, 20), (12, 7), (3, 2), (1, 1)])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize(("stride", "same"), [(1, False), (2, False), (1, True), (2, True)])
def test_results_and_gradients_are_torchs(
    height: int, width: int, size: int, stride: int, same: bool
) -> None:
    given = made(17, size, height, width)
    before = [t.clone() for t in given]
    ours = [t.clone().requires_grad_() for t in given]
    theirs = [t.double().requires_grad_() for t in given]
    ours[0] = given[0].contiguous(memory_format=torch.channels_last).requires_grad_()
    found = depthwise_conv2d(*ours, stride, same)
    if same:
        expected = conv2d_same(*theirs, (stride, stride), groups=17)
    else:
        expected = F.conv2d(*theirs, stride, size // 2, groups=17)
    torch.testing.assert_close(found, expected.float())
    with torch.no_grad():
        assert torch.equal(depthwise_conv2d(*ours, stride, same), found)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    for gradient, wanted in zip(
        torch.autograd.grad(found, ours, slope),
        torch.autograd.grad(expected, theirs, slope.double()),
        strict=True,
    ):
        torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-4)
    for tensor, kept in zip(given, before, strict=True):
        assert torch.equal(tensor, kept)


def test_the_same_bits_again() -> None:
    feature, weight, _ = made(70, 5, 24, 24)
    weight.requires_grad_()
    first, second = (
        torch.autograd.grad(
            depthwise_conv2d(feature, weight, None, 1, same=False).sin().sum(), weight
        )
        for _ in range(2)
    )
    assert torch.equal(*first, *second)


def test_in_mixed_precision_it_is_torchs() -> None:
    feature, weight, bias = (t.requires_grad_() for t in made(4, 3, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise_conv2d(feature, weight, bias, 1, same=False)
        expected = F.conv2d(feature, weight, bias, padding=1, groups=4)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert weight.grad.dtype == torch.float32
