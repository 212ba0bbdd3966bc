"""Regions of files give the pixels that the whole file gives, and little more is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from meinst.data.images import ImageError, Picture, read_image
from meinst.data.regions import ArrayRegions, RegionImage, TiffImage, open_picture
from meinst.data.transforms import resample
from meinst.images import tiff_levels
from meinst.images.intensity import InputOptions

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (150, 230, 3), dtype=np.uint8)
GREY = RGB[..., 0]
DEEP = RNG.integers(100, 3000, (150, 230), dtype=np.uint16)
REGIONS = [
    (0, 0, 230, 150),
    (0, 0, 1, 1),
    (17, 33, 99, 101),
    (200, 149, 230, 150),
    (60, 0, 70, 150),
]

KINDS = {
    "rgb, one strip": (RGB, {"photometric": "rgb", "rowsperstrip": 150}),
    "rgb, strips": (RGB, {"photometric": "rgb", "rowsperstrip": 7}),
    "rgb, strips, deflate": (RGB, {"photometric": "rgb", "rowsperstrip": 7, "compression": 8}),
    "rgb, one strip, lzw": (
        RGB,
        {"photometric": "rgb", "rowsperstrip": 150, "compression": 5, "predictor": 2},
    ),
    "rgb, tiles": (RGB, {"photometric": "rgb", "tile": (32, 64)}),
    "rgb, tiles, zstd, bigtiff": (
        RGB,
        {"photometric": "rgb", "tile": (32, 64), "compression": 50000, "bigtiff": True},
    ),
    "rgb, big-endian bigtiff": (
        RGB,
        {"photometric": "rgb", "tile": (16, 16), "bigtiff": True, "byteorder": ">"},
    ),
    "rgb, planar strips": (
        np.moveaxis(RGB, -1, 0),
        {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 11},
    ),
    "rgb, planar tiles": (
        np.moveaxis(RGB, -1, 0),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 32), "compression": 8},
    ),
    "grey": (GREY, {"tile": (64, 64)}),
    "grey, white is zero": (GREY, {"photometric": "miniswhite", "rowsperstrip": 20}),
    "1 bit": (GREY > 99, {"rowsperstrip": 10}),
    "palette": (
        GREY,
        {
            "photometric": "palette",
            "colormap": RNG.integers(0, 65536, (3, 256), dtype=np.uint16),
            "tile": (32, 32),
        },
    ),
    "cmyk": (np.dstack((RGB, GREY)), {"photometric": "separated", "tile": (32, 32)}),
    "rgba": (
        np.dstack((RGB, GREY)),
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (32, 32)},
    ),
    "16 bit": (DEEP, {"tile": (32, 32), "compression": 8, "predictor": 2}),
    "16 bit, big-endian": (DEEP, {"rowsperstrip": 9, "byteorder": ">"}),
    "16 bit, planar": (
        np.stack((DEEP, DEEP // 2, DEEP // 3)),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (48, 48)},
    ),
    "16 bit with opacity": (
        np.dstack((DEEP, DEEP, DEEP, DEEP * 20)),
        {"photometric": "rgb", "extrasamples": ["unassalpha"], "tile": (32, 32)},
    ),
    "float": (DEEP.astype(np.float32) / 7000 - 0.1, {"tile": (32, 32), "compression": 8}),
    "int16": (DEEP.astype(np.int16) - 500, {"rowsperstrip": 150}),
}


def write(folder: Path, kind: str) -> Path:
    values, options = KINDS[kind]
    path = folder / "image.tif"
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_regions_equal_the_whole_image(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path, kind)
    whole = read_image(path)
    image = TiffImage(path)
    assert image.size == whole.pixels.shape[:2]
    assert image.stretch == whole.stretch
    for x1, y1, x2, y2 in REGIONS:
        found = image.read((x1, y1, x2, y2))
        np.testing.assert_array_equal(found, whole.pixels[y1:y2, x1:x2])


@pytest.mark.parametrize("rule", ["full", "100:4095"])
def test_other_rules_of_intensity_are_those_of_the_whole_image(tmp_path: Path, rule: str) -> None:
    path = write(tmp_path, "16 bit")
    image = TiffImage(path, InputOptions(rule))
    whole = read_image(path, InputOptions(rule))
    assert image.stretch == whole.stretch
    np.testing.assert_array_equal(image.read((9, 9, 80, 70)), whole.pixels[9:70, 9:80])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_regions_are_turned_like_the_image(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "turned.tif"
    tifffile.imwrite(
        path, RGB, photometric="rgb", tile=(32, 32), extratags=[(274, "H", 1, orientation, True)]
    )
    whole = read_image(path).pixels
    image = TiffImage(path)
    assert image.size == whole.shape[:2]
    for x1, y1, x2, y2 in [(0, 0, 1, 1), (20, 30, 70, 120), (100, 0, 150, 150)]:
        np.testing.assert_array_equal(image.read((x1, y1, x2, y2)), whole[y1:y2, x1:x2])


def write_pyramid(path: Path, values: np.ndarray, **options: object) -> None:
    """Levels of a half and a quarter, each darker, so that they are told apart."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(values, subifds=2, photometric="rgb", tile=(64, 64), **options)
        for factor in (2, 4):
            level = values[::factor, ::factor] // factor
            file.write(level, subfiletype=1, photometric="rgb", tile=(64, 64), **options)


