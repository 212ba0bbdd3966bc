"""What measurements need of an image beside its 8-bit pixels: stored values and pixel size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meinst.data.images import ImageError, turn
from meinst.images.pixel_size import tiff_pixel_size
from meinst.images.readers import (
    check_pixels,
    is_big_endian_bigtiff,
    is_tiff,
    orientation_of,
    prepare_pillow,
    read_deep,
    read_tiff,
)
from meinst.images.sources import ImageFile, opened

_HEAD = 64  # bytes that tell the format of a file


def read_channels(file: ImageFile) -> NDArray[Any]:
    """The values of an image of more than 8 bits as they are stored, turned upright.

    Args:
        file: the image file; of several pages, the first is read.

    Returns:
        ``(H, W, C)``, without opacity.

    Raises:
        ImageError: if they cannot be read.
    """
    try:
        values = turn(*_stored_values(file))
    except Exception as error:  # readers raise almost anything for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{file}: its values cannot be read ({reason}); restore it.") from error
    if values.ndim == 2:
        return values[..., None]
    return values[..., :-1] if values.shape[2] in (2, 4) else values


def grey_or_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(H, W, 1)`` if the three channels of ``(H, W, 3)`` are equal, otherwise the same."""
    first = pixels[..., :1]
    return first if bool((pixels[..., 1:] == first).all()) else pixels


def read_pixel_size(file: ImageFile) -> float | None:
    """Side of a pixel in micrometres, which TIFF files may state; None if it is not known."""
    try:
        with file.open("rb") as stream:
            if not is_tiff(stream.read(_HEAD)):
                return None
        from tifffile import TiffFile

        with TiffFile(opened(file)) as tiff:
            return tiff_pixel_size(tiff, tiff.pages.first)
    except Exception:  # of damaged metadata; whether there are pixels is for others to say
        return None


def _stored_values(file: ImageFile) -> tuple[NDArray[Any], int]:
    """The values of the first page as they are stored, and the EXIF orientation."""
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    prepare_pillow(head)
    if is_big_endian_bigtiff(head):
        return read_tiff(file)
    with Image.open(opened(file)) as image:
        check_pixels(image.width, image.height)
        return read_deep(file, image) or (np.asarray(image), orientation_of(image))
