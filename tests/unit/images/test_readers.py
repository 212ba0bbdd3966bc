"""The same values give the same image, whatever file they come from."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from meinst.data.images import ImageError, load_image, read_image, to_rgb
from meinst.images.extent import Extent

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
RGB8 = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
GREY16 = RNG.integers(300, 4000, (37, 53)).astype(np.uint16)
RGB16 = RNG.integers(300, 4000, (37, 53, 3)).astype(np.uint16)

LAYOUTS: list[dict[str, Any]] = [
    {},
    {"byteorder": ">"},
    {"bigtiff": True},
    {"bigtiff": True, "byteorder": ">"},
    {"rowsperstrip": 5},
    {"tile": (16, 32)},
    {"compression": "zlib"},
    {"compression": "zlib", "predictor": True},
    {"compression": "lzw", "tile": (16, 16), "byteorder": ">"},
    {"compression": "zstd"},
    {"compression": "packbits"},
    {"compression": "lzma"},
]


def write_tiff(path: Path, values: np.ndarray, *, planar: bool = False, **options: Any) -> Path:
    if planar:
        values, options["planarconfig"] = np.moveaxis(values, -1, 0), "separate"
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("planar", [False, True])
def test_deep_rgb_tiff_equals_its_array(
    tmp_path: Path, layout: dict[str, Any], planar: bool
) -> None:
    path = write_tiff(tmp_path / "a.tif", RGB16, planar=planar, photometric="rgb", **layout)
    picture = read_image(path)
    np.testing.assert_array_equal(picture.pixels, to_rgb(RGB16))
    assert picture.stretch is not None
    assert picture.stretch.dtype == "uint16"
    # Different rows, columns and channels have different values.
    assert len(np.unique(picture.pixels.reshape(-1, 3), axis=0)) > 1900


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32", "float64", "float16"])
def test_deep_grey_tiff_equals_its_array(
    tmp_path: Path, layout: dict[str, Any], dtype: str
) -> None:
    values = GREY16.astype(dtype)
    path = write_tiff(tmp_path / "a.tif", values, photometric="minisblack", **layout)
    np.testing.assert_array_equal(load_image(path), to_rgb(values))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("planar", [False, True])
def test_eight_bit_tiff_equals_its_array(
    tmp_path: Path, layout: dict[str, Any], planar: bool
) -> None:
    path = write_tiff(tmp_path / "rgb.tif", RGB8, planar=planar, photometric="rgb", **layout)
    np.testing.assert_array_equal(load_image(path), RGB8)
    path = write_tiff(tmp_path / "grey.tif", GREY8, photometric="minisblack", **layout)
    np.testing.assert_array_equal(load_image(path)[..., 1], GREY8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_tiff_of_up_to_eight_bits_is_what_pillow_reads(
    tmp_path: Path, mode: str, compression: str | None
) -> None:
    image = Image.new("LAB", (53, 37), (90, 140, 100))
    if mode != "LAB":
        image = Image.fromarray(RGB8).convert("L" if mode == "LA" else "RGB").convert(mode)
    if compression == "jpeg" and mode in ("1", "LA", "P", "RGBA", "LAB"):
        pytest.skip("not a combination of TIFF")
    path = tmp_path / "a.tif"
    image.save(path, compression=compression)
    with Image.open(path) as opened:
        opened.load()
        expected = to_rgb(opened)
        if not opened.has_transparency_data and mode != "LAB":
            np.testing.assert_array_equal(expected, np.asarray(opened.convert("RGB")))
    picture = read_image(path)
    np.testing.assert_array_equal(picture.pixels, expected)
    assert picture.stretch is None


@pytest.mark.parametrize("extrasample", ["assocalpha", "unassalpha"])
@pytest.mark.parametrize("planar", [False, True])
def test_deep_tiff_with_opacity_is_blended_over_white(
    tmp_path: Path, extrasample: str, planar: bool
) -> None:
    alpha = np.full((37, 53, 1), 65535, np.uint16)
    alpha[:, :20] = 0
    color = np.where(alpha > 0, RGB16, 0).astype(np.uint16)
    values = np.concatenate((color, alpha), axis=-1)
    path = write_tiff(
        tmp_path / "a.tif", values, planar=planar, photometric="rgb", extrasamples=[extrasample]
    )
    pixels = load_image(path)
    assert (pixels[:, :20] == 255).all()
    np.testing.assert_array_equal(pixels, to_rgb(values))
    np.testing.assert_array_equal(pixels[:, 20:], to_rgb(color)[:, 20:])


def test_premultiplied_opacity_is_divided_out(tmp_path: Path) -> None:
    # Colour 40000 at an opacity of 0.5 is stored as 20000. In 8 bits it is 40000 / 257 = 156; over
    # white, (156 + 255) / 2 = 205.
    values = np.empty((8, 8, 4), np.uint16)
    values[..., :3], values[..., 3] = 20000, 32768
    values[:4] = 0, 0, 0, 65535
    path = write_tiff(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["assocalpha"])
    pixels = load_image(path)
    assert (pixels[:4] == 0).all()
    np.testing.assert_allclose(pixels[4:].astype(int), 205, atol=1)


def test_meaningless_fourth_channel_is_ignored(tmp_path: Path) -> None:
    values = np.concatenate((RGB16, RGB16[..., :1]), axis=-1)
    path = write_tiff(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(load_image(path), to_rgb(RGB16))


def test_kinds_of_deep_tiff(tmp_path: Path) -> None:
    inverted = write_tiff(tmp_path / "inverted.tif", 65535 - GREY16, photometric="miniswhite")
    np.testing.assert_array_equal(load_image(inverted), to_rgb(GREY16))
    # CMYK without black: the complement.
    cmyk = np.concatenate((65535 - RGB16, np.zeros((37, 53, 1), np.uint16)), axis=-1)
    path = write_tiff(tmp_path / "cmyk.tif", cmyk, photometric="separated")
    np.testing.assert_array_equal(load_image(path), to_rgb(RGB16))
    colormap = RNG.integers(0, 65536, (3, 65536)).astype(np.uint16)
    path = write_tiff(tmp_path / "palette.tif", GREY16, photometric="palette", colormap=colormap)
    np.testing.assert_array_equal(load_image(path), np.moveaxis(colormap[:, GREY16] >> 8, 0, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_deep_files(tmp_path: Path, orientation: int) -> None:
    # A file of 8 bits, which Pillow turns, is the reference.
    tag = [(274, "H", 1, orientation, True)]
    shallow = write_tiff(tmp_path / "a.tif", RGB8, photometric="rgb", extratags=tag)
    deep = RGB8.astype(np.uint16)  # within 0 to 255, so used as is
    path = write_tiff(tmp_path / "b.tif", deep, photometric="rgb", extratags=tag)
    np.testing.assert_array_equal(load_image(path), load_image(shallow))
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(RGB8).save(tmp_path / "a.png", exif=exif)
    data = insert_chunk(imagecodecs.png_encode(deep), b"eXIf", exif.tobytes()[6:])
    (tmp_path / "b.png").write_bytes(data)
    np.testing.assert_array_equal(load_image(tmp_path / "b.png"), load_image(tmp_path / "a.png"))


def insert_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG file with a chunk behind its header."""
    chunk = struct.pack(">I", len(content)) + kind + content
    return png[:33] + chunk + struct.pack(">I", zlib.crc32(kind + content)) + png[33:]


