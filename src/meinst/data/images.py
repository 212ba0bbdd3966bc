"""Convert image files, Pillow images and arrays to ``(H, W, 3)`` uint8 RGB."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from meinst.files import is_file, is_folder
from meinst.images.extent import ONE_IMAGE, Extent, image_extent, tiff_extent
from meinst.images.intensity import (
    InputOptions,
    Stretch,
    find_stretch,
    opaque_value,
)
from meinst.images.readers import (
    HEAD,
    UnsupportedImageError,
    check_pixels,
    cuts_values,
    is_big_endian_bigtiff,
    is_tiff,
    open_image,
    orientation_of,
    read_deep,
    read_tiff,
    tiff_sizes,
)
from meinst.images.rgb import Pixels, choose_channels, pillow_to_rgb, turn, values_to_rgb
from meinst.images.search import find_images as find_images
from meinst.images.search import unreadable_kind
from meinst.images.sources import ImageFile, MemoryFile
from meinst.images.tiff_regions import TiffRegions
from meinst.options import FileError

ImageLike: TypeAlias = "str | Path | Image.Image | NDArray[Any]"


class ImageError(FileError):
    """An image cannot be used; the message gives the file, the reason and the remedy."""


@dataclass(frozen=True)
class Picture:
    """An image in 8 bits, and what was done to get it.

    Attributes:
        pixels: ``(H, W, 3)`` uint8 RGB.
        stretch: how values of more than 8 bits became 0 to 255; None for 8-bit images.
        extent: frames and channels in the file, of which the first was read.
    """

    pixels: Pixels
    stretch: Stretch | None = None
    extent: Extent = ONE_IMAGE


def load_image(
    path: str | Path, size: tuple[int, int] | None = None, *, intensity: str = "percentile"
) -> Pixels:
    """Read an image file; only the first page or frame if there are several.

    The EXIF orientation is applied, as in image viewers. Some annotation tools ignore it: if only
    the unrotated image has the given ``size``, it is not applied (except for TIFF files).

    Args:
        path: the file.
        size: width and height in the annotation file, to be checked; None for no check.
        intensity: which values of images of more than 8 bits become 0 and 255, as in
            :class:`~meinst.images.intensity.InputOptions`.

    Returns:
        ``(H, W, 3)`` uint8 RGB; other modes are converted as in `to_rgb`.

    Raises:
        ImageError: if the file is missing, empty, damaged, not an image, larger than Pillow's limit
            (``PIL.Image.MAX_IMAGE_PIXELS``), or has another size.
        ValueError: if ``intensity`` is not a rule.
    """
    return read_image(Path(path), InputOptions(intensity), size).pixels


def to_rgb(image: ImageLike, *, intensity: str = "percentile") -> Pixels:
    """Convert an image to ``(H, W, 3)`` uint8 RGB.

    - Grey images (also 1-bit) are repeated over the three channels; palettes are resolved.
    - Transparent images are blended over white.
    - Values of more than 8 bits (files, Pillow's ``I;16``, ``I``, ``F``; integer and float arrays)
      are scaled to 0..255, all channels together
      (:func:`~meinst.images.intensity.to_eight_bits`).
    - CMYK, YCbCr, HSV and LAB are converted.

    Args:
        image: a path, a Pillow image (its EXIF orientation is applied), or an array ``(H, W)``,
            ``(H, W, 1)``, ``(H, W, 3)`` RGB or ``(H, W, 4)`` RGBA.
        intensity: as in `load_image`.

    Raises:
        ImageError: if the image has no pixels or is of another shape or type, or as `load_image`.
        ValueError: if ``intensity`` is not a rule.
    """
    return read_image(image, InputOptions(intensity)).pixels


def read_image(
    image: ImageLike | MemoryFile,
    options: InputOptions | None = None,
    size: tuple[int, int] | None = None,
) -> Picture:
    """Convert an image as `to_rgb` does, and report what was done.

    Args:
        image: as in `to_rgb`.
        options: the rule for values of more than 8 bits, and the channels.
        size: for a file, width and height in the annotation file, as in `load_image`.

    Raises:
        ImageError: as in `to_rgb`.
    """
    options = options or InputOptions()
    if isinstance(image, (str, Path)):
        return _read_file(Path(image), options, size)
    if isinstance(image, MemoryFile):
        return _read_file(image, options, size)
    if isinstance(image, Image.Image):
        return _read_pillow(image, options)
    if not isinstance(image, np.ndarray):
        raise ImageError(
            f"An image must be a path, a Pillow image or a NumPy array, got {type(image).__name__}."
        )
    return _from_array(image, options)


def _from_array(image: NDArray[Any], options: InputOptions) -> Picture:
    if (
        image.ndim not in (2, 3)
        or image.size == 0
        or (image.ndim == 3 and image.shape[2] not in (1, 3, 4) and not options.channels)
    ):
        raise ImageError(
            f"An image array must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with at least one "
            f"pixel, got {image.shape}; choose channels of others with InputOptions.channels."
        )
    try:
        return _from_values(choose_channels(image, options), options)
    except UnsupportedImageError as error:
        raise ImageError(f"The image array {error}") from error
    except ValueError as error:
        raise ImageError(str(error)) from error


def check_header(path: Path, size: tuple[int, int]) -> None:
    """Check what the header of an image file says, without reading its pixels.

    Args:
        path: the file.
        size: width and height in the annotation file.

    Raises:
        ImageError: as :func:`load_image`, except for damage after the header.
    """
    check_file(path)
    try:
        sizes = header_sizes(path)
    except Exception as error:  # as in _read_file
        raise file_error(error, path) from error
    if tuple(size) not in sizes:
        raise wrong_size(path, sizes[-1], size)


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, turned upright, without reading its pixels.

    Raises:
        ImageError: as :func:`check_header`.
    """
    check_file(path)
    try:
        return header_sizes(path)[-1]
    except Exception as error:  # as in _read_file
        raise file_error(error, path) from error


def header_sizes(path: Path) -> list[tuple[int, int]]:
    """Width and height as stored, and as turned upright."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    try:
        with open_image(path) as image:
            check_pixels(image.width, image.height)
            turned = orientation_of(image) >= 5
            return [image.size, image.size[::-1]] if turned else [image.size]
    except UnidentifiedImageError:
        if not is_tiff(head):
            raise
        return tiff_sizes(path)


def check_file(path: Path) -> None:
    """Reject what is not a file or empty.

    Raises:
        ImageError: naming the path.
    """
    if not is_file(path):
        fault = "is a folder" if is_folder(path) else "does not exist"
        raise ImageError(f"{path} {fault}; give an image file.")
    if path.stat().st_size == 0:
        raise ImageError(f"{path} is empty (0 bytes); restore or remove it.")


def wrong_size(path: ImageFile, size: tuple[int, int], expected: tuple[int, int]) -> ImageError:
    """The error for an image of another width and height than its annotations."""
    return ImageError(
        f"{path} has {size[0]} x {size[1]} pixels, but the annotations expect "
        f"{expected[0]} x {expected[1]}; use the image that was annotated."
    )


def _read_file(path: ImageFile, options: InputOptions, size: tuple[int, int] | None) -> Picture:
    if isinstance(path, Path):
        check_file(path)
    elif not path.content:
        raise ImageError(f"{path} is empty (0 bytes); restore or remove it.")
    try:
        picture, orientation = _decode(path, options)
    except Exception as error:  # readers raise almost anything for damaged files
        raise file_error(error, path) from error
    pixels = turn(picture.pixels, orientation)
    if size is not None and pixels.shape[1::-1] != tuple(size):
        if picture.pixels.shape[1::-1] == tuple(size):  # annotations of the unrotated image
            return picture
        raise wrong_size(path, (pixels.shape[1], pixels.shape[0]), size)
    return replace(picture, pixels=pixels)


def _decode(path: ImageFile, options: InputOptions) -> tuple[Picture, int]:
    """The stored image, and the EXIF orientation that is still to be applied."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not (is_tiff(head) and options.channels):
        return _decode_first(path, head, options)
    try:
        return _decode_channels(path, options)
    except UnsupportedImageError:
        with suppress(Exception):  # Pillow reads more compressions
            return _decode_first(path, head, options)
        raise


def _decode_first(path: ImageFile, head: bytes, options: InputOptions) -> tuple[Picture, int]:
    """As :func:`_decode`, of the first page or frame."""
    if is_big_endian_bigtiff(head):
        return _decode_tiff(path, options), 1
    try:
        with open_image(path) as image:
            picture, orientation = _decode_opened(path, image, options)
            return replace(picture, extent=image_extent(path, image)), orientation
    except UnidentifiedImageError:
        if not is_tiff(head):
            raise
    return _decode_tiff(path, options), 1


def _decode_opened(
    path: ImageFile, image: Image.Image, options: InputOptions
) -> tuple[Picture, int]:
    """As :func:`_decode`, of a file that Pillow has opened."""
    check_pixels(image.width, image.height)
    deep = read_deep(path, image)
    if deep is None:
        image.load()
        return _from_pillow(image, options), orientation_of(image)
    values, orientation = deep
    if image.format == "TIFF":  # Pillow turns TIFF files itself
        values, orientation = turn(values, orientation), 1
    return _from_values(choose_channels(values, options), options), orientation


def _decode_channels(path: ImageFile, options: InputOptions) -> tuple[Picture, int]:
    """Chosen channels of a TIFF file, and the orientation that is still to be applied."""
    file = TiffRegions(path, channels=options.channels)
    try:
        height, width = file.levels[0].size
        check_pixels(width, height)
        values = file.levels[0].read((0, 0, width, height))
        return replace(_from_values(values, options), extent=file.extent), file.orientation
    finally:
        file.close()


def _decode_tiff(path: ImageFile, options: InputOptions) -> Picture:
    """A TIFF file that Pillow cannot open, turned upright."""
    values, orientation = read_tiff(path)
    picture = _from_values(turn(values, orientation), options)
    return replace(picture, extent=tiff_extent(path))


def _read_pillow(image: Image.Image, options: InputOptions) -> Picture:
    if cuts_values(image):
        raise ImageError(
            f"Pillow truncates this {image.format} image to 8 bits per channel; pass the path of "
            "the file instead."
        )
    try:
        image.load()  # Image.open reads only the header
    except Exception as error:  # as for files
        raise ImageError(f"The Pillow image is damaged or truncated ({error}).") from error
    try:
        return from_pillow_frame(image, options)
    except UnsupportedImageError as error:
        raise ImageError(f"The Pillow image {error}") from error


def from_pillow_frame(image: Image.Image, options: InputOptions) -> Picture:
    """Convert the current frame of a Pillow image, turned upright."""
    image.load()
    picture = _from_pillow(image, options)
    return replace(picture, pixels=turn(picture.pixels, orientation_of(image)))


def file_error(error: Exception, path: ImageFile) -> ImageError:
    """What readers raised for a file, as the error that users see."""
    return ImageError(f"{path} {_reason(error, path)}")


def _reason(error: Exception, path: ImageFile) -> str:
    """Describe why a file cannot be read, and the remedy."""
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return (
            f"is larger than {Image.MAX_IMAGE_PIXELS} pixels, Pillow's limit against "
            "decompression bombs; save it as a tiled TIFF file, of which parts can be read."
        )
    if isinstance(error, UnsupportedImageError | ImageError):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        kind = unreadable_kind(path)
        if kind is not None:
            return f"is {kind.noun}, which cannot be read as an image; {kind.remedy}."
        return f"is not an image that Pillow {PIL.__version__} can read."
    if isinstance(error, OSError) and error.errno is not None:  # from the operating system
        return f"cannot be read: {error.strerror}."
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return f"is damaged or truncated ({reason}); restore it."


def _from_pillow(image: Image.Image, options: InputOptions) -> Picture:
    """Convert a loaded Pillow image, not turned."""
    if image.width == 0 or image.height == 0:
        raise ImageError(f"The image has no pixels ({image.width} x {image.height}).")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_values(choose_channels(np.asarray(image), options), options)
    if options.channels:
        stored = image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")
        return _from_values(choose_channels(np.asarray(stored), options), options)
    return Picture(pillow_to_rgb(image))


def _from_values(values: NDArray[Any], options: InputOptions) -> Picture:
    """Convert ``(H, W)`` or ``(H, W, C)``, ``C`` from 1 to 4; even numbers include opacity."""
    opacity = values.ndim == 3 and values.shape[2] in (2, 4) and values.dtype != np.uint8
    color = values[..., :-1] if opacity else values
    stretch = find_stretch(color, options)
    opaque = opaque_value(values[..., -1]) if opacity else 255.0
    return Picture(values_to_rgb(values, stretch, opaque), stretch)
