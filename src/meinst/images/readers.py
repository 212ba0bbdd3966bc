"""Read files whose values Pillow would cut to 8 bits: TIFF, PNG, JPEG 2000 and PPM.

Pillow opens every file first. It reads images of up to 8 bits per value itself; its modes for
colour have no more, so the values of others are decoded here.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meinst.images.sources import BoundedFile, ImageFile, opened

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

Values: TypeAlias = NDArray[Any]

HEAD = 64
"""Bytes that tell the format of a file."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BITS, _SAMPLE_FORMAT, _ORIENTATION = 258, 339, 274
_UNSIGNED = 1
_ALPHA = (1, 2)  # extra samples: premultiplied and separate opacity
# Compressions of plain bytes, whose results tifffile limits to the declared size: none, LZW,
# Deflate (old and new), PackBits, LZMA and Zstandard.
_COMPRESSIONS = (1, 5, 8, 32946, 32773, 34925, 50000)
# Channels by photometric interpretation, where segments are pictures: their decoders return RGB.
_IN_PICTURES = {1: 1, 2: 3, 6: 3}
_JPEG2000_HEAD = 65536  # bytes in which the codestream of a JPEG 2000 file begins
# A JPEG 2000 file may need this many bytes in any case, and this many for each of its own.
_JPEG2000_BYTES, _JPEG2000_EXPANSION = 2**28, 2000


class UnsupportedImageError(ValueError):
    """An image of a kind that cannot be read; the message continues the name of the file."""


def prepare_pillow(head: bytes) -> None:
    """Register Pillow's reader of HEIF files if the first bytes of a file are those of one."""
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        from pillow_heif import register_heif_opener

        register_heif_opener()


@contextmanager
def open_image(file: ImageFile) -> Iterator[Image.Image]:
    """Open a file with Pillow; it is closed afterwards.

    Raises:
        PIL.UnidentifiedImageError: if it is not an image.
    """
    with BoundedFile(file) if isinstance(file, Path) else file.open() as stream:
        prepare_pillow(stream.read(HEAD))
        stream.seek(0)
        with Image.open(stream) as image:
            yield image


def is_tiff(head: bytes) -> bool:
    """Whether a file is a TIFF file, by its first bytes."""
    return head[:4] in _TIFF_MAGIC


def is_big_endian_bigtiff(head: bytes) -> bool:
    """Whether a file is a big-endian BigTIFF, which Pillow takes for a damaged TIFF file."""
    return head[:4] == _TIFF_MAGIC[3]


def check_pixels(width: int, height: int) -> None:
    """Reject images above Pillow's limit, before memory is allocated for them.

    Raises:
        PIL.Image.DecompressionBombError: if the image is larger.
    """
    if width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError  # Pillow raises it from twice as many on


def is_deep(image: Image.Image) -> bool:
    """Whether Pillow would cut the values of a frame to 8 bits."""
    if image.format != "TIFF":
        return cuts_values(image)
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    formats = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    return max(tags.get(_BITS, (1,))) > 8 or set(formats) != {_UNSIGNED}


def read_deep(path: ImageFile, image: Image.Image) -> tuple[Values, int] | None:
    """The values of a file that Pillow would cut, and their EXIF orientation; else None.

    Args:
        path: the file.
        image: the same file, opened by Pillow but not loaded.

    Returns:
        ``(H, W)`` or ``(H, W, C)`` with ``C`` of 1 (grey), 2 (with opacity), 3 (RGB) or 4 (with
        opacity).

    Raises:
        UnsupportedImageError: if nothing here can read such a file.
    """
    if image.format == "TIFF":
        return read_tiff(path) if is_deep(image) else None
    if image.format == "JPEG2000":
        deep = _is_deep_jpeg2000(path) and image.mode not in ("I;16", "I")
        return (_decode_jpeg2000(path), orientation_of(image)) if deep else None
    if not cuts_values(image):
        return None
    if image.format == "PNG":
        from imagecodecs import png_decode

        values: Values = png_decode(path.read_bytes())
        return values, orientation_of(image)
    if image.format == "PPM" and _tiles(image)[0][0] == "ppm":
        return _read_ppm(path, image), 1
    raise UnsupportedImageError(
        f"has more than 8 bits per channel, which cannot be read from {image.format}; convert it "
        "to TIFF or PNG."
    )