def test_deep_png(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    alpha = np.full((37, 53, 1), 65535, np.uint16)
    alpha[:9] = 0
    for values in (
        GREY16,
        RGB16,
        np.concatenate((RGB16, alpha), axis=-1),
        np.concatenate((GREY16[..., None], alpha), axis=-1),
    ):
        path.write_bytes(imagecodecs.png_encode(values))
        pixels = load_image(path)
        color = values if values.ndim == 2 or values.shape[2] == 3 else values[..., :-1]
        np.testing.assert_array_equal(pixels[9:], to_rgb(color)[9:])
        if color is not values:
            assert (pixels[:9] == 255).all()
    transparent = insert_chunk(  # one colour of an RGB image is transparent
        imagecodecs.png_encode(RGB16), b"tRNS", struct.pack(">HHH", *RGB16[4, 7].tolist())
    )
    path.write_bytes(transparent)
    pixels = load_image(path)
    assert (pixels[4, 7] == 255).all()
    np.testing.assert_array_equal(pixels[5:], to_rgb(RGB16)[5:])


def test_deep_jpeg_2000_and_ppm(tmp_path: Path) -> None:
    path = tmp_path / "a.jp2"
    path.write_bytes(imagecodecs.jpeg2k_encode(RGB16, reversible=True, level=0))
    np.testing.assert_array_equal(load_image(path), to_rgb(RGB16))
    path.write_bytes(imagecodecs.jpeg2k_encode(RGB8, reversible=True, level=0))
    np.testing.assert_array_equal(load_image(path), RGB8)
    content = bytearray(path.read_bytes())
    start = content.find(b"\xff\x4f\xff\x51")
    content[start + 8 : start + 16] = (9_000).to_bytes(4, "big") * 2
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.jp2 declares 9000 x 9000 pixels of 3 channels"):
        load_image(path)
    ppm = tmp_path / "a.ppm"
    ppm.write_bytes(b"P6\n53 37\n65535\n" + RGB16.astype(">u2").tobytes())
    np.testing.assert_array_equal(load_image(ppm), to_rgb(RGB16))
    ppm.write_bytes(ppm.read_bytes()[:-9])
    with pytest.raises(ImageError, match=r"a\.ppm is damaged or truncated"):
        load_image(ppm)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_text("P3\n1 1\n65535\n300 400 500\n")
    two = np.stack((GREY16, GREY16), axis=-1)
    write_tiff(tmp_path / "two.tif", two, photometric="minisblack", planarconfig="contig")
    write_tiff(tmp_path / "jxr.tif", GREY16, photometric="minisblack", compression="jpegxr")
    write_tiff(tmp_path / "complex.tif", GREY16.astype(np.complex64), photometric="minisblack")
    write_tiff(tmp_path / "lab.tif", RGB16, photometric="cielab")
    for name, message in (
        ("a.ppm", "convert it to TIFF or PNG"),
        ("two.tif", "has 2 channels"),
        ("jxr.tif", "compression JPEGXR"),
        ("complex.tif", "complex64"),
        ("lab.tif", "interpretation CIELAB"),
    ):
        with pytest.raises(ImageError, match=message) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_pillow_image_that_would_be_cut_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(RGB16))
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ImageError, match="pass the path"):
        to_rgb(image)


