"""Depthwise convs compared with torch, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor

from meinst.ops.depthwise import depthwise_conv2d


def random_inputs(
    channels: int, size: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(2, channels, height, width, generator=generator)
    weight = torch.randn(channels, 1, size, size, generator=generator)
    bias = torch.randn(channels, generator=generator)
    return feature, weight, bias


def test_no_images() -> None:
    feature, weight, bias = (t.requires_grad_() for t in random_inputs(4, 3, 6, 6))
    found = depthwise_conv2d(feature[:0], weight, bias, 2, same=True)
    assert found.shape == (0, 4, 3, 3)
    found.sum().backward()
    assert not weight.grad.any()


def test_same_omits_the_first_row_and_column_of_zeros_for_even_maps() -> None:
    # A kernel of ones with stride 2 covers pixels 0..2 and 2..3 of 4, and 0..1 and 1..2 of 3. Rows
    # contain 1, 10, 100 (and 1000).
    for height, sums in ((4, (111, 1100)), (3, (11, 110))):
        rows = 10.0 ** torch.arange(height)
        feature = rows.view(1, 1, height, 1).expand(1, 1, height, 4)
        found = depthwise_conv2d(feature, torch.ones(1, 1, 3, 3), None, 2, same=True)
        assert found.tolist() == [[[[3 * total, 2 * total] for total in sums]]]


@pytest.mark.parametrize(("height", "width"), [(12, 20), (13, 20), (12, 7), (3, 2), (1, 1)])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize(("stride", "same"), [(1, False), (2, False), (1, True), (2, True)])
def test_results_and_gradients_equal_torch(
    height: int, width: int, size: int, stride: int, same: bool
) -> None:
    inputs = random_inputs(17, size, height, width)
    before = [t.clone() for t in inputs]
    leaves = [t.clone().requires_grad_() for t in inputs]
    reference = [t.double().requires_grad_() for t in inputs]
    leaves[0] = inputs[0].contiguous(memory_format=torch.channels_last).requires_grad_()
    found = depthwise_conv2d(*leaves, stride, same)
    if same:
        expected = conv2d_same(*reference, (stride, stride), groups=17)
    else:
        expected = F.conv2d(*reference, stride, size // 2, groups=17)
    torch.testing.assert_close(found, expected.float())
    with torch.no_grad():
        assert torch.equal(depthwise_conv2d(*leaves, stride, same), found)
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    for gradient, expected_gradient in zip(
        torch.autograd.grad(found, leaves, slope),
        torch.autograd.grad(expected, reference, slope.double()),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-4, atol=1e-4)
    for tensor, kept in zip(inputs, before, strict=True):
        assert torch.equal(tensor, kept)


def test_same_input_gives_the_same_bits() -> None:
    feature, weight, _ = random_inputs(70, 5, 24, 24)
    weight.requires_grad_()
    first, second = (
        torch.autograd.grad(
            depthwise_conv2d(feature, weight, None, 1, same=False).sin().sum(), weight
        )
        for _ in range(2)
    )
    assert torch.equal(*first, *second)


def test_equals_torch_in_mixed_precision() -> None:
    feature, weight, bias = (t.requires_grad_() for t in random_inputs(4, 3, 6, 6))
    with torch.autocast("cpu", torch.bfloat16):
        found = depthwise_conv2d(feature, weight, bias, 1, same=False)
        expected = F.conv2d(feature, weight, bias, padding=1, groups=4)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    found.float().sum().backward()
    assert weight.grad.dtype == torch.float32
