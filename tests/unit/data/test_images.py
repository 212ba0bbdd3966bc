from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meinst.data.images import ImageError, find_images, load_image, to_rgb

# Left half dark grey, right half light grey; 3 rows, 4 columns.
GREY = np.array([[51, 51, 204, 204]] * 3, dtype=np.uint8)
RGB = np.repeat(GREY[..., None], 3, axis=2)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_rgb_is_returned_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save(tmp_path / "a.png", Image.fromarray(pixels))
    before = pixels.copy()
    for image in (path, str(path), Image.fromarray(pixels), pixels):
        result = to_rgb(image)
        assert result.dtype == np.uint8
        assert result.flags.c_contiguous
        np.testing.assert_array_equal(result, before)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_eight_bit_modes_keep_their_colours(mode: str) -> None:
    image = Image.fromarray(GREY).convert("RGB")
    if mode == "PA":
        image = image.convert("P").convert("PA")
    elif mode == "HSV":
        image = image.convert("HSV")
    else:
        image = image.convert("L").convert(mode) if mode == "LA" else image.convert(mode)
    assert image.mode == mode
    np.testing.assert_allclose(to_rgb(image).astype(int), RGB, atol=1)


def test_lab_and_premultiplied_alpha() -> None:
    # L* = 100, a* = b* = 0 is white, L* = 0 is black (128 is 0 for a and b).
    for lightness, value in ((255, 255), (0, 0)):
        image = Image.new("LAB", (2, 2), (lightness, 128, 128))
        np.testing.assert_allclose(to_rgb(image).astype(int), value, atol=2)
    rgba = Image.new("RGBA", (2, 2), (200, 100, 0, 255))
    np.testing.assert_array_equal(to_rgb(rgba.convert("RGBa"))[0, 0], (200, 100, 0))
    la = Image.new("LA", (2, 2), (80, 255))
    np.testing.assert_array_equal(to_rgb(la.convert("La"))[0, 0], (80, 80, 80))


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    image = Image.fromarray(GREY > 100)
    assert image.mode == "1"
    for result in (to_rgb(image), load_image(save(tmp_path / "a.png", image)), to_rgb(GREY > 100)):
        np.testing.assert_array_equal(result[..., 0], np.where(GREY > 100, 255, 0))


def test_transparent_pixels_are_blended_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, 3] = 0, 255, 51  # black of no, full and a fifth of opacity
    expected = [255, 0, 204]  # 255 * (1 - opacity)
    for image in (rgba, Image.fromarray(rgba), save(tmp_path / "a.png", Image.fromarray(rgba))):
        np.testing.assert_array_equal(to_rgb(image)[0, :, 1], expected)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    path = save(tmp_path / "p.png", palette, transparency=1)
    np.testing.assert_array_equal(load_image(path), [[[10, 20, 30], [255, 255, 255]]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),  # 8 bits in 16: as they are
        ([0, 257, 65535], [0, 1, 255]),  # 16 bits: value / 257
        ([0, 2000, 4000], [0, 125, 249]),  # 12 bits: 2000 * 255 / 4095 = 124.54, 4000: 249.08
        ([0, 256, 1000], [0, 64, 249]),  # 10 bits: 256 * 255 / 1023 = 63.8, 1000: 249.3
    ],
)
def test_sixteen_bit_values_are_scaled_by_the_bits_in_use(
    tmp_path: Path, values: list[int], expected: list[int]
) -> None:
    array = np.array([values], dtype=np.uint16)
    image = Image.fromarray(array)
    assert image.mode == "I;16"
    sources = [array, image, Image.fromarray(array.astype(np.int32)), array.astype(np.float32)]
    sources += [save(tmp_path / name, image) for name in ("a.png", "a.tif")]
    big_endian = Image.frombytes("I;16B", (3, 1), array.astype(">u2").tobytes())
    for source in [*sources, big_endian]:
        result = to_rgb(source)
        for channel in range(3):
            np.testing.assert_array_equal(result[0, :, channel], expected)


def test_floats_and_wide_integers() -> None:
    np.testing.assert_array_equal(to_rgb(np.array([[0.0, 0.5, 1.0]]))[0, :, 0], [0, 128, 255])
    # From -1 to 3: (v + 1) / 4 * 255.
    np.testing.assert_array_equal(to_rgb(np.array([[-1.0, 1.5, 3.0]]))[0, :, 0], [0, 159, 255])
    np.testing.assert_array_equal(to_rgb(np.array([[0, 1000, 100_000]]))[0, :, 0], [0, 3, 255])
    np.testing.assert_array_equal(to_rgb(np.array([[np.nan, 0.0, 1.0]]))[0, :, 0], [0, 0, 255])
    np.testing.assert_array_equal(to_rgb(np.array([[0.0, 255.9]]))[0, :, 0], [0, 255])
    np.testing.assert_array_equal(to_rgb(np.full((1, 2), -7)), np.zeros((1, 2, 3)))
    image = Image.fromarray(np.array([[-1.0, 1.5, 3.0]], dtype=np.float32))
    assert image.mode == "F"
    np.testing.assert_array_equal(to_rgb(image)[0, :, 0], [0, 159, 255])