def cuts_values(image: Image.Image) -> bool:
    """Whether Pillow would cut the values of a file that it has opened but not loaded."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return False
    for tile in _tiles(image):
        args = tile[3] if isinstance(tile[3], (tuple, list)) else (tile[3],)
        # Not "RGB;16", which is 16 bits for all channels together.
        if any(isinstance(each, str) and re.search(";16[BLN]", each) for each in args):
            return True
        if image.format == "PPM" and isinstance(args[-1], int) and args[-1] > 255:
            return True
    return False


def _tiles(image: Image.Image) -> list[Any]:
    """Parts of an image that Pillow has not loaded yet: decoder, area, offset, arguments."""
    return list(getattr(image, "tile", ()))


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none or the metadata are broken."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # ignore broken metadata
        return 1
    return orientation if orientation in range(1, 9) else 1


def open_tiff(path: ImageFile) -> TiffFile:
    """Open a TIFF file alone, also if its metadata name others that belong to it."""
    from tifffile import TiffFile

    return TiffFile(opened(path), _multifile=False)


@contextmanager
def _first_page(path: ImageFile) -> Iterator[TiffPage]:
    with open_tiff(path) as file:
        yield file.pages.first


def read_tiff(path: ImageFile) -> tuple[Values, int]:
    """The values of a TIFF file's first page, and its orientation.

    Returns:
        As :func:`read_deep`.

    Raises:
        UnsupportedImageError: if its compression or kind of colours is not supported.
        PIL.Image.DecompressionBombError: if it is too large.
    """
    with _first_page(path) as page:
        check_pixels(page.imagewidth, page.imagelength)
        check_tiff(page)
        values: Values = page.asarray(maxworkers=1)
        if page.axes.startswith("S"):  # one plane after the other
            values = np.moveaxis(values, 0, -1)
        orientation = int(page.tags.valueof(_ORIENTATION, 1))
        values = to_grey_or_rgb(values, page)
    return values, orientation if orientation in range(1, 9) else 1


def tiff_sizes(path: Path) -> list[tuple[int, int]]:
    """Width and height of a TIFF file's first page as stored, and as turned upright."""
    with _first_page(path) as page:
        check_pixels(page.imagewidth, page.imagelength)
        size = page.imagewidth, page.imagelength
        turned = int(page.tags.valueof(_ORIENTATION, 1)) >= 5
    return [size, size[::-1]] if turned else [size]


def check_channels(channels: Sequence[int], count: int) -> None:
    """Reject channels that an image does not have.

    Raises:
        UnsupportedImageError: naming the first of them.
    """
    for channel in channels:
        if channel >= count:
            there = (
                f"{count} channels, numbered 0 to {count - 1}" if count > 1 else "only channel 0"
            )
            raise UnsupportedImageError(
                f"has {there}, so there is no channel {channel}; choose others with --channels."
            )


def check_tiff(
    page: TiffPage, pictures: Collection[int] = (), *, any_channels: bool = False
) -> None:
    """Reject what cannot be read, before memory is allocated for it.

    Args:
        page: the page.
        pictures: compressions of pictures that are allowed besides those of plain bytes.
        any_channels: accept any number of channels.

    Raises:
        UnsupportedImageError: naming the rule and the remedy.
    """
    if page.compression not in (*_COMPRESSIONS, *pictures):
        name = getattr(page.compression, "name", page.compression)
        raise UnsupportedImageError(
            f"is a TIFF file of {page.bitspersample} bits per value with the compression {name}, "
            "which cannot be read; convert it to another compression, such as Deflate."
        )
    known = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4} if page.compression in _COMPRESSIONS else _IN_PICTURES
    colours = known.get(int(page.photometric))
    kind = getattr(page.photometric, "name", page.photometric)
    if colours is None or page.imagedepth != 1:
        raise UnsupportedImageError(
            f"is a TIFF file of {page.bitspersample} bits per value with the photometric "
            f"interpretation {kind}, which cannot be read; convert it to RGB or grey."
        )
    if any_channels:
        return
    extra = tuple(page.extrasamples)
    # RGB may have one more channel without a meaning; a further grey channel means something.
    allowed = extra == () or (len(extra) == 1 and (extra[0] in _ALPHA or colours > 1))
    if page.samplesperpixel != colours + len(extra) or not allowed:
        raise UnsupportedImageError(
            f"has {page.samplesperpixel} channels ({kind}); choose one or three of them with "
            "channels, such as 2,0,0."
        )


