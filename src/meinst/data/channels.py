"""What measurements need of an image beside its 8-bit pixels: stored values and pixel size."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from meinst.data.images import ImageError
from meinst.images.frames import Frame, PictureSource, file_of
from meinst.images.pixel_size import tiff_pixel_size
from meinst.images.readers import (
    HEAD,
    check_pixels,
    is_tiff,
    open_image,
    open_tiff,
    orientation_of,
    read_deep,
)
from meinst.images.rgb import stored_region, turn
from meinst.images.sources import ImageFile, to_file
from meinst.images.tiff_frames import TiffFrames
from meinst.images.tiff_levels import ALL_CHANNELS, Region
from meinst.images.tiff_regions import TiffRegions


def read_channels(source: PictureSource) -> NDArray[Any]:
    """All channels of an image as they are stored, turned upright.

    Args:
        source: the image file, or its frame; of several frames, the first is read.

    Returns:
        ``(H, W, C)``, without opacity.

    Raises:
        ImageError: if they cannot be read.
    """
    file = to_file(file_of(source))
    try:
        with file.open("rb") as stream:
            tiff = is_tiff(stream.read(HEAD))
        if tiff:
            with ChannelRegions(source) as regions:
                height, width = regions.size
                check_pixels(width, height)
                return regions.read((0, 0, width, height))
        values = turn(*_stored_values(file))
    except Exception as error:  # readers raise almost anything for damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{file}: its values cannot be read ({reason}); restore it.") from error
    if values.ndim == 2:
        return values[..., None]
    return values[..., :-1] if values.shape[2] in (2, 4) else values


class ChannelRegions:
    """All channels of a TIFF file, of which regions are read; a context manager.

    Args:
        source: the file, or its frame; of several frames, that of the first page is read.

    Attributes:
        size: height and width, upright.
        channels: number of channels, without opacity.

    Raises:
        UnsupportedImageError: if regions of such a file cannot be read.
    """

    def __init__(self, source: PictureSource) -> None:
        frame = source.index if isinstance(source, Frame) else None
        self._file = TiffRegions(to_file(file_of(source)), frame, ALL_CHANNELS)
        stored = self._file.levels[0].size
        self.size = stored[::-1] if self._file.orientation >= 5 else stored
        self.channels = self._file.levels[0].read((0, 0, 1, 1), blank=True).shape[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, region: Region) -> NDArray[Any]:
        """The values of a region as they are stored, turned upright, ``(H, W, C)``.

        Args:
            region: ``x1 y1 x2 y2`` in pixels.

        Raises:
            DamagedRegionError: if a part of it cannot be decoded.
        """
        level, orientation = self._file.levels[0], self._file.orientation
        return turn(level.read(stored_region(region, level.size, orientation)), orientation)


def grey_or_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``(H, W, 1)`` if the three channels of ``(H, W, 3)`` are equal, otherwise the same."""
    first = pixels[..., :1]
    return first if bool((pixels[..., 1:] == first).all()) else pixels


def read_pixel_size(source: PictureSource) -> float | None:
    """Side of a pixel in micrometres, which TIFF files may state; None if it is not known."""
    file = to_file(file_of(source))
    try:
        with file.open("rb") as stream:
            if not is_tiff(stream.read(HEAD)):
                return None
        with open_tiff(file) as tiff:
            if isinstance(source, Frame):
                return TiffFrames(tiff).pixel_size(source.index)
            return tiff_pixel_size(tiff, tiff.pages.first)
    except Exception:  # of damaged metadata; whether there are pixels is for others to say
        return None


def _stored_values(file: ImageFile) -> tuple[NDArray[Any], int]:
    """The values of an image as they are stored, and the EXIF orientation."""
    with open_image(file) as image:
        check_pixels(image.width, image.height)
        return read_deep(file, image) or (np.asarray(image), orientation_of(image))