def test_arrays_of_one_channel() -> None:
    np.testing.assert_array_equal(to_rgb(GREY), RGB)
    np.testing.assert_array_equal(to_rgb(GREY[..., None]), RGB)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0), (4,), (4, 4, 2), (1, 4, 4, 3)])
def test_arrays_of_other_shapes_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"got \("):
        to_rgb(np.zeros(shape, dtype=np.uint8))


def test_other_types_and_empty_images_are_rejected() -> None:
    with pytest.raises(ImageError, match="complex128"):
        to_rgb(np.zeros((2, 2), dtype=complex))
    with pytest.raises(ImageError, match="got list"):
        to_rgb([[1, 2]])  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="no pixels"):
        to_rgb(Image.new("RGB", (0, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.random.default_rng(1).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    # How each orientation is stored according to the EXIF standard.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(stored))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", image, exif=exif)
    np.testing.assert_array_equal(load_image(path), upright)
    np.testing.assert_array_equal(load_image(path, (5, 3)), upright)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(to_rgb(opened), upright)
    if orientation >= 5:  # annotations of the unrotated image
        np.testing.assert_array_equal(load_image(path, (3, 5)), stored)


@pytest.mark.parametrize("exif", [b"II*\x00\xff\xff\xff", b"no EXIF at all"])
def test_broken_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    for name in ("a.jpg", "a.png"):
        path = save(tmp_path / name, Image.fromarray(RGB), exif=b"Exif\x00\x00" + exif)
        assert load_image(path).shape == (3, 4, 3)


def test_size_must_match_the_annotations(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    assert load_image(path, (4, 3)).shape == (3, 4, 3)
    with pytest.raises(ImageError, match=r"a\.png has 4 x 3 pixels.*3 x 4"):
        load_image(path, (3, 4))


def test_only_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("L", (2, 2), value) for value in (10, 200)]
    path = save(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    assert (load_image(path) == 10).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "gif", "bmp"])
def test_truncated_files_are_rejected(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(noise))
    data = path.read_bytes()
    for length in (40, len(data) // 2):
        path.write_bytes(data[:length])
        with pytest.raises(ImageError, match=str(path)) as caught:
            load_image(path)
        assert "\n" not in str(caught.value)
    if suffix == "png":
        with Image.open(path) as opened, pytest.raises(ImageError, match="damaged"):
            to_rgb(opened)


def test_files_that_are_not_images_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    for name, message in (
        ("empty.png", "is empty"),
        ("text.png", "is not an image"),
        ("none.png", "does not exist"),
        ("", "is a folder"),
    ):
        with pytest.raises(ImageError, match=message):
            load_image(tmp_path / name)


def test_system_errors_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(RGB))

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match=r"a\.png cannot be read: Permission denied"):
        load_image(path)


@pytest.mark.parametrize("excess", [1.5, 3.0])
def test_decompression_bombs_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, excess: float
) -> None:
    # Pillow warns above its limit and fails above twice the limit; both are errors here.
    path = save(tmp_path / "a.png", Image.new("L", (30, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(600 / excess))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match=r"a\.png is larger than \d+ pixels"):
            load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert load_image(path).shape == (20, 30, 3)


def test_reading_does_not_change_warning_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Warning filters are global: changing them would affect other threads.
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(warnings, "filterwarnings", fail)
    monkeypatch.setattr(warnings, "simplefilter", fail)
    path = save(tmp_path / "a.png", Image.fromarray(RGB))
    np.testing.assert_array_equal(load_image(path), RGB)


def test_find_images(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="contains no images"):
        find_images([tmp_path])
    assert find_images([]) == []
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "odd [1].png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "c.tif").touch()
    folder = [tmp_path / name for name in ("a.JPG", "b.png", "odd [1].png")]
    assert find_images([tmp_path]) == folder
    assert find_images([str(tmp_path / "*.png")]) == folder[1:]
    assert find_images([tmp_path / "b.png", tmp_path]) == [folder[1], folder[0], folder[2]]
    assert find_images([folder[2]]) == [folder[2]]
    aside = tmp_path / "sub.png" / ".." / "b.png"
    assert find_images([aside, folder[1], tmp_path / "*.png"]) == [aside, folder[2]]
    assert find_images([tmp_path / "notes.txt"]) == [
        tmp_path / "notes.txt"
    ]  # any suffix if given by name
    assert find_images([tmp_path / "**" / "*"]) == [*folder, tmp_path / "sub.png" / "c.tif"]
    for absent in ("absent", "*.bmp"):
        with pytest.raises(FileNotFoundError, match="neither a file or folder"):
            find_images([tmp_path / absent])