def to_grey_or_rgb(values: Values, page: TiffPage) -> Values:
    """Resolve inverted grey, palettes, CMYK and premultiplied opacity.

    Args:
        values: ``(H, W)`` or ``(H, W, C)`` of the page or a part of it.
        page: a page that :func:`check_tiff` accepts.

    Returns:
        As :func:`read_deep`.
    """
    colours = page.samplesperpixel - len(page.extrasamples)  # samples of the colour
    greatest = 2**page.bitspersample - 1
    if greatest < 255 and page.photometric != 3:  # 1, 2 or 4 bits of grey
        values, greatest = values.astype(np.uint8) * np.uint8(255 // greatest), 255
    color = values[..., :colours] if page.samplesperpixel > 1 else values
    if page.photometric == 0:  # white is zero
        color = greatest - color if color.dtype.kind == "u" else -color
    elif page.photometric == 3:
        assert page.colormap is not None
        color = np.moveaxis((page.colormap >> 8).astype(np.uint8)[:, color], 0, -1)
    elif page.photometric == 5:
        inverted = greatest - color.astype(np.float64)
        rgb = inverted[..., :3] * inverted[..., 3:] / greatest
        color = np.rint(rgb).astype(color.dtype)
    extra = tuple(page.extrasamples)
    if not extra or extra[0] not in _ALPHA:
        return color
    alpha = values[..., colours : colours + 1]
    if extra[0] == 1:
        opaque = np.maximum(alpha.astype(np.float64), 1e-9) / _opaque(alpha)
        separate = np.where(alpha > 0, color / opaque, 0).clip(0, _opaque(alpha))
        color = np.rint(separate).astype(color.dtype) if color.dtype.kind == "u" else separate
    return np.concatenate((color.reshape(*alpha.shape[:2], -1), alpha), axis=-1)


def _opaque(alpha: Values) -> float:
    """The value of full opacity."""
    return float(np.iinfo(alpha.dtype).max) if alpha.dtype.kind in "iu" else 1.0


def _read_ppm(path: ImageFile, image: Image.Image) -> Values:
    """RGB values of a binary PPM file of 16 bits, which is big-endian."""
    offset = _tiles(image)[0][2]
    count = image.width * image.height * 3
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read(2 * count)
    if len(content) < 2 * count:
        raise OSError("image file is truncated")
    return (
        np.frombuffer(content, dtype=">u2").astype(np.uint16).reshape(image.height, image.width, 3)
    )


def _is_deep_jpeg2000(path: ImageFile) -> bool:
    """Whether a JPEG 2000 file has more than 8 bits per value.

    Raises:
        PIL.Image.DecompressionBombError: if it is too large.
        UnsupportedImageError: if it needs far more memory than its length suggests.
    """
    with path.open("rb") as file:
        head = file.read(_JPEG2000_HEAD)
        length = file.seek(0, os.SEEK_END)
    start = head.find(b"\xff\x4f\xff\x51")  # of the codestream and of its sizes
    if start < 0 or len(head) < start + 44:
        return False
    width, height = (int.from_bytes(head[start + i : start + i + 4], "big") for i in (8, 12))
    channels = int.from_bytes(head[start + 40 : start + 42], "big")
    check_pixels(width, height)
    # The decoder holds 32 bits for each value.
    if 4 * width * height * channels > max(_JPEG2000_BYTES, _JPEG2000_EXPANSION * length):
        raise UnsupportedImageError(
            f"declares {width} x {height} pixels of {channels} channels, but has only {length} "
            "bytes; it is damaged, or save it as TIFF."
        )
    return (head[start + 42] & 0x7F) + 1 > 8


def _decode_jpeg2000(path: ImageFile) -> Values:
    from imagecodecs import jpeg2k_decode

    values: Values = jpeg2k_decode(path.read_bytes())
    return values
