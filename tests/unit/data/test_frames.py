"""Frames and channels of files give the pixels of the same array, as a whole and in regions."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from stacks import STACK, Z, write_imagej, write_ome, write_ome_pyramid, write_virtual_imagej

import meinst
from meinst.data.channels import read_channels
from meinst.data.frames import PictureReader, read_frames
from meinst.data.images import ImageError, Picture, load_image, read_image, to_rgb
from meinst.data.regions import RegionImage, TiffImage
from meinst.images.extent import Extent
from meinst.images.frames import Frame
from meinst.images.intensity import InputOptions, to_eight_bits


def stretched(planes: NDArray[Any], intensity: str = "percentile") -> NDArray[np.uint8]:
    """Each of ``(3, H, W)`` scaled by itself, as RGB."""
    options = InputOptions(intensity)
    return np.stack([to_eight_bits(plane, options)[0] for plane in planes], axis=-1)


@pytest.mark.parametrize("intensity", ["percentile", "full", "100:40000"])
def test_each_chosen_channel_is_scaled_by_itself(intensity: str, tmp_path: Path) -> None:
    path = write_imagej(tmp_path / "a.tif", STACK, "TZCYX")
    options = InputOptions(intensity, (1, 0, 1))
    expected = stretched(STACK[0, 0, [1, 0, 1]], intensity)
    picture = read_image(path, options)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.extent == Extent(frames=6)  # the channels were chosen
    assert picture.stretch is not None
    alone = InputOptions(intensity)
    assert list(picture.stretch.channels) == [
        to_eight_bits(STACK[0, 0, channel], alone)[1] for channel in (1, 0, 1)
    ]
    array = read_image(np.moveaxis(STACK[0, 0], 0, -1), options)
    np.testing.assert_array_equal(array.pixels, expected)
    assert array.stretch == picture.stretch
    image = TiffImage(path, options)
    np.testing.assert_array_equal(image.read((3, 4, 50, 40)), expected[4:40, 3:50])
    assert image.stretch == picture.stretch
    image.close()


def test_one_channel_is_grey_and_none_is_the_first(tmp_path: Path) -> None:
    path = write_ome(tmp_path / "a.ome.tif", STACK, "TZCYX", photometric="minisblack")
    second = read_image(path, InputOptions(channels=(1,)))
    np.testing.assert_array_equal(second.pixels, to_rgb(STACK[0, 0, 1]))
    np.testing.assert_array_equal(load_image(path), to_rgb(STACK[0, 0, 0]))
    assert read_image(path).extent == Extent(6, 2)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_channels_of_ordinary_images(suffix: str, tmp_path: Path) -> None:
    values = np.moveaxis(STACK[0, :, 1], 0, -1).astype(np.uint8)  # (H, W, 3)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(values).save(path)
    rgb = load_image(path)
    chosen = read_image(path, InputOptions(channels=(2, 1, 0)))
    np.testing.assert_array_equal(chosen.pixels, rgb[..., ::-1])
    assert chosen.stretch is None  # 8 bits never change
    green = read_image(Image.open(path), InputOptions(channels=(1,))).pixels
    np.testing.assert_array_equal(green, rgb[..., 1:2].repeat(3, axis=-1))
    with pytest.raises(
        ImageError, match="has 3 channels, numbered 0 to 2, so there is no channel 3"
    ):
        read_image(path, InputOptions(channels=(3,)))


def test_channels_that_are_not_there() -> None:
    options = InputOptions(channels=(0, 1, 9))
    with pytest.raises(
        ImageError, match=r"^The image array has 7 channels, .* so there is no channel 9"
    ):
        read_image(np.zeros((5, 6, 7), np.uint16), options)
    with pytest.raises(ImageError, match="has only channel 0, so there is no channel 1"):
        read_image(np.zeros((5, 6), np.uint16), options)
    with pytest.raises(ImageError, match=r"got \(5, 6, 7\); choose channels"):
        read_image(np.zeros((5, 6, 7), np.uint16))


WRITERS = {
    "imagej": lambda path: write_imagej(path, STACK, "TZCYX"),
    "imagej, one page": lambda path: write_virtual_imagej(path, STACK),
    "ome, pyramid": lambda path: write_ome_pyramid(path, STACK, "TZCYX"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_frames_are_read_as_a_whole_and_in_regions(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / "a.tif")
    options = InputOptions(channels=(0, 1, 1))
    with (
        closing(PictureReader(options, lambda *_: True)) as whole,
        closing(PictureReader(options, lambda *_: False)) as parts,
    ):
        for index in (5, 0, 4):
            expected = stretched(STACK[index // Z, index % Z, [0, 1, 1]])
            picture = whole.read(Frame(path, index))
            assert isinstance(picture, Picture)
            np.testing.assert_array_equal(picture.pixels, expected)
            image = parts.read(Frame(path, index))
            assert isinstance(image, RegionImage)
            np.testing.assert_array_equal(image.read((9, 9, 33, 41)), expected[9:41, 9:33])
            assert picture.extent == image.extent == Extent()  # nothing is left out
            image.close()
        with pytest.raises(ImageError, match=r"a\.tif has 6 frames, .* so there is no frame 6"):
            whole.read(Frame(path, 6))


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_frames_of_animations(suffix: str, tmp_path: Path) -> None:
    """Frames that store only what changed since the one before."""
    images = []
    for place in (2, 12, 22):
        image = Image.new("RGB", (40, 30), (10, 60, 110))
        image.paste((250, 240, 0), (place, 5, place + 8, 20))
        images.append(image)
    path = tmp_path / f"a.{suffix}"
    lossless: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=50, **lossless)
    with closing(PictureReader(InputOptions(), lambda *_: True)) as reader:
        for index in (2, 0, 1):
            picture = reader.read(Frame(path, index))
            assert isinstance(picture, Picture)
            np.testing.assert_array_equal(picture.pixels, np.asarray(images[index]))
        with pytest.raises(
            ImageError, match="has 3 frames, numbered 0 to 2, so there is no frame 3"
        ):
            reader.read(Frame(path, 3))


def test_frames_for_programs(tmp_path: Path) -> None:
    path = write_imagej(tmp_path / "a.tif", STACK, "TZCYX")
    frames = list(meinst.read_frames(path, "1:4", InputOptions(channels=(1,))))
    assert len(frames) == 3
    for number, pixels in enumerate(frames, start=1):
        np.testing.assert_array_equal(pixels, to_rgb(STACK[number // Z, number % Z, 1]))
    assert len(list(read_frames(str(path)))) == 6
    picture = tmp_path / "a.png"
    Image.fromarray(STACK[0, 0, 0]).save(picture)
    (only,) = read_frames(picture)
    np.testing.assert_array_equal(only, load_image(picture))
    with pytest.raises(ImageError, match="does not exist"):
        list(read_frames(tmp_path / "missing.tif"))
    with pytest.raises(ValueError, match="frames must be all"):
        list(read_frames(path, "some"))


def test_all_channels_of_a_frame_as_stored(tmp_path: Path) -> None:
    path = write_virtual_imagej(tmp_path / "a.tif", STACK)
    np.testing.assert_array_equal(
        read_channels(Frame(path, 4)), np.moveaxis(STACK[1, 1], 0, -1).astype(np.uint16)
    )
    np.testing.assert_array_equal(read_channels(path), np.moveaxis(STACK[0, 0], 0, -1))
    values = np.moveaxis(STACK[0].reshape(6, 48, 64)[:5], 0, -1)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(read_channels(path), values)


def test_a_frame_of_a_damaged_file_names_it(tmp_path: Path) -> None:
    path = write_imagej(tmp_path / "a.tif", STACK, "TZCYX", compression=8)
    path.write_bytes(path.read_bytes()[:-20_000])
    with (
        closing(PictureReader(InputOptions(), lambda *_: True)) as reader,
        pytest.raises(ImageError, match=r"a\.tif"),
    ):
        reader.read(Frame(path, 5))


def test_pages_that_only_pillow_reads(tmp_path: Path) -> None:
    """Scanned documents: pages of one bit, compressed for faxes."""
    pages = [Image.fromarray(STACK[0, z, 0] > 30_000) for z in range(Z)]
    path = tmp_path / "scan.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:], compression="group4")
    frames = list(read_frames(path))
    assert len(frames) == Z
    for z, pixels in enumerate(frames):
        np.testing.assert_array_equal(pixels, to_rgb(STACK[0, z, 0] > 30_000))
    chosen = read_image(path, InputOptions(channels=(0, 0, 0))).pixels
    np.testing.assert_array_equal(chosen, frames[0])
    with pytest.raises(ImageError, match="CCITTFAX4"):
        read_image(path, InputOptions(channels=(7,)))
