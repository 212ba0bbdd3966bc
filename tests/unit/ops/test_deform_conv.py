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


def draw(
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


def torchvisions(
    feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None = None, padding: int = 1
) -> Tensor:
    result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=padding, mask=mask)
    return result


def with_gradients(
    function: Callable[..., Tensor], arguments: Arguments, padding: int = 1
) -> Arguments:
    """The result and the gradients of a drawn linear function of it."""
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
    ours = with_gradients(deform_conv2d, arguments, padding)
    theirs = with_gradients(torchvisions, arguments, padding)
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        assert ours[name].shape == wanted.shape, name
        limit = (2e-6 if name == "result" else 1e-5) * wanted.abs().max()
        assert (ours[name] - wanted).abs().max() <= limit, name


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("empty", [{"batch": 0}, {"outputs": 0}, {"channels": 0}])
def test_nothing_in_nothing_out(empty: dict[str, int], modulated: bool) -> None:
    arguments = draw(0, modulated=modulated, **empty)
    found = with_gradients(deform_conv2d, arguments)
    assert found.pop("result").shape == (empty.get("batch", 2), empty.get("outputs", 10), 11, 7)
    for name, gradient in found.items():
        assert gradient.shape == arguments[name].shape
        assert not gradient.any()


def test_one_tap_by_hand() -> None:
    # The 1 x 1 kernel of weight 3, tap of mask 0.5, looks at y = 0.25, x = 0.5 in [[1, 2], [3, 8]]:
    # 0.75 * (1 + 2) / 2 + 0.25 * (3 + 8) / 2 = 2.5, and 3 * 0.5 * 2.5 = 3.75.
    feature = torch.tensor([[[[1.0, 2.0], [3.0, 8.0]]]], requires_grad=True)
    # The other three pixels look far away.
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
    # One row 4 8 of two pixels, seen at places before, on and after its ends, y = 0.
    places = torch.tensor([-1.5, -1.0, -0.75, 0.0, 1.0, 1.25, 2.0])
    wanted = [0, 0, 0.25 * 4, 4, 8, 0.75 * 8, 0]
    # To the right of -1 comes the first pixel; to the right of 1 nothing; at 2 and beyond neither.
    slopes = [0, 4, 4, 4, -8, -8, 0]
    feature = torch.tensor([[[[4.0, 8.0]]]])
    for place, value, slope in zip(places, wanted, slopes, strict=True):
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
    """Pixel by pixel, tap by tap, neighbour by neighbour."""
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
    arguments = draw(1, kernel=kernel, padding=padding, dtype=torch.float64)
    found = deform_conv2d(**arguments, padding=padding)
    wanted = brute_force(*(tensor.numpy() for tensor in arguments.values()), padding)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.3, 3.0, 30.0, 1e6])
def test_equals_torchvision(spread: float, modulated: bool) -> None:
    arguments = draw(2, channels=40, size=(23, 17), modulated=modulated)
    arguments["offset"] *= spread
    assert_equal_to_torchvision(arguments)


@pytest.mark.parametrize("far", [1e30, math.inf])
def test_beyond_all_integers_there_are_zeros(far: float) -> None:
    # torchvision's gradients are NaN at infinity.
    arguments = draw(14)
    arguments["offset"] = torch.copysign(torch.tensor(far), arguments["offset"])
    found = with_gradients(deform_conv2d, arguments)
    assert not any(tensor.any() for tensor in found.values())


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("step", [1.0, 0.5])
def test_equals_torchvision_on_pixels_and_borders(step: float, modulated: bool) -> None:
    arguments = draw(3, size=(5, 4), modulated=modulated)
    arguments["offset"] = (arguments["offset"] / step).round() * step
    assert_equal_to_torchvision(arguments)


@pytest.mark.parametrize(
    ("kernel", "padding"), [((1, 1), 0), ((5, 5), 2), ((3, 1), 2), ((3, 3), 0)]
)
def test_other_kernels_equal_torchvisions(kernel: tuple[int, int], padding: int) -> None:
    assert_equal_to_torchvision(draw(4, kernel=kernel, padding=padding), padding)


def test_equals_torchvision_on_a_head_s_sizes() -> None:
    assert_equal_to_torchvision(draw(5, batch=1, channels=256, outputs=256, size=(25, 34)))


@pytest.mark.parametrize("modulated", [False, True])
def test_gradients_are_those_of_small_steps(modulated: bool) -> None:
    arguments = draw(
        6, channels=2, outputs=2, size=(3, 4), modulated=modulated, dtype=torch.float64
    )
    # A step must not cross a pixel, where slopes jump.
    whole = arguments["offset"].floor()
    arguments["offset"] = whole + (arguments["offset"] - whole).clamp(0.01, 0.99)
    leaves = tuple(tensor.requires_grad_() for tensor in arguments.values())
    assert torch.autograd.gradcheck(deform_conv2d, leaves)


@pytest.mark.parametrize("pixels", [1, 5, 77, 1000])
def test_chunks_do_not_show(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = draw(7)  # 2 * 11 * 7 output pixels
    wanted = with_gradients(deform_conv2d, arguments)
    bytes_of_a_pixel = 9 * 12 * 4
    monkeypatch.setattr(deform_conv, "COLUMN_BYTES", pixels * bytes_of_a_pixel)
    found = with_gradients(deform_conv2d, arguments)
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


def test_same_input_same_bits() -> None:
    arguments = draw(8, channels=64, outputs=64, size=(30, 40))
    first = with_gradients(deform_conv2d, arguments)
    for _ in range(3):
        again = with_gradients(deform_conv2d, arguments)
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_images_do_not_see_each_other() -> None:
    arguments = draw(9, batch=3)
    together = deform_conv2d(**arguments)
    for b in range(3):
        alone = deform_conv2d(
            **{
                name: tensor if name == "weight" else tensor[b : b + 1]
                for name, tensor in arguments.items()
            }
        )
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-5, atol=1e-5)


def test_any_memory_layout_and_nothing_is_changed() -> None:
    arguments = draw(10)
    before = {name: tensor.clone() for name, tensor in arguments.items()}
    wanted = with_gradients(deform_conv2d, arguments)
    assert all(torch.equal(arguments[name], tensor) for name, tensor in before.items())
    # Channels last, and offsets and mask as slices of one map, as a layer has them.
    both = torch.cat((arguments["offset"], arguments["mask"]), dim=1)
    both = both.contiguous(memory_format=torch.channels_last)
    last = {
        "feature": arguments["feature"].contiguous(memory_format=torch.channels_last),
        "offset": both[:, :18],
        "weight": arguments["weight"].contiguous(memory_format=torch.channels_last),
        "mask": both[:, 18:],
    }
    found = with_gradients(deform_conv2d, last)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_only_what_is_asked_gets_a_gradient() -> None:
    arguments = draw(11)
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
def test_shapes_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    arguments = draw(12)
    arguments[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**arguments)


def test_other_types_are_refused() -> None:
    arguments = draw(13)
    arguments["feature"] = arguments["feature"].bfloat16()
    with pytest.raises(ValueError, match="float32 or float64 on the CPU"):
        deform_conv2d(**arguments)
