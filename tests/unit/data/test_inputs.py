from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meinst.data.images import ImageError, read_image
from meinst.data.inputs import to_image_like
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.images.sources import AddressError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    pixels[20:40, 30:50] = (250, 40, 60)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def pixels_of(image: object, **options: str) -> np.ndarray:
    return read_image(to_image_like(image, **options)).pixels  # type: ignore[arg-type]


def assert_same(first: Detections, second: Detections) -> None:
    assert len(first) == len(second) > 0
    for name in ("boxes", "scores", "labels", "codes"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_all_inputs_give_the_result_of_the_file(tiny_model: MEInst, path: Path) -> None:
    import fsspec

    expected = tiny_model.predict(path)
    content = path.read_bytes()
    pixels = np.array(Image.open(path))
    tensor = torch.from_numpy(pixels)
    fsspec.filesystem("memory").pipe("/inputs/a.png", content)
    with path.open("rb") as file:
        inputs = [
            *(str(path), content, bytearray(content), memoryview(content), io.BytesIO(content)),
            *(file, "memory://inputs/a.png", Image.open(path), pixels, tensor),
            *(tensor.permute(2, 0, 1), tensor.permute(2, 0, 1) / 255, tensor.double() / 255),
            tensor.half() / 255,
        ]
        for image in inputs:
            assert_same(tiny_model.predict(image), expected)
    for image in (pixels[..., ::-1], tensor.flip(2), tensor.permute(2, 0, 1).flip(0)):
        assert_same(tiny_model.predict(image, channel_order="bgr"), expected)
    several = tiny_model.predict([content, tensor, pixels])
    for each, other in zip(several, tiny_model.predict([path] * 3), strict=True):
        assert_same(each, other)
    assert not torch.equal(tiny_model.predict(pixels[..., ::-1].copy()).scores, expected.scores)


def test_layouts_of_tensors() -> None:
    values = torch.arange(2 * 5 * 3, dtype=torch.uint8).reshape(2, 5, 3)
    grey = values[..., 0]
    assert np.array_equal(pixels_of(values), values)
    assert np.array_equal(pixels_of(values.permute(2, 0, 1)), values)
    assert np.array_equal(pixels_of(grey)[..., 1], grey)
    assert np.array_equal(pixels_of(grey[None])[..., 2], grey)
    assert np.array_equal(pixels_of(grey[..., None])[..., 2], grey)
    square = torch.arange(3 * 5 * 3, dtype=torch.uint8).reshape(3, 5, 3)
    assert np.array_equal(pixels_of(square), square.permute(1, 2, 0))  # channels first
    opaque = torch.cat((values, torch.full((2, 5, 1), 255, dtype=torch.uint8)), 2)
    assert np.array_equal(pixels_of(opaque), values)
    assert np.array_equal(pixels_of(opaque[..., [2, 1, 0, 3]], channel_order="bgr"), values)
    assert np.array_equal(pixels_of(grey, channel_order="bgr"), pixels_of(grey))


def test_floats_are_rounded() -> None:
    """0.5 * 255 = 127.5, which rounds to the even 128; 1.00005 is a rounding error."""
    tensor = torch.tensor([[0.0, 0.25, 0.5, 1.00005]])
    assert pixels_of(tensor)[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3, 4, 5), r"got \(2, 3, 4, 5\); give the images of a batch as a list"),
        (torch.zeros(5, 6, 7), "with 1, 3 or 4 channels"),
        (torch.zeros(0, 5), "at least one pixel"),
        (torch.full((4, 4), 255.0), "within 0 and 1, got 255 to 255; divide it"),
        (torch.full((4, 4), torch.nan), "within 0 and 1, got nan"),
        (torch.full((4, 4), -0.1), "within 0 and 1"),
    ],
)
def test_other_tensors_are_rejected(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        pixels_of(tensor)


def test_other_inputs_are_rejected(path: Path) -> None:
    with pytest.raises(ImageError, match="got list"):
        pixels_of([1])
    with path.open(encoding="latin-1") as file, pytest.raises(ImageError, match="binary mode"):
        pixels_of(file)
    with pytest.raises(ImageError, match="the image in memory is empty"):
        pixels_of(b"")
    with pytest.raises(ImageError, match="the open file is not an image"):
        pixels_of(io.BytesIO(b"no image"))
    with pytest.raises(ValueError, match="channel_order is for arrays and tensors, got a "):
        pixels_of(path, channel_order="bgr")
    with pytest.raises(ValueError, match="must be rgb or bgr, got 'grb'"):
        pixels_of(np.zeros((2, 2, 3), np.uint8), channel_order="grb")
    with pytest.raises(AddressError, match=r"memory://no/a\.png does not exist"):
        pixels_of("memory://no/a.png")