def test_sixteen_bits_per_pixel_are_not_cut(tmp_path: Path) -> None:
    # BMP with 5, 6 and 5 bits for R, G and B: white, pure red, pure blue, black.
    pixels = struct.pack("<4H", 0xFFFF, 0xF800, 0x001F, 0)
    header = struct.pack("<IiiHHIIiiII", 40, 4, 1, 1, 16, 3, len(pixels), 0, 0, 0, 0)
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    start = 14 + len(header) + len(masks)
    file_header = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    (tmp_path / "a.bmp").write_bytes(file_header + header + masks + pixels)
    expected = [[[255, 255, 255], [255, 0, 0], [0, 0, 255], [0, 0, 0]]]
    np.testing.assert_array_equal(load_image(tmp_path / "a.bmp"), expected)
    with Image.open(tmp_path / "a.bmp") as image:
        np.testing.assert_array_equal(to_rgb(image), expected)


def test_heic_is_read(tmp_path: Path) -> None:
    import pillow_heif

    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    heif = pillow_heif.from_pillow(Image.fromarray(smooth))
    heif.save(tmp_path / "a.heic", quality=95)
    pixels = load_image(tmp_path / "a.heic")
    assert np.abs(pixels.astype(int) - smooth).mean() < 8


@pytest.mark.parametrize("kind", ["strips", "tiles", "deflate", "lzw", "png", "jp2", "planar"])
def test_damaged_deep_files_are_rejected(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.png" if kind == "png" else "a.jp2" if kind == "jp2" else "a.tif")
    values = RNG.integers(0, 65536, (64, 64, 3)).astype(np.uint16)
    options: dict[str, Any] = {
        "strips": {"rowsperstrip": 8},
        "tiles": {"tile": (16, 16)},
        "deflate": {"compression": "zlib", "rowsperstrip": 8},
        "lzw": {"compression": "lzw"},
        "planar": {"planar": True},
    }.get(kind, {})
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(values))
    elif kind == "jp2":
        path.write_bytes(imagecodecs.jpeg2k_encode(values, reversible=True, level=0))
    else:
        write_tiff(path, values, photometric="rgb", **options)
    data = path.read_bytes()
    for length in (60, len(data) // 2, len(data) - 3000):
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match=str(path)) as caught:
            load_image(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["tif", "png", "jp2", "ppm"])
