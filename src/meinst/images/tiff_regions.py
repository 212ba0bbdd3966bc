"""Open TIFF files, BigTIFF, OME-TIFF and pyramids included, for reading regions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.images.extent import Extent, extent_of
from meinst.images.pixel_size import tiff_pixel_size
from meinst.images.readers import UnsupportedImageError, open_tiff
from meinst.images.sources import ImageFile
from meinst.images.tiff_frames import OpenTiff, Plane, TiffFrames
from meinst.images.tiff_levels import ChannelLevel, Level, SegmentCache, TiffLevel

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

_ORIENTATION = 274


class TiffRegions:
    """A TIFF file that is open for reading regions of one of its frames.

    Args:
        path: the file.
        frame: number of the frame; by default the one with the first page.
        channels: the channels to read; by default the samples of the first plane.
        shared: the file, if it is open already; it stays open.

    Attributes:
        levels: the image and its smaller copies, largest first.
        cache: decoded tiles and strips of all levels.
        orientation: EXIF orientation, 1 to 8.
        pixel_size: side of a pixel in micrometres; None if the file does not state it.
        extent: frames and channels of which the first is read, if none was chosen.

    Raises:
        UnsupportedImageError: if regions of such a file cannot be read.
    """

    def __init__(
        self,
        path: ImageFile,
        frame: int | None = None,
        channels: Sequence[int] = (),
        shared: OpenTiff | None = None,
    ) -> None:
        self._file = shared or OpenTiff(open_tiff(path))
        self._shared = shared is not None
        try:
            self.cache = SegmentCache()
            file = self._file.file
            first = file.pages.first
            extent = extent_of(self._file)
            self.extent = Extent(
                extent.frames if frame is None else 1, 1 if channels else extent.channels
            )
            # The first page needs no metadata about frames, which damaged files may not have.
            first_only = frame is None and not channels
            found = [[Plane(first)]] if first_only else _planes(self._file.frames, frame)
            page = found[0][0].page
            copies = _smaller_pages(file) if first_only else found[1:]
            self.levels: list[Level] = [self._level(found[0], channels)]
            for planes in copies:
                if _is_copy(planes[0].page, page):
                    with suppress(UnsupportedImageError):
                        self.levels.append(self._level(planes, channels))
            orientation = int(page.tags.valueof(_ORIENTATION, 1))
            self.orientation = orientation if orientation in range(1, 9) else 1
            self.pixel_size = (
                tiff_pixel_size(file, first)
                if frame is None
                else self._file.frames.pixel_size(frame)
            )
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        if hasattr(self, "_shared"):
            self.close()

    def close(self) -> None:
        """Close the file, unless it is shared."""
        if not self._shared:
            self._file.close()

    def _level(self, planes: Sequence[Plane], channels: Sequence[int]) -> Level:
        """A resolution with the chosen channels."""
        if not channels:
            return TiffLevel(planes[0], self.cache)
        levels = [TiffLevel(plane, self.cache, any_channels=True) for plane in planes]
        return ChannelLevel(levels, channels)


def tiff_shape(path: Path) -> tuple[int, int] | None:
    """Height and width of a TIFF file's first page as stored; None if tifffile cannot open it."""
    try:
        with open_tiff(path) as file:
            return file.pages.first.imagelength, file.pages.first.imagewidth
    except Exception:  # tifffile raises almost anything for damaged files
        return None


def _planes(frames: TiffFrames, frame: int | None) -> list[list[Plane]]:
    """The planes of a frame, one for each channel, and those of its smaller copies."""
    frame = frames.first if frame is None else frame
    planes = frames.planes(frame)
    copies = [frames.smaller_planes(frame, channel) for channel in range(len(planes))]
    return [planes, *map(list, zip(*copies, strict=True))]


def _smaller_pages(file: TiffFile) -> list[list[Plane]]:
    """The smaller copies of the first page in its pyramid, largest first."""
    try:
        levels = [level.keyframe for level in file.series[0].levels]
    except Exception:  # metadata that contradict the pages
        return []
    same = levels[0].offset == file.pages.first.offset
    return [[Plane(level)] for level in levels[1:]] if same else []


def _is_copy(level: TiffPage, page: TiffPage) -> bool:
    """Whether a page has the shape and type of a smaller copy of another one."""
    ratios = page.imagewidth / level.imagewidth, page.imagelength / level.imagelength
    same = (level.dtype, level.photometric, level.samplesperpixel) == (
        page.dtype,
        page.photometric,
        page.samplesperpixel,
    )
    # Sides of smaller copies are rounded.
    tolerance = 2 * max(ratios) / min(level.imagewidth, level.imagelength)
    return same and min(ratios) > 1 and abs(ratios[0] - ratios[1]) <= tolerance