def test_smaller_copies_are_used_where_they_have_the_detail(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    values = np.full((400, 800, 3), 200, np.uint8)
    write_pyramid(path, values)
    image = TiffImage(path)
    assert image.level_sizes == [(400, 800), (200, 400), (100, 200)]
    assert image.extent.frames == 1
    region = (400, 0, 800, 400)
    for size, level in ((400, 200), (300, 200), (200, 100), (150, 100), (100, 50), (10, 50)):
        assert (image.read_resized(region, (size, size)) == level).all()


def test_resized_regions_equal_those_of_an_array(tmp_path: Path) -> None:
    path = write(tmp_path, "rgb, tiles")
    image = TiffImage(path)
    for region, size in (((0, 0, 230, 150), (50, 60)), ((30, 40, 94, 104), (128, 128))):
        expected = resample(RGB, size, tuple(map(float, region)))
        np.testing.assert_array_equal(image.read_resized(region, size), expected)


def test_large_regions_are_averaged_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = np.add.outer(np.arange(300), np.arange(500)) // 4
    picture = np.repeat(smooth[..., None], 3, axis=2).astype(np.uint8)
    image = ArrayRegions(Picture(picture))
    expected = image.read_resized((0, 0, 500, 300), (30, 50))
    monkeypatch.setattr("meinst.data.regions._AT_ONCE", 1000)
    monkeypatch.setattr("meinst.data.regions._BLOCK", 64)
    found = image.read_resized((0, 0, 500, 300), (30, 50))
    assert np.abs(found.astype(int) - expected).max() <= 2


def test_memory_does_not_grow_with_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.tif"
    shape = (4096, 6144, 3)
    tiles = (np.full((256, 256, 3), n % 200, np.uint8) for n in range(16 * 24))
    tifffile.imwrite(
        path, tiles, shape=shape, dtype=np.uint8, photometric="rgb", tile=(256, 256), compression=8
    )
    monkeypatch.setattr("meinst.data.regions._AT_ONCE", 1 << 20)
    largest = 0
    read = tiff_levels.TiffLevel.read

    def counted(self, region, *, blank=False):  # type: ignore[no-untyped-def]
        nonlocal largest
        values = read(self, region, blank=blank)
        largest = max(largest, values.size)
        return values

    monkeypatch.setattr(tiff_levels.TiffLevel, "read", counted)
    image = TiffImage(path)
    assert image.overview(512).shape == (341, 512, 3)
    assert image.read_resized((100, 100, 4196, 4096), (256, 262)).shape == (256, 262, 3)
    assert largest <= 3 << 20
    assert image.read((3000, 4000, 3100, 4050)).shape == (50, 100, 3)


@pytest.mark.parametrize("kind", ["rgb, strips, deflate", "rgb, planar tiles"])
def test_neighbouring_regions_decode_a_segment_once(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = tiff_levels.TiffLevel._decode

    def counted(self, index):  # type: ignore[no-untyped-def]
        decoded.append(index)
        return decode(self, index)

    image = TiffImage(write(tmp_path, kind))
    image.release()
    monkeypatch.setattr(tiff_levels.TiffLevel, "_decode", counted)
    for x in range(0, 200, 40):
        image.read((x, 20, x + 60, 80))
    assert decoded
    assert len(decoded) == len(set(decoded))
    image.release()
    image.read((0, 20, 60, 80))
    assert len(decoded) > len(set(decoded))


def test_segments_of_levels_are_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    write_pyramid(path, np.full((400, 800, 3), 200, np.uint8), compression=8)
    image = TiffImage(path)
    for _ in range(2):
        for level, value in ((0, 200), (1, 100), (2, 50)):
            assert (image.read((0, 0, 60, 60), level) == value).all()


def test_cache_keeps_what_was_used_last() -> None:
    cache = tiff_levels.SegmentCache(limit=100)
    one = np.zeros(40, np.uint8)
    for index in range(3):
        cache.put((0, index), one)
    assert (0, 0) not in cache
    cache.get((0, 1))
    cache.put((0, 3), one)
    assert (0, 2) not in cache
    assert (0, 1) in cache


def break_tile(path: Path, index: int) -> None:
    """Overwrite a compressed tile."""
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        offset, count = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)


def test_broken_tile_is_named_and_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", tile=(64, 64), compression=8)
    break_tile(path, 5)  # the second of the second row
    image = TiffImage(path)
    with pytest.raises(ImageError, match=r"broken\.tif: the tile at x = 64, y = 64 is damaged"):
        image.read((70, 70, 80, 80))
    np.testing.assert_array_equal(image.read((0, 0, 230, 64)), RGB[:64])
    blank = image.read((0, 0, 230, 150), blank=True)
    assert not blank[64:128, 64:128].any()
    np.testing.assert_array_equal(blank[64:128, :64], RGB[64:128, :64])
    assert image.overview(100).shape == (65, 100, 3)


@pytest.mark.parametrize("options", [{"rowsperstrip": 10}, {"rowsperstrip": 10, "compression": 8}])
def test_file_that_ends_early_is_read_as_far_as_it_goes(
    tmp_path: Path, options: dict[str, int]
) -> None:
    path = tmp_path / "short.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(RGB, photometric="rgb", **options)
    with tifffile.TiffFile(path) as opened:
        end = opened.pages.first.dataoffsets[12]
    path.write_bytes(path.read_bytes()[: end + 5])
    image = TiffImage(path)
    np.testing.assert_array_equal(image.read((0, 0, 230, 100)), RGB[:100])
    with pytest.raises(ImageError, match="the file ends before"):
        image.read((0, 100, 230, 150))
    assert not image.read((0, 145, 230, 150), blank=True).any()


def test_jpeg_tiles_are_read(tmp_path: Path) -> None:
    smooth = (np.add.outer(np.arange(150), np.arange(230)) // 2).astype(np.uint8)
    picture = np.dstack((smooth, 255 - smooth, smooth // 2))
    path = tmp_path / "jpeg.tif"
    tifffile.imwrite(path, picture, photometric="rgb", tile=(64, 64), compression="jpeg")
    found = TiffImage(path).read((40, 30, 200, 140)).astype(int)
    assert np.abs(found - read_image(path).pixels[30:140, 40:200]).max() <= 1
    assert np.abs(found - picture[30:140, 40:200]).mean() <= 8


def test_jpeg_tile_that_is_larger_than_stated_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), tile=(64, 64), compression="jpeg")
    content = bytearray(path.read_bytes())
    start = content.index(b"\xff\xc0") + 5  # height and width of the frame
    content[start : start + 4] = b"\x20\x00\x20\x00"
    path.write_bytes(content)
    with pytest.raises(ImageError, match="it holds 8192 x 8192 pixels, not 64 x 64"):
        TiffImage(path).read((0, 0, 64, 64))


def test_compressed_pieces_that_are_too_large_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "rgb, one strip, lzw")
    monkeypatch.setattr(tiff_levels, "MAX_SEGMENT", 1000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="save it as a tiled TIFF file"):
        open_picture(path, InputOptions(), lambda *_: False)


def small(height: int, width: int) -> bool:
    return max(height, width) <= 100


def test_images_that_fit_are_read_as_before(tmp_path: Path) -> None:
    path = write(tmp_path, "16 bit")
    whole = open_picture(path, InputOptions(), lambda *_: True)
    assert isinstance(whole, Picture)
    np.testing.assert_array_equal(whole.pixels, read_image(path).pixels)
    regions = open_picture(path, InputOptions(), small)
    assert isinstance(regions, TiffImage)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_other_formats_are_decoded_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path)
    image = open_picture(path, InputOptions(), small)
    assert isinstance(image, RegionImage)
    np.testing.assert_array_equal(image.read((5, 6, 50, 60)), read_image(path).pixels[6:60, 5:50])


