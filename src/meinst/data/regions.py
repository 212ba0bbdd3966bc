"""Images that are read in regions, so that the whole never has to be in memory.

All regions are converted in the same way, whatever their place: what becomes 0 and 255 in images of
more than 8 bits is measured once, on the whole image.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meinst.data.images import (
    ImageError,
    Picture,
    check_file,
    file_error,
    header_sizes,
    read_image,
    wrong_size,
)
from meinst.data.transforms import resample
from meinst.images.extent import ONE_IMAGE, Extent
from meinst.images.intensity import (
    MAX_SAMPLES,
    InputOptions,
    Stretch,
    opaque_value,
    sample_step,
    stretch_of_parts,
    stretch_of_sample,
)
from meinst.images.readers import HEAD, UnsupportedImageError, is_tiff
from meinst.images.rgb import Pixels, stored_region, turn, values_to_rgb
from meinst.images.sources import ImageFile
from meinst.images.tiff_frames import OpenTiff
from meinst.images.tiff_levels import DamagedRegionError, Level, Region
from meinst.images.tiff_regions import TiffRegions, tiff_shape

OVERVIEW_SIDE = 4096
"""Longest side of the reduced copy on which large images are drawn, in pixels."""

_AT_ONCE = 1 << 24  # pixels of the largest region that is read at once
_BLOCK = 1024  # side of the blocks in which larger regions are read, in pixels
_SAMPLE_BLOCK = 128  # side of the blocks on which percentiles of very large images are measured


class RegionImage(ABC):
    """An image of which regions are read.

    Attributes:
        name: how messages name the image.
        size: height and width, upright.
        stretch: how values of more than 8 bits become 0 to 255; None for 8-bit images.
        extent: frames and channels in the file, of which the first is read.
        pixel_size: side of a pixel in micrometres; None if the file does not state it.
    """

    name: str
    size: tuple[int, int]
    stretch: Stretch | None = None
    extent: Extent = ONE_IMAGE
    pixel_size: float | None = None

    @property
    @abstractmethod
    def level_sizes(self) -> list[tuple[int, int]]:
        """Height and width of the image and of its smaller copies, largest first."""

    @abstractmethod
    def read(self, region: Region, level: int = 0, *, blank: bool = False) -> Pixels:
        """Read a region.

        Args:
            region: ``x1 y1 x2 y2`` in pixels of the level.
            level: index into ``level_sizes``.
            blank: fill what is damaged with zeros.

        Returns:
            ``(H, W, 3)`` uint8 RGB.

        Raises:
            ImageError: if a part of it is damaged, unless ``blank``.
        """

    def release(self) -> None:  # noqa: B027
        """Free what is kept in memory for the next regions."""

    def close(self) -> None:  # noqa: B027
        """Close the file, if there is one."""

    def read_resized(self, region: Region, size: tuple[int, int], *, blank: bool = False) -> Pixels:
        """Read a region in another size, from the smallest copy that has the detail.

        Regions of the original that are not larger than 16 megapixels give the same as
        :func:`meinst.data.transforms.resample` of their pixels; larger ones are averaged in blocks
        first.

        Args:
            region: ``x1 y1 x2 y2`` in pixels of the image.
            size: height and width of the result.
            blank: fill what is damaged with zeros.

        Raises:
            ImageError: as :meth:`read`.
        """
        x1, y1, x2, y2 = region
        shrink = min((y2 - y1) / size[0], (x2 - x1) / size[1])
        sizes = self.level_sizes
        level = max(
            (n for n, each in enumerate(sizes) if self.size[0] / each[0] <= shrink * 1.001),
            default=0,
        )
        down, across = (self.size[axis] / sizes[level][axis] for axis in (0, 1))
        window = x1 / across, y1 / down, x2 / across, y2 / down
        outer = (
            int(window[0]),
            int(window[1]),
            min(math.ceil(window[2]), sizes[level][1]),
            min(math.ceil(window[3]), sizes[level][0]),
        )
        height, width = outer[3] - outer[1], outer[2] - outer[0]
        factor = 1
        if height * width > _AT_ONCE:
            factor = max(1, int(min(height / size[0], width / size[1]) / 2))
        part = self._read_reduced(outer, level, factor, blank)
        left, top = outer[:2]
        inner = (
            (window[0] - left) / factor,
            (window[1] - top) / factor,
            min((window[2] - left) / factor, part.shape[1]),
            min((window[3] - top) / factor, part.shape[0]),
        )
        return resample(part, size, inner)

    def overview(self, longest: int = OVERVIEW_SIDE) -> Pixels:
        """The whole image, reduced if its longer side is above ``longest``; damage is black."""
        height, width = self.size
        factor = min(1.0, longest / max(height, width))
        size = max(1, round(height * factor)), max(1, round(width * factor))
        return self.read_resized((0, 0, width, height), size, blank=True)

    def _read_reduced(self, region: Region, level: int, factor: int, blank: bool) -> Pixels:
        """Read a region block by block, each averaged over squares of ``factor`` pixels."""
        if factor == 1:
            return self.read(region, level, blank=blank)
        left, top, right, bottom = region
        side = max(_BLOCK // factor, 1) * factor
        shape = -(-(bottom - top) // factor), -(-(right - left) // factor), 3
        reduced = np.empty(shape, np.uint8)
        for y in range(top, bottom, side):
            for x in range(left, right, side):
                block = x, y, min(x + side, right), min(y + side, bottom)
                pixels = Image.fromarray(self.read(block, level, blank=blank)).reduce(factor)
                row, column = (y - top) // factor, (x - left) // factor
                place = slice(row, row + pixels.height), slice(column, column + pixels.width)
                reduced[place] = np.asarray(pixels)
        return reduced


class ArrayRegions(RegionImage):
    """An image in memory.

    Args:
        picture: the image.
        name: how messages name it.
    """

    def __init__(self, picture: Picture, name: str = "the image") -> None:
        self._pixels = picture.pixels
        self.name = name
        self.size = picture.pixels.shape[:2]
        self.stretch, self.extent = picture.stretch, picture.extent

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """The size of the image."""
        return [self.size]

    def read(self, region: Region, level: int = 0, *, blank: bool = False) -> Pixels:  # noqa: ARG002
        """A view of a region."""
        x1, y1, x2, y2 = region
        return self._pixels[y1:y2, x1:x2]


class TiffImage(RegionImage):
    """A TIFF file, of which only the tiles or strips that are needed are read.

    Args:
        path: the file.
        options: the rule for values of more than 8 bits, and the channels.
        frame: number of the frame, if one was chosen.
        shared: the file, if it is open already; it stays open.

    Raises:
        UnsupportedImageError: if regions of such a file cannot be read.
    """

    def __init__(
        self,
        path: ImageFile,
        options: InputOptions | None = None,
        frame: int | None = None,
        shared: OpenTiff | None = None,
    ) -> None:
        options = options or InputOptions()
        self._file = TiffRegions(path, frame, options.channels, shared)
        self.name = str(path)
        stored = self._file.levels[0].size
        self._turned = self._file.orientation >= 5
        self.size = stored[::-1] if self._turned else stored
        self.pixel_size = self._file.pixel_size
        self.extent = self._file.extent
        try:
            self.stretch, self._opaque = _measure(self._file.levels[0], options)
        except BaseException:
            self.close()
            raise

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Sizes of the pyramid, upright."""
        sizes = [level.size for level in self._file.levels]
        return [size[::-1] for size in sizes] if self._turned else sizes

    def read(self, region: Region, level: int = 0, *, blank: bool = False) -> Pixels:
        """Read a region; see :meth:`RegionImage.read`."""
        stored = stored_region(region, self._file.levels[level].size, self._file.orientation)
        try:
            values = self._file.levels[level].read(stored, blank=blank)
        except DamagedRegionError as error:
            raise ImageError(f"{self.name}: {error}; restore the file.") from error
        return turn(values_to_rgb(values, self.stretch, self._opaque), self._file.orientation)

    def release(self) -> None:
        """Free the decoded tiles and strips."""
        self._file.cache.clear()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def open_picture(
    path: Path,
    options: InputOptions,
    fits: Callable[[int, int], bool],
    size: tuple[int, int] | None = None,
) -> Picture | RegionImage:
    """Read an image as a whole, or open it for reading regions.

    Args:
        path: the file.
        options: the rule for values of more than 8 bits, and the channels.
        fits: whether an image of a height and width is read as a whole.
        size: width and height in the annotation file, as in
            :func:`~meinst.data.images.read_image`.

    Raises:
        ImageError: as :func:`~meinst.data.images.read_image`. The limit of pixels is only for files
            that cannot be read in regions.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            tiff = is_tiff(file.read(HEAD))
        if not tiff:
            upright = header_sizes(path)[-1]
            picture = read_image(path, options, size)
            return picture if fits(*upright[::-1]) else ArrayRegions(picture, str(path))
        return _open_tiff(path, options, fits, size)
    except ImageError:
        raise
    except Exception as error:  # as in read_image
        raise file_error(error, path) from error


def _open_tiff(
    path: Path,
    options: InputOptions,
    fits: Callable[[int, int], bool],
    size: tuple[int, int] | None,
) -> Picture | RegionImage:
    """As :func:`open_picture`, for a TIFF file."""
    shape = tiff_shape(path)
    if shape is None or fits(*shape):  # None: Pillow reads some files that tifffile does not
        return read_image(path, options, size)
    try:
        image = TiffImage(path, options)
    except UnsupportedImageError:
        if math.prod(shape) > (Image.MAX_IMAGE_PIXELS or math.inf):
            raise
        return ArrayRegions(read_image(path, options, size), str(path))
    if size is not None and image.size[::-1] != tuple(size):
        image.close()
        raise wrong_size(path, (image.size[1], image.size[0]), size)
    return image


def _measure(level: Level, options: InputOptions) -> tuple[Stretch | None, float]:
    """How values become 0 to 255, and the value of full opacity."""
    first = level.read((0, 0, 1, 1), blank=True)
    if first.dtype in (np.uint8, np.bool_):
        return None, 255.0
    if first.dtype.kind not in "iuf":
        raise UnsupportedImageError(f"contains {first.dtype}, not real numbers; convert it.")
    if options.channels and first.shape[2] > 1:
        alone = replace(options, channels=())
        planes = [_OneChannel(level, n) for n in range(first.shape[2])]
        stretches = [_measure(plane, alone)[0] for plane in planes]
        return Stretch.of_channels([each for each in stretches if each is not None]), 255.0
    opacity = first.ndim == 3 and first.shape[2] in (2, 4)
    count = first.shape[2] - opacity if first.ndim == 3 else 1

    def colours(values: NDArray[Any]) -> NDArray[Any]:
        return values[..., :count] if opacity else values

    sample = _sample(level, count)
    opaque = opaque_value(sample[..., -1]) if opacity else 255.0
    if options.intensity == "percentile":
        return stretch_of_sample(colours(sample)), opaque
    return stretch_of_parts(map(colours, _blocks(level)), options), opaque


class _OneChannel:
    """One channel of a resolution."""

    def __init__(self, level: Level, channel: int) -> None:
        self.size = level.size
        self._level, self._channel = level, channel

    def read(self, region: Region, *, blank: bool = False) -> NDArray[Any]:
        return self._level.read(region, blank=blank)[..., self._channel]


def _sample(level: Level, channels: int) -> NDArray[Any]:
    """Rows on which percentiles are measured: those of the whole image, if it is not huge.

    Otherwise the rows of a lattice of blocks: a row of a huge image crosses all of its tiles.
    """
    height, width = level.size
    if height * width <= (Image.MAX_IMAGE_PIXELS or 0):
        rows = range(0, height, sample_step(height * width * channels))
        return np.concatenate([level.read((0, y, width, y + 1), blank=True) for y in rows])
    side = _SAMPLE_BLOCK
    count = math.isqrt(MAX_SAMPLES // (side * side * channels))
    lefts, tops = (np.linspace(0, max(n - side, 0), count).astype(int) for n in (width, height))
    return np.concatenate(
        [
            level.read((x, y, min(x + side, width), min(y + side, height)), blank=True)
            for y in tops.tolist()
            for x in lefts.tolist()
        ]
    )


def _blocks(level: Level) -> Iterator[NDArray[Any]]:
    """All values, block by block."""
    height, width = level.size
    for y in range(0, height, _BLOCK):
        for x in range(0, width, _BLOCK):
            region = x, y, min(x + _BLOCK, width), min(y + _BLOCK, height)
            yield level.read(region, blank=True)
