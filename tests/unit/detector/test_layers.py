import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meinst.detector import layers
from meinst.detector.fpn import FPN
from meinst.detector.layers import (
    DeformableConv,
    DepthwiseConv,
    FastConv,
    GroupNorm,
    conv2d_shared_input,
    use_depthwise_convs,
    use_fast_convs,
)
from meinst.ops.conv2d import conv2d_few_outputs


def bilinear(feature: np.ndarray, y: float, x: float) -> np.ndarray:
    """Sample ``(C, H, W)`` at a fractional position: ``(C,)``; zero outside."""
    total = np.zeros(feature.shape[0])
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < feature.shape[1] and 0 <= column < feature.shape[2]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                total += weight * feature[:, row, column]
    return total


def by_hand(feature, offset, weight, mask):
    """Deformable convolution version 1 (mask of ones) and 2, tap by tap."""
    _, height, width = feature.shape
    result = np.zeros((weight.shape[0], height, width))
    for row in range(height):
        for column in range(width):
            for tap in range(9):
                dy, dx = offset[2 * tap, row, column], offset[2 * tap + 1, row, column]
                place = row + tap // 3 - 1 + dy, column + tap % 3 - 1 + dx
                sample = bilinear(feature, *place) * mask[tap, row, column]
                result[:, row, column] += weight[:, :, tap // 3, tap % 3] @ sample
    return result


@pytest.mark.parametrize("modulated", [False, True])
def test_equals_bilinear_sampling_tap_by_tap(modulated: bool) -> None:
    torch.manual_seed(0)
    conv = DeformableConv(3, modulated)
    torch.nn.init.normal_(conv.offset.weight, std=0.5)
    feature = torch.randn(1, 3, 5, 6)
    with torch.no_grad():
        found, outputs = conv(feature)[0], conv.offset(feature)[0]
        mask = outputs[18:].sigmoid() if modulated else torch.ones(9, 5, 6)
        offsets = outputs[:18]
        assert offsets.abs().max() > 1  # taps reach beyond their neighbours
        expected = by_hand(feature[0].numpy(), offsets.numpy(), conv.weight.numpy(), mask.numpy())
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("modulated", "factor"), [(False, 1.0), (True, 0.5)])
def test_deformable_conv_without_offsets_is_a_plain_conv(modulated: bool, factor: float) -> None:
    # The modulation weights of version 2 are then sigmoid(0) = 1/2.
    torch.manual_seed(1)
    conv = DeformableConv(4, modulated)
    torch.nn.init.zeros_(conv.offset.weight)
    torch.nn.init.zeros_(conv.offset.bias)
    feature = torch.randn(2, 4, 7, 5)
    expected = factor * torch.nn.functional.conv2d(feature, conv.weight, padding=1)
    torch.testing.assert_close(conv(feature), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_traced_networks_contain_the_operator_of_torchvision(modulated: bool) -> None:
    import torchvision  # noqa: F401 - its import cannot be traced

    # OpenVINO reads traces, ONNX's exporter uses torch.export; both support this operator.
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


def fast_conv(seed: int = 0) -> tuple[nn.Sequential, Tensor]:
    """A network with one fast conv, and a map that is large enough for it."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(48, 50, 3, padding=1))
    use_fast_convs(network)
    assert type(network[0]) is FastConv
    return network, torch.randn(1, 48, 16, 15)


def calls_of_winograd(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The inputs of all later calls of Winograd's conv."""
    calls: list[Tensor] = []

    def recorded(feature: Tensor, *convs: Any) -> list[Tensor]:
        calls.append(feature)
        return winograd(feature, *convs)

    winograd = layers.winograd_convs2d
    monkeypatch.setattr(layers, "winograd_convs2d", recorded)
    return calls


def torch_conv(network: nn.Sequential, feature: Tensor) -> Tensor:
    conv = network[0]
    bias = None if conv.bias is None else conv.bias.double()
    return nn.functional.conv2d(feature.double(), conv.weight.double(), bias, padding=1)


@torch.no_grad()
def assert_up_to_date(network: nn.Sequential, feature: Tensor) -> None:
    torch.testing.assert_close(
        network(feature).double(), torch_conv(network, feature), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_group_norm_equals_torch_with_gradients(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    tested, reference = GroupNorm(4, 12), nn.GroupNorm(4, 12)
    with torch.no_grad():
        tested.weight.uniform_(0.5, 2)
        tested.bias.normal_()
    reference.load_state_dict(tested.state_dict())
    feature, upstream = torch.randn(2, 2, 12, 9, 7).to(kind)
    results = []
    for norm in (tested, reference):
        inputs = feature.to(memory_format=torch.channels_last).requires_grad_()
        result = norm(inputs)
        assert result.is_contiguous(memory_format=torch.channels_last)
        result.backward(upstream)
        results.append((result, inputs.grad, norm.weight.grad, norm.bias.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_gradients_of_one_column_are_exact_in_mixed_precision() -> None:
    # oneDNN leaves the bfloat16 gradient of the weights uninitialised here.
    torch.manual_seed(0)
    pyramid = FPN((8,), 16, 3)
    feature, gradients = torch.randn(1, 16, 2, 1), []
    for mixed in (False, True):
        pyramid.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            p6 = pyramid.net.extra_blocks["p6"](feature)
            p7 = pyramid.net.extra_blocks["p7"](p6.relu())
        assert (p6.dtype, p7.dtype, p7.shape[2:]) == (torch.float32, torch.float32, (1, 1))
        (p6.sum() + p7.sum()).backward()
        gradients.append([weight.grad.clone() for weight in pyramid.net.extra_blocks.parameters()])
    for exact, found in zip(*gradients, strict=True):
        assert torch.equal(found, exact)


def test_only_suitable_convs_become_fast() -> None:
    network = nn.ModuleDict(
        {
            "dense": nn.Conv2d(48, 48, 3, padding=1, bias=False),
            "few": nn.Conv2d(256, 47, 3, padding=1),
            "strided": nn.Conv2d(64, 64, 3, padding=1, stride=2),
            "unpadded": nn.Conv2d(64, 64, 3),
            "dilated": nn.Conv2d(64, 64, 3, padding=2, dilation=2),
            "grouped": nn.Conv2d(64, 64, 3, padding=1, groups=2),
            "pointwise": nn.Conv2d(64, 64, 1),
            "reflecting": nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"),
        }
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random = torch.get_rng_state()
    use_fast_convs(network)
    assert [name for name, conv in network.items() if isinstance(conv, FastConv)] == ["dense"]
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        network["dense"](torch.randn(1, 48, 16, 16))
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_winograd_is_used_without_gradients(
    context: Callable[[], torch.no_grad], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, feature = fast_conv()
    calls = calls_of_winograd(monkeypatch)
    with context():
        found = network(feature)
        assert len(calls) == 1
        network(feature[..., :4, :15])  # 1 x 4 tiles
        with torch.autocast("cpu", torch.bfloat16):
            assert network(feature).dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), torch_conv(network, feature), atol=1e-5, rtol=0)
    with context():
        assert copy.deepcopy(network).double()(feature.double()).dtype == torch.float64
    assert len(calls) == 1


def test_training_uses_the_conv_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    network, feature = fast_conv()
    calls = calls_of_winograd(monkeypatch)
    plain = nn.Conv2d(48, 50, 3, padding=1)
    plain.load_state_dict(network[0].state_dict())
    found = network(feature)
    assert torch.equal(found, plain(feature))
    found.square().sum().backward()
    plain(feature).square().sum().backward()
    assert torch.equal(network[0].weight.grad, plain.weight.grad)
    assert calls == []


def change_in_place(conv: nn.Conv2d) -> None:
    conv.weight.data.copy_(-conv.weight.data)  # as Lightning swaps averages


def replace_parameter(conv: nn.Conv2d) -> None:
    conv.weight = nn.Parameter(torch.randn_like(conv.weight) / 20)


def load_state(conv: nn.Conv2d) -> None:
    conv.load_state_dict({name: tensor / 3 for name, tensor in conv.state_dict().items()})


@pytest.mark.parametrize("change", [change_in_place, replace_parameter, load_state])
def test_changed_weights_take_effect(change: Callable[[nn.Conv2d], None]) -> None:
    network, feature = fast_conv()
    assert_up_to_date(network, feature)
    before = network[0].weight.detach().clone()
    change(network[0])
    assert not torch.equal(network[0].weight, before)
    assert_up_to_date(network, feature)


def test_frozen_weights_are_transformed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network, feature = fast_conv()
    network[0].freeze()
    monkeypatch.setattr(layers, "transform_weight", None)  # must not be called again
    assert_up_to_date(network, feature)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert_up_to_date(other, feature)


def test_weights_are_transformed_again_only_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    network, feature = fast_conv()
    calls = []

    def recorded(weight: Tensor) -> Tensor:
        calls.append(weight)
        return transform(weight)

    transform = layers.transform_weight
    monkeypatch.setattr(layers, "transform_weight", recorded)
    for _ in range(3):
        assert_up_to_date(network, feature)
    assert len(calls) == 1
    change_in_place(network[0])
    assert_up_to_date(network, feature)
    assert len(calls) == 2


def test_copies_do_not_carry_what_can_be_computed_again() -> None:
    network, feature = fast_conv()
    size = len(pickle.dumps(network))
    assert_up_to_date(network, feature)
    assert len(pickle.dumps(network)) == size


def test_frozen_weights_follow_conversions(monkeypatch: pytest.MonkeyPatch) -> None:
    network, feature = fast_conv()
    network[0].freeze()
    network.double()
    network[0].weight.data *= 0.5
    assert_up_to_date(network.float(), feature)
    network[0].freeze()
    network.to("cpu")
    monkeypatch.setattr(layers, "transform_weight", None)  # must not be called again
    assert_up_to_date(network, feature)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_traced_networks_contain_the_conv_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    network, feature = fast_conv()
    calls = calls_of_winograd(monkeypatch)
    with torch.no_grad():
        traced = torch.jit.trace(network.eval(), feature, check_trace=False)
        exported = torch.export.export(network, (feature,))
    assert "aten::_convolution" in str(traced.inlined_graph)
    assert "aten.conv2d" in str(exported)
    assert calls == []


@torch.no_grad()
def test_convs_with_shared_input_transform_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network = nn.ModuleList([nn.Conv2d(48, 50, 3, padding=1), nn.Conv2d(48, 64, 3, padding=1)])
    use_fast_convs(network)
    feature = torch.randn(2, 48, 16, 15)
    expected = [conv(feature) for conv in network]
    calls = calls_of_winograd(monkeypatch)
    for result, alone in zip(conv2d_shared_input(feature, network), expected, strict=True):
        assert torch.equal(result, alone)
    assert len(calls) == 1


@torch.no_grad()
def test_shared_input_of_convs_that_are_not_all_fast() -> None:
    torch.manual_seed(0)
    network = nn.ModuleList([nn.Conv2d(48, 50, 3, padding=1), DeformableConv(48, False)])
    use_fast_convs(network)
    for feature in (torch.randn(1, 48, 16, 15), torch.randn(1, 48, 4, 4)):
        for result, conv in zip(conv2d_shared_input(feature, network), network, strict=True):
            assert torch.equal(result, conv(feature))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 7, 1, 1), (2, 5, 1, 6), (3, 40, 9, 13)])
@pytest.mark.parametrize("outputs", [1, 2, 5, 6])
def test_conv_with_few_outputs_equals_torch(
    outputs: int, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    feature = torch.randn(shape).contiguous(memory_format=layout)
    weight, bias = torch.randn(outputs, shape[1], 3, 3) / 20, torch.randn(outputs)
    expected = nn.functional.conv2d(feature.double(), weight.double(), bias.double(), padding=1)
    with torch.no_grad():
        found = conv2d_few_outputs(feature, weight, bias)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_conv_with_few_outputs_has_gradients_and_mixed_precision() -> None:
    torch.manual_seed(0)
    feature, weight, bias = torch.randn(1, 8, 5, 6), torch.randn(2, 8, 3, 3), torch.randn(2)
    weight.requires_grad_()
    found = conv2d_few_outputs(feature, weight, bias)
    assert torch.equal(found, nn.functional.conv2d(feature, weight, bias, padding=1))
    found.sum().backward()
    assert weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert conv2d_few_outputs(feature, weight, bias).dtype == torch.bfloat16


def test_only_suitable_convs_become_depthwise_convs() -> None:
    from timm.layers.conv2d_same import Conv2dSame

    suitable = [
        nn.Conv2d(6, 6, 3, padding=1, groups=6),
        nn.Conv2d(6, 6, 5, padding=2, groups=6, stride=2, bias=False),
        Conv2dSame(6, 6, 5, groups=6, stride=2, bias=False),
        Conv2dSame(6, 6, 3, groups=6),
    ]
    others = [
        nn.Conv2d(6, 6, 3, padding=1),
        nn.Conv2d(6, 12, 3, padding=1, groups=6),
        nn.Conv2d(6, 6, 3, padding=1, groups=3),
        nn.Conv2d(6, 6, 3, padding=0, groups=6),
        nn.Conv2d(6, 6, 4, padding=2, groups=6),
        nn.Conv2d(6, 6, 3, padding=2, groups=6, dilation=2),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"),
        Conv2dSame(6, 6, 3, groups=6, stride=3),
        Conv2dSame(6, 6, 1, groups=6, stride=2),
        Conv2dSame(6, 6, 3, stride=2),
    ]
    types = [type(module) for module in others]
    feature = torch.randn(2, 6, 10, 7)
    expected = [module(feature) for module in suitable]
    network = nn.ModuleList(suitable + others)
    use_depthwise_convs(network)
    converted, rest = network[: len(suitable)], network[len(suitable) :]
    assert {type(module) for module in converted} == {DepthwiseConv}
    assert [type(module) for module in rest] == types
    for module, before in zip(converted, expected, strict=True):
        torch.testing.assert_close(module(feature), before)
