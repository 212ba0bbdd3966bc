"""Convert image files, Pillow images and arrays to ``(H, W, 3)`` uint8 RGB."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

Pixels: TypeAlias = NDArray[np.uint8]
ImageLike: TypeAlias = "str | Path | Image.Image | NDArray[Any]"

_SUFFIXES = "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp"
IMAGE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
"""Suffixes of images in folders; files that are given by name may have any suffix."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED = (5, 6, 7, 8)  # orientations that swap width and height
_SENSOR_BITS = (8, 10, 12, 14, 16)


class ImageError(ValueError):
    """An image cannot be used; the message gives the file, the reason and the remedy."""


def check_header(path: Path, size: tuple[int, int]) -> None:
    """Check what the header of an image file says, without reading its pixels.

    Args:
        path: the file.
        size: width and height in the annotation file.

    Raises:
        ImageError: as :func:`load_image`, except for damage after the header.
    """
    _check_file(path)
    try:
        with Image.open(path) as image:
            _check_pixels(image)
            sizes = [image.size]
            if image.getexif().get(_ORIENTATION_TAG, 1) in _SWAPPED:
                sizes.append(image.size[::-1])
    except Exception as error:  # as in load_image
        raise ImageError(f"{path} {_reason(error)}") from error
    if tuple(size) not in sizes:
        raise _wrong_size(path, sizes[-1], size)


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Pixels:
    """Read an image file; only the first frame if there are several.

    The EXIF orientation is applied, as in image viewers. Some annotation tools ignore it: if only
    the unrotated image has the given ``size``, it is not applied (except for TIFF files, which
    Pillow rotates itself).

    Args:
        path: the file.
        size: width and height in the annotation file, to be checked; None for no check.

    Returns:
        ``(H, W, 3)`` uint8 RGB; other modes are converted as in `to_rgb`.

    Raises:
        ImageError: if the file is missing, empty, damaged, not an image, larger than Pillow's limit
            (``PIL.Image.MAX_IMAGE_PIXELS``), or has another size.
    """
    path = Path(path)
    _check_file(path)
    try:
        with Image.open(path) as image:
            _check_pixels(image)
            image.load()
            upright = _upright(image, size)
            pixels = _rgb(upright)
    except Exception as error:  # Pillow's readers raise almost anything for damaged files
        raise ImageError(f"{path} {_reason(error)}") from error
    if size is not None and upright.size != tuple(size):
        raise _wrong_size(path, upright.size, size)
    return pixels


def _check_file(path: Path) -> None:
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise ImageError(f"{path} {fault}: an image file is needed.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): restore or remove it.")


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise Image.DecompressionBombError  # Pillow raises it from twice as many on


def _wrong_size(path: Path, size: tuple[int, int], expected: tuple[int, int]) -> ImageError:
    return ImageError(
        f"{path} has {size[0]} x {size[1]} pixels, but the annotations expect "
        f"{expected[0]} x {expected[1]}: use the image that was annotated."
    )


def _reason(error: Exception) -> str:
    """Describe why Pillow failed to read a file, and the remedy."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"is larger than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit against "
            "decompression bombs: cut it into tiles or scale it down."
        )
    if isinstance(error, UnidentifiedImageError):
        return f"is not an image that Pillow {PIL.__version__} can read."
    if isinstance(error, OSError) and error.errno is not None:  # from the operating system
        return f"cannot be read: {error.strerror}."
    reason = str(error).partition("\n")[0] or type(error).__name__
    return f"is damaged or truncated ({reason}): restore it."


def to_rgb(image: ImageLike) -> Pixels:
    """Convert an image to ``(H, W, 3)`` uint8 RGB.

    - Grey images (also 1-bit) are repeated over the three channels; palettes are resolved.
    - Transparent images are blended over white.
    - Values of more than 8 bits (Pillow's ``I;16``, ``I``, ``F``; integer and float arrays) are
      scaled to 0..255 from the range of 8, 10, 12, 14 or 16 bits, the smallest that contains the
      maximum. Floats within 0..1 are multiplied by 255. Negative or larger values are scaled from
      their own range. Values that are not finite become 0.
    - CMYK, YCbCr, HSV and LAB are converted.

    Args:
        image: a path, a Pillow image (its EXIF orientation is applied), or an array ``(H, W)``,
            ``(H, W, 1)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA.

    Raises:
        ImageError: if the image has no pixels or is of another shape or type, or as `load_image`.
    """
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        try:
            image.load()  # Image.open reads only the header
        except Exception as error:  # as in load_image
            raise ImageError(f"The Pillow image is damaged or truncated ({error}).") from error
        return _rgb(_upright(image, None))
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"An image must be a path, a Pillow image or a NumPy array, got {type(image).__name__}."
        )
    if (
        image.ndim not in (2, 3)
        or image.size == 0
        or (image.ndim == 3 and image.shape[2] not in (1, 3, 4))
    ):
        raise ImageError(
            f"An image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with at least one "
            f"pixel, got {image.shape}."
        )
    pixels = _eight_bits(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]  # (H, W, 1)
    if pixels.shape[2] == 4:
        return _rgb(Image.fromarray(pixels))
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Find the image files of files, folders and glob patterns, without duplicates, in order.

    Folders yield the images directly in them, by suffix and sorted, without hidden files; patterns
    yield the images that match, sorted (``**`` matches subfolders).

    Raises:
        FileNotFoundError: if a source does not exist, does not match or contains no images.
    """
    found: dict[Path, Path] = {}  # paths as given, by resolved path
    for source in sources:
        path = Path(source)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(entry for entry in path.iterdir() if _is_image(entry))
            if not matches:
                raise FileNotFoundError(
                    f"The folder {path} contains no images ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                    f"to include subfolders, use the pattern '{path}/**/*'."
                )
        else:
            # pathlib's glob does not accept absolute patterns.
            names = sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207
            matches = [entry for entry in map(Path, names) if _is_image(entry)]
            if not matches:
                raise FileNotFoundError(
                    f"{source} is not a file or folder, nor a pattern that matches an image."
                )
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Apply the EXIF orientation, unless only the unrotated image has the given size."""
    try:
        method = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # ignore broken metadata
        method = None
    if method is None:
        return image
    upright = image.transpose(method)
    if size is not None and upright.size != tuple(size) and image.size == tuple(size):
        return image
    return upright


def _rgb(image: Image.Image) -> Pixels:
    if image.width == 0 or image.height == 0:
        raise ImageError(f"The image has no pixels ({image.width} x {image.height}).")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return to_rgb(np.asarray(image))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.mode in ("RGBa", "La") or image.has_transparency_data:
        opaque = image.convert("LA") if image.mode == "La" else image
        opaque = opaque.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, opaque)
    return np.array(image.convert("RGB"))


def _eight_bits(values: NDArray[Any]) -> Pixels:
    """Scale to 0..255 as in `to_rgb`; uint8 is returned unchanged."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise ImageError(f"An image array must contain numbers, got {values.dtype}.")
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high < 2 ** _SENSOR_BITS[-1]:
        low, high = 0.0, float(next(2**bits - 1 for bits in _SENSOR_BITS if high < 2**bits))
    scaled = (numbers - low) * (255.0 / ((high - low) or 1.0))
    return np.floor(np.minimum(scaled + 0.5, 255.0)).astype(np.uint8)
