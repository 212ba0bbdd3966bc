import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from meinst.ops import deform_conv
from meinst.ops.deform_conv import deform_conv2d

Arguments = dict[str, Tensor]


def random_arguments(
    seed: int,
    *,
    batch: int = 2,
    channels: int = 12,
    size: tuple[int, int] = (11, 7),
    outputs: int = 10,
    kernel: tuple[int, int] = (3, 3),
    padding: int = 1,
    spread: float = 2.0,
    modulated: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Arguments:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    taps = kernel[0] * kernel[1]
    out = size[0] + 2 * padding - kernel[0] + 1, size[1] + 2 * padding - kernel[1] + 1
    arguments = {
        "feature": normal(batch, channels, *size),
        "offset": normal(batch, 2 * taps, *out) * spread,
        "weight": normal(outputs, channels, *kernel),
    }
    if modulated:
        arguments["mask"] = normal(batch, taps, *out).sigmoid()
    return arguments


def reference(
    feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, padding: int = 1
) -> Tensor:
    result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=padding, mask=mask)
    return result


def with_gradients(
    function: Callable[..., Tensor], arguments: Arguments, padding: int = 1
) -> Arguments:
    """The result and the gradients of a random linear function of it."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in arguments.items()}
    result = function(**leaves, padding=padding)
    generator = torch.Generator().manual_seed(99)
    result.backward(torch.randn(result.shape, generator=generator, dtype=result.dtype))
    found = {"result": result.detach()}
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        found[name] = leaf.grad
    return found


def assert_equal_to_torchvision(arguments: Arguments, padding: int = 1) -> None:
    results = with_gradients(deform_conv2d, arguments, padding)
    references = with_gradients(reference, arguments, padding)
    assert results.keys() == references.keys()
    for name, expected in references.items():
        assert results[name].shape == expected.shape, name
        limit = (2e-6 if name == "result" else 1e-5) * expected.abs().max()
        assert (results[name] - expected).abs().max() <= limit, name


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("empty", [{"batch": 0}, {"outputs": 0}, {"channels": 0}])
def test_empty_input_gives_empty_output(empty: dict[str, int], modulated: bool) -> None:
    arguments = random_arguments(0, modulated=modulated, **empty)
    found = with_gradients(deform_conv2d, arguments)
    assert found.pop("result").shape == (empty.get("batch", 2), empty.get("outputs", 10), 11, 7)
    for name, gradient in found.items():
        assert gradient.shape == arguments[name].shape
        assert not gradient.any()


def test_one_tap_by_hand() -> None:
    # A 1 x 1 kernel of weight 3 with mask 0.5 samples [[1, 2], [3, 8]] at y = 0.25, x = 0.5:
    # 0.75 * (1 + 2) / 2 + 0.25 * (3 + 8) / 2 = 2.5, and 3 * 0.5 * 2.5 = 3.75.
    feature = torch.tensor([[[[1.0, 2.0], [3.0, 8.0]]]], requires_grad=True)
    # The other three output pixels sample far outside.
    offset = torch.full((1, 2, 2, 2), -50.0)
    offset[0, :, 0, 0] = torch.tensor([0.25, 0.5])
    offset.requires_grad_()
    weight = torch.tensor([[[[3.0]]]], requires_grad=True)
    mask = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    result = deform_conv2d(feature, offset, weight, mask, padding=0)
    assert result.flatten().tolist() == [3.75, 0, 0, 0]
    result.sum().backward()
    assert feature.grad is not None
    assert offset.grad is not None
    assert weight.grad is not None
    assert mask.grad is not None
    # 1.5 times the bilinear weights 0.75 * 0.5 and 0.25 * 0.5.
    assert feature.grad.flatten().tolist() == [0.5625, 0.5625, 0.1875, 0.1875]
    # y: 1.5 * (5.5 - 1.5); x: 1.5 * (0.75 * (2 - 1) + 0.25 * (8 - 3)).
    assert offset.grad.flatten().tolist() == [6, 0, 0, 0, 3, 0, 0, 0]
    assert weight.grad.item() == 0.5 * 2.5
    assert mask.grad.flatten().tolist() == [3 * 2.5, 0, 0, 0]


def test_borders_by_hand() -> None:
    # A row of two pixels, 4 and 8, sampled before, on and after its ends, y = 0.
    places = torch.tensor([-1.5, -1.0, -0.75, 0.0, 1.0, 1.25, 2.0])
    expected = [0, 0, 0.25 * 4, 4, 8, 0.75 * 8, 0]
    # To the right of -1 is the first pixel; to the right of 1 nothing; at 2 and beyond neither.
    slopes = [0, 4, 4, 4, -8, -8, 0]
    feature = torch.tensor([[[[4.0, 8.0]]]])
    for place, value, slope in zip(places, expected, slopes, strict=True):
        offset = torch.zeros(1, 2, 1, 2)
        offset[0, 1, 0, 0] = place
        offset.requires_grad_()
        result = deform_conv2d(feature, offset, torch.ones(1, 1, 1, 1), padding=0)
        result[0, 0, 0, 0].backward()
        assert offset.grad is not None
        assert (result[0, 0, 0, 0].item(), offset.grad[0, 1, 0, 0].item()) == (value, slope)


def brute_force(
    feature: np.ndarray, offset: np.ndarray, weight: np.ndarray, mask: np.ndarray, padding: int
) -> np.ndarray:
    """Loop over pixels, taps and neighbours."""
    batch, _, height, width = feature.shape
    outputs, _, kernel_height, kernel_width = weight.shape
    result = np.zeros((batch, outputs, *offset.shape[2:]))
    for b, i, j in np.ndindex(batch, *offset.shape[2:]):
        for u, v in np.ndindex(kernel_height, kernel_width):
            tap = u * kernel_width + v
            y = i - padding + u + offset[b, 2 * tap, i, j]
            x = j - padding + v + offset[b, 2 * tap + 1, i, j]
            for row in (math.floor(y), math.floor(y) + 1):
                for column in (math.floor(x), math.floor(x) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column)) * mask[b, tap, i, j]
                        result[b, :, i, j] += (
                            share * weight[:, :, u, v] @ feature[b, :, row, column]
                        )
    return result


@pytest.mark.parametrize(
    ("kernel", "padding"), [((3, 3), 1), ((1, 1), 0), ((3, 1), 2), ((2, 4), 1)]
)
def test_equals_brute_force(kernel: tuple[int, int], padding: int) -> None:
    arguments = random_arguments(1, kernel=kernel, padding=padding, dtype=torch.float64)
    found = deform_conv2d(**arguments, padding=padding)
    expected = brute_force(*(tensor.numpy() for tensor in arguments.values()), padding)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0, 1e6])
def test_equals_torchvision(spread: float, modulated: bool) -> None:
    arguments = random_arguments(2, channels=40, size=(23, 17), modulated=modulated)
    arguments["offset"] *= spread
    assert_equal_to_torchvision(arguments)


@pytest.mark.parametrize("far", [1e30, math.inf])
def test_huge_and_infinite_offsets_give_zeros(far: float) -> None:
    # torchvision's gradients are NaN at infinity.
    arguments = random_arguments(14)
    arguments["offset"] = torch.copysign(torch.tensor(far), arguments["offset"])
    found = with_gradients(deform_conv2d, arguments)
    assert not any(tensor.any() for tensor in found.values())


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("step", [1.0, 0.5])
def test_equals_torchvision_on_pixels_and_borders(step: float, modulated: bool) -> None:
    arguments = random_arguments(3, size=(5, 4), modulated=modulated)
    arguments["offset"] = (arguments["offset"] / step).round() * step
    assert_equal_to_torchvision(arguments)


@pytest.mark.parametrize(
    ("kernel", "padding"), [((1, 1), 0), ((5, 5), 2), ((3, 1), 2), ((3, 3), 0)]
)
def test_other_kernels_equal_torchvision(kernel: tuple[int, int], padding: int) -> None:
    assert_equal_to_torchvision(random_arguments(4, kernel=kernel, padding=padding), padding)


def test_equals_torchvision_at_the_sizes_of_a_head() -> None:
    assert_equal_to_torchvision(
        random_arguments(5, batch=1, channels=256, outputs=256, size=(25, 34))
    )


@pytest.mark.parametrize("modulated", [False, True])
def test_gradients_equal_finite_differences(modulated: bool) -> None:
    arguments = random_arguments(
        6, channels=2, outputs=2, size=(3, 4), modulated=modulated, dtype=torch.float64
    )
    # A step must not cross a pixel, where slopes jump.
    whole = arguments["offset"].floor()
    arguments["offset"] = whole + (arguments["offset"] - whole).clamp(0.01, 0.99)
    leaves = tuple(tensor.requires_grad_() for tensor in arguments.values())
    assert torch.autograd.gradcheck(deform_conv2d, leaves)


@pytest.mark.parametrize("pixels", [1, 5, 77, 1000])
def test_chunk_size_does_not_change_results(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = random_arguments(7)  # 2 * 11 * 7 output pixels
    expected = with_gradients(deform_conv2d, arguments)
    bytes_of_a_pixel = 9 * 12 * 4
    monkeypatch.setattr(deform_conv, "COLUMN_BYTES", pixels * bytes_of_a_pixel)
    found = with_gradients(deform_conv2d, arguments)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_same_input_gives_the_same_bits() -> None:
    arguments = random_arguments(8, channels=64, outputs=64, size=(30, 40))
    first = with_gradients(deform_conv2d, arguments)
    for _ in range(3):
        again = with_gradients(deform_conv2d, arguments)
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_images_are_independent() -> None:
    arguments = random_arguments(9, batch=3)
    together = deform_conv2d(**arguments)
    for b in range(3):
        alone = deform_conv2d(
            **{
                name: tensor if name == "weight" else tensor[b : b + 1]
                for name, tensor in arguments.items()
            }
        )
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-5, atol=1e-5)


def test_any_memory_layout_is_accepted_and_arguments_are_not_changed() -> None:
    arguments = random_arguments(10)
    before = {name: tensor.clone() for name, tensor in arguments.items()}
    expected = with_gradients(deform_conv2d, arguments)
    assert all(torch.equal(arguments[name], tensor) for name, tensor in before.items())
    # Channels last, and offsets and mask as slices of one map, as in a layer.
    both = torch.cat((arguments["offset"], arguments["mask"]), dim=1)
    both = both.contiguous(memory_format=torch.channels_last)
    last = {
        "feature": arguments["feature"].contiguous(memory_format=torch.channels_last),
        "offset": both[:, :18],
        "weight": arguments["weight"].contiguous(memory_format=torch.channels_last),
        "mask": both[:, 18:],
    }
    found = with_gradients(deform_conv2d, last)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_only_tensors_that_require_it_get_a_gradient() -> None:
    arguments = random_arguments(11)
    arguments["offset"].requires_grad_()
    deform_conv2d(**arguments).sum().backward()
    assert arguments["offset"].grad is not None
    assert all(arguments[name].grad is None for name in ("feature", "weight", "mask"))
    with torch.inference_mode():
        assert not deform_conv2d(**arguments).requires_grad


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("offset", (2, 9, 11, 7), r"offset must be \(2, 18, 11, 7\).*got \(2, 9, 11, 7\)"),
        ("mask", (1, 9, 11, 7), r"mask must be \(2, 9, 11, 7\)"),
        ("weight", (10, 5, 3, 3), r"weight must be \(10, 12, 3, 3\)"),
    ],
)
def test_wrong_shapes_are_rejected(name: str, shape: tuple[int, ...], message: str) -> None:
    arguments = random_arguments(12)
    arguments[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**arguments)


def test_other_types_are_rejected() -> None:
    arguments = random_arguments(13)
    arguments["feature"] = arguments["feature"].bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        deform_conv2d(**arguments)
