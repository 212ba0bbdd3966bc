"""Which planes of a file are frames and which are channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from stacks import STACK, C, T, Z, write_imagej, write_ome, write_ome_pyramid, write_virtual_imagej

from meinst.data.channels import read_pixel_size
from meinst.images.extent import Extent, tiff_extent
from meinst.images.frames import Frame, FrameChoice, expand_frames
from meinst.images.readers import UnsupportedImageError, open_tiff
from meinst.images.tiff_frames import TiffFrames
from meinst.images.tiff_levels import ALL_CHANNELS
from meinst.images.tiff_regions import TiffRegions

WRITERS: dict[str, Callable[[Path], Path]] = {
    "imagej": lambda path: write_imagej(path, STACK, "TZCYX"),
    "imagej, deflate": lambda path: write_imagej(path, STACK, "TZCYX", compression=8),
    "imagej, one page": lambda path: write_virtual_imagej(path, STACK),
    "ome": lambda path: write_ome(path, STACK, "TZCYX", photometric="minisblack"),
    "ome, tiles": lambda path: write_ome(
        path, STACK, "TZCYX", photometric="minisblack", tile=(16, 32), compression=8
    ),
    "ome, channels first": lambda path: write_ome(
        path, np.moveaxis(STACK, 2, 0), "CTZYX", photometric="minisblack"
    ),
    "ome, channels last of the frames": lambda path: write_ome(
        path, np.moveaxis(STACK, 2, 1), "TCZYX", photometric="minisblack"
    ),
    "ome, pyramid": lambda path: write_ome_pyramid(path, STACK, "TZCYX"),
}


def whole(path: Path, frame: int | None, channels: Sequence[int] = ()) -> NDArray[Any]:
    """All pixels of a frame."""
    with closing(TiffRegions(path, frame, channels)) as regions:
        height, width = regions.levels[0].size
        return regions.levels[0].read((0, 0, width, height))


@pytest.mark.parametrize("kind", WRITERS)
def test_every_plane_is_read_at_its_place(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path / "a.tif")
    assert tiff_extent(path) == Extent(T * Z, C)
    with open_tiff(path) as file:
        frames = TiffFrames(file)
        for frame in range(T * Z):
            t, z = divmod(frame, Z)
            assert frames.position(frame) == {"t": t, "z": z}
            regions = TiffRegions(path, frame, ALL_CHANNELS)
            values = regions.levels[0].read((5, 7, 60, 40))
            np.testing.assert_array_equal(np.moveaxis(values, -1, 0), STACK[t, z, :, 7:40, 5:60])
            np.testing.assert_array_equal(whole(path, frame, (1,))[..., 0], STACK[t, z, 1])
            regions.close()


def test_smaller_copies_of_a_frame_show_that_frame(tmp_path: Path) -> None:
    path = write_ome_pyramid(tmp_path / "a.ome.tif", STACK, "TZCYX")
    for channels in ((1,), (1, 0, 1)):
        regions = TiffRegions(path, 4, channels)
        assert [level.size for level in regions.levels] == [(48, 64), (24, 32), (12, 16)]
        for number, level in enumerate(regions.levels):
            step = 2**number
            height, width = level.size
            expected = STACK[1, 1, list(channels), ::step, ::step]
            values = level.read((0, 0, width, height))
            np.testing.assert_array_equal(np.moveaxis(values, -1, 0), expected)


def test_pages_of_an_ordinary_file_are_frames_even_of_several_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = [STACK[0, 0, 0], STACK[0, 1, 0, :20, :30], STACK[0, 2, 0]]
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, metadata=None)
    assert tiff_extent(path) == Extent(3)
    for number, page in enumerate(pages):
        np.testing.assert_array_equal(whole(path, number), page)


def test_samples_of_a_pixel_are_channels(tmp_path: Path) -> None:
    values = np.moveaxis(np.concatenate([STACK[0, 0], STACK[0, 1], STACK[1, 1, :1]]), 0, -1)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", metadata=None)
    assert values.shape[-1] == 5
    np.testing.assert_array_equal(whole(path, None, (4, 0, 3)), values[..., [4, 0, 3]])
    message = "has 5 channels, numbered 0 to 4, so there is no channel 5"
    with pytest.raises(UnsupportedImageError, match=message):
        TiffRegions(path, None, (5,))


def test_a_frame_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write_imagej(tmp_path / "a.tif", STACK, "TZCYX")
    message = "has 6 frames, numbered 0 to 5, so there is no frame 6"
    with pytest.raises(UnsupportedImageError, match=message):
        TiffRegions(path, 6)


def test_parse_a_choice_of_frames() -> None:
    assert FrameChoice.from_text("all").of(5) == range(5)
    assert FrameChoice.from_text("3").of(5) == range(3, 4)
    assert FrameChoice.from_text("1:3").of(5) == range(1, 3)
    assert FrameChoice.from_text(":3").of(5) == range(3)
    assert FrameChoice.from_text("2:").of(5) == range(2, 5)
    assert FrameChoice.from_text("2:99").of(5) == range(2, 5)
    assert FrameChoice.from_text("7").of(5) == range(7, 8)  # which reading rejects
    for text in ("", "-1", "1:1", "3:2", "a", "1:2:3", "1.5", "ALL"):
        with pytest.raises(ValueError, match="frames must"):
            FrameChoice.from_text(text)


def test_frames_of_several_files(tmp_path: Path) -> None:
    stack = write_imagej(tmp_path / "stack.tif", STACK[:1, :, 0], "TZYX")
    single = tmp_path / "single.png"
    Image.fromarray(STACK[0, 0, 0]).save(single)
    gif = tmp_path / "move.gif"
    images = [Image.new("L", (20, 10), value) for value in (0, 100, 200)]
    images[0].save(gif, save_all=True, append_images=images[1:])
    missing = tmp_path / "missing.tif"
    found = list(expand_frames([single, stack, gif, missing], FrameChoice(1, 3)))
    expected = [Frame(stack, 1, (("z", 1),)), Frame(stack, 2, (("z", 2),))]
    expected += [Frame(gif, 1), Frame(gif, 2)]
    assert found[1:5] == expected
    # Files without these frames fail when they are read.
    assert found[0] == Frame(single, 1)
    assert found[5] == Frame(missing, 1)
    assert list(expand_frames([single, missing], FrameChoice(0, None))) == [single, missing]
    assert str(expected[0]) == f"{stack}[1]"
    assert expected[0].stem == "stack_0001"


def write_swapped_ome(path: Path) -> Path:
    """OME-TIFF of two times whose planes are stored in the opposite order, each of 2 channels."""
    planes = STACK[:, 0]  # (T, C, H, W)
    places = [(1, 0), (1, 1), (0, 0), (0, 1)]
    data = "".join(
        f'<TiffData IFD="{n}" FirstT="{t}" FirstC="{c}" PlaneCount="1"/>'
        for n, (t, c) in enumerate(places)
    )
    text = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" Type="uint16" DimensionOrder="XYCZT" '
        'SizeX="64" SizeY="48" SizeC="2" SizeZ="1" SizeT="2">'
        '<Channel ID="a"/><Channel ID="b"/>' + data + "</Pixels></Image></OME>"
    )
    with tifffile.TiffWriter(path) as file:
        for n, (t, c) in enumerate(places):
            file.write(
                planes[t, c], description=text if n == 0 else None, metadata=None, contiguous=False
            )
    return path


def test_the_first_frame_is_that_of_the_first_page(tmp_path: Path) -> None:
    path = write_swapped_ome(tmp_path / "a.ome.tif")
    assert tiff_extent(path) == Extent(2, 2)
    for frame in range(2):
        np.testing.assert_array_equal(whole(path, frame, (1,))[..., 0], STACK[frame, 0, 1])
    for channels in ((), (0,)):  # what Pillow reads, too
        np.testing.assert_array_equal(np.squeeze(whole(path, None, channels)), STACK[1, 0, 0])


def test_each_series_has_its_own_pixel_size(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for side, values in ((0.5, STACK[0, 0, 0]), (0.1, STACK[0, 1, 0, :20, :30])):
            sizes = {f"PhysicalSize{axis}": side for axis in "XY"}
            file.write(values, metadata={"axes": "YX", **sizes})
    assert tiff_extent(path) == Extent(2)
    for frame, side in enumerate((0.5, 0.1)):
        with closing(TiffRegions(path, frame)) as regions:
            assert regions.pixel_size == side
        assert read_pixel_size(Frame(path, frame)) == side
    assert read_pixel_size(path) == 0.5


def test_samples_of_few_bits_use_the_whole_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = Image.fromarray((STACK[0, 0, 0] >> 8).astype(np.uint8)).quantize(16)
    levels = np.asarray(image)
    tifffile.imwrite(path, levels, bitspersample=4, photometric="minisblack", metadata=None)
    np.testing.assert_array_equal(whole(path, None, (0,))[..., 0], levels * 17)
