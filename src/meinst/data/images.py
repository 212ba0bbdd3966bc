"""Images of files, Pillow objects and arrays as ``(H, W, 3)`` uint8 RGB, or a clear error."""

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
"""What counts as an image in a folder. A file that is named itself may end in anything."""

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
_SENSOR_BITS = (8, 10, 12, 14, 16)


class ImageError(ValueError):
    """An image that cannot be used; the message names the file, the fault and the remedy."""


def load_image(path: str | Path, size: tuple[int, int] | None = None) -> Pixels:
    """Read an image file (of several frames, the first).

    The EXIF orientation is applied, so the picture is as viewers show it. Some annotation tools
    ignore it: when ``size`` fits the stored picture alone, that is what is returned (but for TIFF,
    which Pillow turns itself).

    Args:
        path: the file.
        size: width and height that an annotation file gives the image; checked.

    Returns:
        ``(H, W, 3)`` uint8 RGB; see `to_rgb` for what becomes of other modes.

    Raises:
        ImageError: for a file that is missing, empty, truncated, no image, larger than Pillow's
            limit (``PIL.Image.MAX_IMAGE_PIXELS``), or not of the given size.
    """
    path = Path(path)
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise ImageError(f"{path} {fault}: an image file is needed.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes): restore or remove it.")
    try:
        with Image.open(path) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                raise Image.DecompressionBombError  # Pillow itself begins at twice as many
            image.load()
            upright = _upright(image, size)
            pixels = _rgb(upright)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"{path} is larger than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit against "
            "decompression bombs: cut it into tiles or scale it down."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image that Pillow {PIL.__version__} can read."
        ) from error
    except Exception as error:  # on broken files Pillow's readers raise nearly anything
        if isinstance(error, OSError) and error.errno is not None:  # the system's, not Pillow's
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ImageError(f"{path} is damaged or truncated ({reason}): restore it.") from error
    if size is not None and (upright.width, upright.height) != tuple(size):
        raise ImageError(
            f"{path} is {upright.width} x {upright.height} pixels, but the annotations say "
            f"{size[0]} x {size[1]}: they must belong to this very image."
        )
    return pixels


def to_rgb(image: ImageLike) -> Pixels:
    """Bring an image of any kind to ``(H, W, 3)`` uint8 RGB.

    - Grey (also 1-bit) is repeated over the three channels; palettes are resolved.
    - Transparent images are laid over white, as viewers do.
    - Values of more than 8 bits (Pillow's ``I;16``, ``I``, ``F``; integer and float arrays): the
      full range of the narrowest of 8, 10, 12, 14 and 16 bits that holds the greatest value
      becomes 0..255; floats within 0..1 are multiplied by 255; everything else (negative or
      larger values) is stretched from its own range. Values that are not finite count as 0.
    - CMYK, YCbCr, HSV and LAB are converted.

    Args:
        image: a path, a Pillow image (its EXIF orientation is applied), or an array ``(H, W)``,
            ``(H, W, 1)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA.

    Raises:
        ImageError: for another shape or type, an image without pixels, and as `load_image`.
    """
    if isinstance(image, (str, Path)):
        return load_image(image)
    if isinstance(image, Image.Image):
        try:
            image.load()  # Image.open has read no more than the header
        except Exception as error:  # as in load_image
            raise ImageError(f"The Pillow image is damaged or truncated ({error}).") from error
        return _rgb(_upright(image, None))
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"An image must be a path, a Pillow image or a NumPy array, not {type(image).__name__}."
        )
    if (
        image.ndim not in (2, 3)
        or image.size == 0
        or (image.ndim == 3 and image.shape[2] not in (1, 3, 4))
    ):
        raise ImageError(
            f"An image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with at least one "
            f"pixel, not {image.shape}."
        )
    pixels = _eight_bits(image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]  # (H, W, 1)
    if pixels.shape[2] == 4:
        return _rgb(Image.fromarray(pixels))
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def find_images(sources: Iterable[str | Path]) -> list[Path]:
    """Image files of files, folders and glob patterns, each once, in the order given.

    A folder stands for the images directly in it (by suffix, sorted; hidden files and subfolders
    are left out); a pattern for the files it matches, sorted (``**`` goes into subfolders).

    Raises:
        FileNotFoundError: for a source that does not exist or match, or holds no image.
    """
    found: dict[Path, Path] = {}  # as given, by what the paths lead to
    for source in sources:
        path = Path(source)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = sorted(entry for entry in path.iterdir() if _is_image(entry))
            if not matches:
                raise FileNotFoundError(
                    f"The folder {path} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); "
                    f"for subfolders give the pattern '{path}/**/*'."
                )
        else:
            # pathlib's glob refuses absolute patterns.
            names = sorted(glob.glob(str(source), recursive=True))  # noqa: PTH207
            matches = [entry for entry in map(Path, names) if _is_image(entry)]
            if not matches:
                raise FileNotFoundError(
                    f"{source} is no image file, no folder, and no pattern that matches an image."
                )
        for match in matches:
            found.setdefault(match.resolve(), match)
    return list(found.values())


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _upright(image: Image.Image, size: tuple[int, int] | None) -> Image.Image:
    """Apply the EXIF orientation, unless the given size fits the stored picture alone."""
    try:
        method = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # broken metadata do not make the pixels unusable
        method = None
    if method is None:
        return image
    turned = image.transpose(method)
    if size is not None and turned.size != tuple(size) and image.size == tuple(size):
        return image
    return turned


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
    """Scale to 0..255 by the rule that `to_rgb` states; uint8 comes back as it is."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype.kind not in "iuf":
        raise ImageError(f"An image array must hold numbers, not {values.dtype}.")
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    if low >= 0 and high <= 1 and values.dtype.kind == "f":
        low, high = 0.0, 1.0
    elif low >= 0 and high < 2 ** _SENSOR_BITS[-1]:
        low, high = 0.0, float(next(2**bits - 1 for bits in _SENSOR_BITS if high < 2**bits))
    scaled = (numbers - low) * (255.0 / ((high - low) or 1.0))
    return np.floor(np.minimum(scaled + 0.5, 255.0)).astype(np.uint8)