def test_limit_of_pixels_holds_for_files_without_regions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(RGB).save(path)
    tiff = write(tmp_path, "rgb, tiles")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ImageError, match="save it as a tiled TIFF file"):
        open_picture(path, InputOptions(), small)
    image = open_picture(tiff, InputOptions(), small)
    assert isinstance(image, TiffImage)
    np.testing.assert_array_equal(image.read((0, 0, 230, 150)), RGB)


def test_size_of_annotations_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "rgb, tiles")
    assert open_picture(path, InputOptions(), small, (230, 150))
    with pytest.raises(ImageError, match="has 230 x 150 pixels, but the annotations expect 9 x 9"):
        open_picture(path, InputOptions(), small, (9, 9))


def test_percentiles_of_huge_images_are_measured_on_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep.tif"
    values = np.random.default_rng(0).normal(5000, 300, (1000, 1000)).astype(np.uint16)
    tifffile.imwrite(path, values, tile=(64, 64), compression=8)
    exact = TiffImage(path).stretch
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    monkeypatch.setattr("meinst.data.regions.MAX_SAMPLES", 300_000)
    sampled = TiffImage(path).stretch
    assert exact is not None
    assert sampled is not None
    assert sampled.low == pytest.approx(exact.low, abs=60)
    assert sampled.high == pytest.approx(exact.high, abs=600)


def test_unsupported_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "channels.tif"
    tifffile.imwrite(path, np.zeros((150, 230, 5), np.uint8), planarconfig="contig")
    with pytest.raises(ImageError, match=r"channels\.tif has 5 channels"):
        open_picture(path, InputOptions(), small)
    with pytest.raises(ImageError, match="does not exist"):
        open_picture(tmp_path / "none.tif", InputOptions(), small)