def test_decompression_bombs_are_rejected_before_memory_is_taken(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        write_tiff(path, RGB16, photometric="rgb", compression="zlib")
    elif suffix == "png":
        path.write_bytes(imagecodecs.png_encode(RGB16))
    elif suffix == "jp2":
        path.write_bytes(imagecodecs.jpeg2k_encode(RGB16, reversible=True, level=0))
    else:
        path.write_bytes(b"P6\n53 37\n65535\n" + RGB16.astype(">u2").tobytes())

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(imagecodecs, "png_decode", fail)
    monkeypatch.setattr(imagecodecs, "jpeg2k_decode", fail)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", fail)
    monkeypatch.setattr(np, "fromfile", fail)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1960)  # 37 * 53 = 1961
    monkeypatch.setattr("PIL.Image._decompression_bomb_check", lambda _: None)
    with pytest.raises(ImageError, match=r"is larger than 1960 pixels"):
        load_image(path)


def test_tiff_that_pillow_cannot_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = RGB8.reshape(37, 53, 3).astype(np.int8)  # signed, which Pillow has no mode for
    path = write_tiff(tmp_path / "a.tif", values, photometric="rgb")
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(path)
    np.testing.assert_array_equal(load_image(path), to_rgb(values))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="is larger than 1000 pixels"):
        load_image(path)


def test_pages_are_counted(tmp_path: Path) -> None:
    frames = [Image.fromarray(GREY8 // (k + 1)) for k in range(4)]
    for suffix in ("tif", "gif", "webp", "png"):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert read_image(path).extent.frames == 4, suffix
        frames[0].save(path)
        assert read_image(path).extent.frames == 1, suffix
    stack = np.stack([GREY16, GREY16 // 2, GREY16 // 3])
    path = write_tiff(tmp_path / "a.tif", stack, photometric="minisblack")
    assert read_image(path).extent.frames == 3
    for values in (stack, stack.astype(np.uint8)):
        write_tiff(path, values, imagej=True, metadata={"axes": "ZYX"})
        assert read_image(path).extent == Extent(frames=3)
        write_tiff(path, values, imagej=True, metadata={"axes": "CYX"})
        assert read_image(path).extent == Extent(channels=3)
    with tifffile.TiffWriter(path) as file:  # a reduced copy is not another page
        file.write(RGB16, photometric="rgb")
        file.write(RGB16[::2, ::2], photometric="rgb", subfiletype=1)
    assert read_image(path).extent.frames == 1
