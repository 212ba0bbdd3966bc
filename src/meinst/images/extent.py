"""Number of frames and channels in an image file."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from meinst.images.readers import open_tiff
from meinst.images.sources import ImageFile
from meinst.images.tiff_frames import OpenTiff

if TYPE_CHECKING:
    from tifffile import TiffFile

_IMAGE_DESCRIPTION = 270
_MAX_PAGES_LOOKED_AT = 20  # for reduced copies of the first page
# Formats whose further frames are previews, layers or sizes of the same image.
_SINGLE_FORMATS = ("MPO", "PSD", "ICO", "ICNS")


@dataclass(frozen=True)
class Extent:
    """Frames and channels of an image file.

    Attributes:
        frames: number of frames or pages.
        channels: number of channels that are stored one by one, as microscopes do; 1 for ordinary
            images, also if they have colours.
    """

    frames: int = 1
    channels: int = 1


ONE_IMAGE = Extent()
"""That of an ordinary image."""


def image_extent(file: ImageFile, image: Image.Image) -> Extent:
    """Frames and channels of a file that Pillow has opened."""
    if image.format in _SINGLE_FORMATS:
        return ONE_IMAGE
    try:
        frames = int(getattr(image, "n_frames", 1))
        if image.format != "TIFF":
            return Extent(frames)
        description = str(image.tag_v2.get(_IMAGE_DESCRIPTION, ""))  # type: ignore[attr-defined]
        several = frames > 1 or _imagej_images(description) > 1
        return tiff_extent(file) if several else ONE_IMAGE
    except Exception:  # the first one was readable
        return ONE_IMAGE


def tiff_extent(file: ImageFile) -> Extent:
    """Frames and channels of a TIFF file; reduced copies do not count."""
    with closing(OpenTiff(open_tiff(file))) as tiff:
        return extent_of(tiff)


def extent_of(tiff: OpenTiff) -> Extent:
    """As :func:`tiff_extent`, of an open file."""
    try:
        found = tiff.frames
    except Exception:  # metadata that contradict the pages
        return Extent(_count_pages(tiff.file))
    return Extent(found.frames, found.channels)


def _count_pages(tiff: TiffFile) -> int:
    """Pages without reduced copies, or the images of ImageJ's single page."""
    total = len(tiff.pages)
    if total == 1:
        return _imagej_images(tiff.pages.first.description)
    first = (tiff.pages[i] for i in range(min(total, _MAX_PAGES_LOOKED_AT)))
    return total - sum(bool(getattr(each, "is_reduced", False)) for each in first)


def _imagej_images(description: str) -> int:
    """Number of images that ImageJ stored behind a file's only page."""
    images = re.search(r"^images=(\d+)", description, re.MULTILINE)
    return int(images[1]) if images and description.startswith("ImageJ=") else 1
