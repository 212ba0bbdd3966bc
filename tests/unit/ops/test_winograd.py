import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d

from meinst.ops import winograd
from meinst.ops.winograd import transform_weight, winograd_convs2d


def random_inputs(
    seed: int, batch: int, channels: int, outputs: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Feature, weight and bias that give results of about 1."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator)
    return (
        feature.contiguous(memory_format=torch.channels_last),
        weight / (9 * max(channels, 1)) ** 0.5,
        torch.randn(outputs, generator=generator),
    )


def winograd_conv2d(feature: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
    (result,) = winograd_convs2d(feature, [transformed], [bias])
    return result


def in_double(feature: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.double()
    return conv2d(feature.double(), weight.double(), bias, padding=1)


@pytest.mark.parametrize("empty", [(0, 3, 2, 5, 6), (2, 3, 0, 5, 6)])
def test_empty_input_gives_empty_output(empty: tuple[int, ...]) -> None:
    feature, weight, bias = random_inputs(0, *empty)
    found = winograd_conv2d(feature, transform_weight(weight), bias)
    assert found.shape == (empty[0], empty[2], 5, 6)


def test_no_input_channels_give_the_bias() -> None:
    feature, weight, bias = random_inputs(0, 2, 0, 3, 5, 6)
    found = winograd_conv2d(feature, transform_weight(weight), bias)
    assert torch.equal(found, bias.view(1, 3, 1, 1).expand(2, 3, 5, 6))


def test_one_row_by_hand() -> None:
    # Output x is 1 * d[x - 1] + 2 * d[x] + 3 * d[x + 1], and the bias 10: 2 * 1 + 3 * 4 + 10 = 24.
    feature = torch.tensor([1.0, 4, 0, -2, 8]).view(1, 1, 1, 5)
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1] = torch.tensor([1.0, 2, 3])
    found = winograd_conv2d(feature, transform_weight(weight), torch.tensor([10.0]))
    expected = torch.tensor([24.0, 1 + 8 + 10, 4 - 6 + 10, -4 + 24 + 10, -2 + 16 + 10])
    torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-5)


def test_matrices_compute_a_conv_in_one_dimension() -> None:
    # In one dimension: out[n] = d[n] * g[0] + d[n + 1] * g[1] + d[n + 2] * g[2], n = 0 .. 3.
    rng = np.random.default_rng(0)
    pixels, weights, outputs = winograd._matrices()
    d, g = rng.normal(size=6), rng.normal(size=3)
    found = outputs @ ((pixels @ d) * (weights @ g))
    np.testing.assert_allclose(found, np.correlate(d, g), atol=1e-12)


@pytest.mark.parametrize("bias_given", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1, 1),
        (2, 5, 7, 1, 1),
        (1, 16, 16, 4, 4),
        (3, 20, 33, 5, 9),
        (2, 37, 12, 13, 17),
        (1, 64, 48, 2, 70),
        (1, 24, 24, 70, 3),
        (2, 96, 96, 33, 46),
    ],
)
def test_equals_torch_in_double_precision(shape: tuple[int, ...], bias_given: bool) -> None:
    feature, weight, bias = random_inputs(1, *shape)
    given = bias if bias_given else None
    found = winograd_conv2d(feature, transform_weight(weight), given)
    expected = in_double(feature, weight, given)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - expected).abs().max() <= 1e-5


def test_errors_are_small_at_the_sizes_of_a_head() -> None:
    feature, weight, bias = random_inputs(2, 1, 256, 256, 25, 34)
    found = winograd_conv2d(feature.relu(), transform_weight(weight), bias)
    expected = in_double(feature.relu(), weight, bias)
    assert (found - expected).abs().max() <= 3e-6 * expected.abs().max()


@pytest.mark.parametrize("tiles", [1, 3, 7, 1000])
def test_chunk_size_does_not_change_results(tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    feature, weight, bias = random_inputs(3, 3, 12, 10, 11, 14)  # 3 * 3 * 4 tiles
    expected = in_double(feature, weight, bias)
    monkeypatch.setattr(winograd, "CHUNK", tiles)
    found = winograd_conv2d(feature, transform_weight(weight), bias)
    assert (found - expected).abs().max() <= 1e-5


def test_same_input_gives_the_same_bits() -> None:
    feature, weight, bias = random_inputs(4, 2, 64, 64, 50, 68)
    transformed = transform_weight(weight)
    first = winograd_conv2d(feature, transformed, bias)
    for _ in range(3):
        assert torch.equal(winograd_conv2d(feature, transformed, bias), first)
    assert torch.equal(transform_weight(weight), transformed)


def test_any_memory_layout_is_accepted_and_arguments_are_not_changed() -> None:
    feature, weight, bias = random_inputs(5, 2, 9, 6, 10, 7)
    transformed = transform_weight(weight)
    before = [tensor.clone() for tensor in (feature, weight, transformed, bias)]
    expected = winograd_conv2d(feature, transformed, bias)
    layouts = [feature.contiguous(), feature.repeat(1, 2, 1, 1)[:, :9], feature.mT.contiguous().mT]
    for layout in layouts:
        assert torch.equal(winograd_conv2d(layout, transformed, bias), expected)
    every_other = torch.stack((bias, bias), dim=1)[:, 0]
    assert torch.equal(winograd_conv2d(feature, transformed, every_other), expected)
    for tensor, then in zip((feature, weight, transformed, bias), before, strict=True):
        assert torch.equal(tensor, then)


def test_weights_of_any_memory_layout() -> None:
    _, weight, _ = random_inputs(6, 1, 9, 6, 1, 1)
    last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(transform_weight(last), transform_weight(weight))
    assert transform_weight(weight).shape == (36, 9, 6)


def test_several_convs_equal_single_convs_bit_for_bit() -> None:
    feature, weight, bias = random_inputs(7, 2, 20, 16, 13, 30)
    _, wider, wider_bias = random_inputs(8, 1, 20, 40, 1, 1)
    transformed = [transform_weight(weight), transform_weight(wider), transform_weight(weight)]
    biases = [bias, wider_bias, None]
    found = winograd_convs2d(feature, transformed, biases)
    assert [result.shape[1] for result in found] == [16, 40, 16]
    for result, *one in zip(found, transformed, biases, strict=True):
        assert torch.equal(result, winograd_conv2d(feature, *one))
