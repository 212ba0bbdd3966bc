import math

import numpy as np
import pytest
import torch

from meinst.detector.layers import DeformableConv, LargeKernelPredictor


def bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """``(C,)`` at a fractional place of ``(C, H, W)``; zeros outside."""
    total = np.zeros(feature.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < feature.shape[1] and 0 <= column < feature.shape[2]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                total += weight * feature[:, row, column]
    return total


def by_hand(feature, offset, weight, mask):
    """Deformable convolution v1 (mask of ones) and v2, tap by tap."""
    _, height, width = feature.shape
    result = np.zeros((weight.shape[0], height, width))
    for row in range(height):
        for column in range(width):
            for tap in range(9):
                dy, dx = offset[2 * tap, row, column], offset[2 * tap + 1, row, column]
                place = row + tap // 3 - 1 + dy, column + tap % 3 - 1 + dx
                seen = bilinear(feature, *place) * mask[tap, row, column]
                result[:, row, column] += weight[:, :, tap // 3, tap % 3] @ seen
    return result


@pytest.mark.parametrize("modulated", [False, True])
def test_equals_bilinear_sampling_tap_by_tap(modulated: bool) -> None:
    torch.manual_seed(0)
    conv = DeformableConv(3, modulated)
    torch.nn.init.normal_(conv.offset.weight, std=0.5)
    feature = torch.randn(1, 3, 5, 6)
    with torch.no_grad():
        found, said = conv(feature)[0], conv.offset(feature)[0]
        mask = said[18:].sigmoid() if modulated else torch.ones(9, 5, 6)
        assert said[:18].abs().max() > 1  # taps reach beyond their neighbours
        wanted = by_hand(feature[0].numpy(), said[:18].numpy(), conv.weight.numpy(), mask.numpy())
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize(("modulated", "factor"), [(False, 1.0), (True, 0.5)])
def test_without_offsets_it_is_a_plain_conv(modulated: bool, factor: float) -> None:
    # Version 2's weights are sigmoid(0) = 1/2 then.
    torch.manual_seed(1)
    conv = DeformableConv(4, modulated)
    torch.nn.init.zeros_(conv.offset.weight)
    torch.nn.init.zeros_(conv.offset.bias)
    feature = torch.randn(2, 4, 7, 5)
    wanted = factor * torch.nn.functional.conv2d(feature, conv.weight, padding=1)
    torch.testing.assert_close(conv(feature), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_recorded_networks_hold_torchvisions_operator(modulated: bool) -> None:
    import torchvision  # noqa: F401 - its import cannot be recorded

    # OpenVINO reads traces, ONNX's exporter torch.export; both know this operator.
    torch.manual_seed(3)
    conv = DeformableConv(4, modulated).eval()
    torch.nn.init.normal_(conv.offset.weight, std=0.5)
    feature = torch.randn(1, 4, 6, 7)
    traced = torch.jit.trace(conv, feature)
    exported = torch.export.export(conv, (feature,))
    assert "torchvision::deform_conv2d" in str(traced.inlined_graph)
    assert "torchvision.deform_conv2d" in str(exported)
    for module in (traced, exported.module()):
        torch.testing.assert_close(module(feature), conv(feature), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_and_weights_get_gradients(modulated: bool) -> None:
    torch.manual_seed(2)
    conv = DeformableConv(4, modulated)
    conv(torch.randn(1, 4, 6, 6)).square().sum().backward()
    for name, parameter in conv.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name


def test_large_kernels_see_a_square() -> None:
    torch.manual_seed(3)
    predictor = LargeKernelPredictor(1, 2, kernel=5)
    feature = torch.zeros(1, 1, 9, 11, requires_grad=True)
    result = predictor(feature)
    assert result.shape == (1, 2, 9, 11)
    result[0, :, 4, 5].sum().backward()
    assert feature.grad is not None
    # Separable kernels of 5 see two pixels to each side, both ways.
    wanted = torch.zeros(9, 11, dtype=torch.bool)
    wanted[2:7, 3:8] = True
    assert torch.equal(feature.grad[0, 0] != 0, wanted)


def test_large_kernels_are_two_ways_through_separable_convs() -> None:
    # A kernel of ones, 3 x 3, on a map of ones, 2 for the two ways: 9 * 2 inside, 4 * 2 at corners.
    predictor = LargeKernelPredictor(1, 1, kernel=3)
    for name, parameter in predictor.named_parameters():
        torch.nn.init.constant_(parameter, float(name.endswith("weight")))
    with torch.no_grad():
        result = predictor(torch.ones(1, 1, 4, 5))[0, 0]
    assert result[1:-1, 1:-1].unique().tolist() == [18.0]
    assert result[0, 0] == result[-1, -1] == 8.0
    assert result[0, 2] == result[2, 0] == 12.0
