"""Which pages of a TIFF file are the frames of a stack, and which their channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from meinst.images.pixel_size import tiff_pixel_size
from meinst.images.readers import UnsupportedImageError

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage, TiffPageSeries

# Kinds of files in tifffile of which all series are images; those of slide scanners have labels
# and overviews besides.
_WHOLE_FILE = ("generic", "uniform", "shaped", "imagej", "ome")


@dataclass(frozen=True)
class Plane:
    """Where a plane of an image is stored.

    Attributes:
        page: the page.
        number: of the planes that ImageJ stores behind a page without pages of their own, from 0.
    """

    page: TiffPage
    number: int = 0


class OpenTiff:
    """A TIFF file that is open, for several images of it.

    Args:
        file: the file.
    """

    def __init__(self, file: TiffFile) -> None:
        self.file = file

    @cached_property
    def frames(self) -> TiffFrames:
        """Its frames.

        Raises:
            UnsupportedImageError: if its metadata do not say which pages they are; tifffile raises
                others for damaged ones.
        """
        return TiffFrames(self.file)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TiffFrames:
    """The frames and channels of a TIFF file.

    Frames are all pages of an ordinary file; in files of ImageJ and OME, the planes of a stack or
    a time series. A frame has one plane, which may contain several samples for each pixel, or
    one for each of its channels.

    Args:
        file: the file.

    Attributes:
        frames: number of frames.
        channels: number of channels that are planes of their own, in the first frame.
    """

    def __init__(self, file: TiffFile) -> None:
        self._file = file
        self._parts = [_Part(each) for each in _series(file)]
        self._images = [each.keyframe.offset for each in file.series]
        self.frames = sum(part.frames for part in self._parts)
        self.channels = self._parts[0].channels

    @cached_property
    def first(self) -> int:
        """The frame that holds the first page of the file, which is not always frame 0."""
        start = self._file.pages.first.offset
        for frame in range(self.frames):
            part, number = self._find(frame)
            if any(part.offset(number, channel) == start for channel in range(part.channels)):
                return frame
        return 0

    def planes(self, frame: int) -> list[Plane]:
        """The planes of a frame, one for each channel.

        Raises:
            UnsupportedImageError: if there is no such frame in the file.
        """
        part, number = self._find(frame)
        return [part.plane(number, channel) for channel in range(part.channels)]

    def smaller_planes(self, frame: int, channel: int) -> list[Plane]:
        """The same plane in the smaller copies of a pyramid, largest first."""
        part, number = self._find(frame)
        return part.smaller_planes(number, channel)

    def pixel_size(self, frame: int) -> float | None:
        """Side of a frame's pixels in micrometres; None if it is not stated."""
        part, number = self._find(frame)
        # Pages of an ordinary file are images of their own.
        page = part.plane(number, 0).page if part.kind == "generic" else part.keyframe
        image = self._images.index(page.offset) if part.kind == "ome" else 0
        return tiff_pixel_size(self._file, page, image)

    def position(self, frame: int) -> dict[str, int]:
        """Where a frame is in a stack, such as ``{"t": 0, "z": 3}``; empty if it is not known."""
        part, number = self._find(frame)
        return part.position(number)

    def _find(self, frame: int) -> tuple[_Part, int]:
        if frame >= self.frames:
            raise UnsupportedImageError(no_frame(frame, self.frames))
        return self._order[frame] if len(self._parts) > 1 else (self._parts[0], frame)

    @cached_property
    def _order(self) -> list[tuple[_Part, int]]:
        """The series and number of each frame: in the order of the pages, if these have none."""
        order = [(part, n) for part in self._parts for n in range(part.frames)]
        if self._parts[0].kind == "generic":  # series are pages of one size, wherever they are
            order.sort(key=lambda each: each[0].page_number(each[1]))
        return order


def no_frame(frame: int, frames: int) -> str:
    """What is wrong if a frame is not there; continues the name of the file."""
    there = f"{frames} frames, numbered 0 to {frames - 1}" if frames > 1 else "only frame 0"
    return f"has {there}, so there is no frame {frame}; choose others with --frames."


class _Part:
    """The frames of one series of pages of one size."""

    def __init__(self, series: TiffPageSeries) -> None:
        self._series = series
        self.kind, self.keyframe = series.kind, series.keyframe
        axes = series.axes[: len(series.axes) - series.keyframe.ndim]
        # As tifffile names the axes of ImageJ's stacks of RGB images.
        colours = series.keyframe.samplesperpixel > 1
        self._axes = axes.replace("C", "I") if colours else axes
        self._shape = series.shape[: len(axes)]
        self.channels = math.prod(
            n for n, axis in zip(self._shape, self._axes, strict=True) if axis == "C"
        )
        self.frames = math.prod(self._shape) // max(self.channels, 1)

    def plane(self, frame: int, channel: int, level: int = 0) -> Plane:
        """A plane of the series or of a smaller copy of it."""
        index = self._index(frame, channel)
        pages = self._series.levels[level].pages
        if len(pages) == 1 and index:  # behind the only page, if that is long enough
            return Plane(self._series.keyframe, index)
        page = pages[index] if index < len(pages) else None
        if page is None:
            raise UnsupportedImageError(
                f"has no page for frame {frame}, channel {channel}, which its metadata declare; "
                "choose others with --frames."
            )
        return Plane(page.aspage())

    def offset(self, frame: int, channel: int) -> int:
        """Where the page of a plane begins in the file; 0 if it is not there."""
        index, pages = self._index(frame, channel), self._series.pages
        page = pages[index] if index < len(pages) else None
        return page.offset if page is not None else 0

    def page_number(self, frame: int) -> int:
        """Number of the page of a frame without channels."""
        page = self._series.pages[self._index(frame, 0)]
        return page.index if page is not None else 0

    def smaller_planes(self, frame: int, channel: int) -> list[Plane]:
        """See :meth:`TiffFrames.smaller_planes`."""
        count = len(self._series.levels)
        return [self.plane(frame, channel, level) for level in range(1, count)]

    def position(self, frame: int) -> dict[str, int]:
        """See :meth:`TiffFrames.position`."""
        found = {}
        for size, axis in zip(reversed(self._shape), reversed(self._axes), strict=True):
            if axis == "C":
                continue
            frame, place = divmod(frame, size)
            if axis in "TZ" and size > 1:
                found[axis.lower()] = place
        return dict(reversed(found.items()))

    def _index(self, frame: int, channel: int) -> int:
        """Number of the plane of a frame and channel in the order of the pages."""
        index, step = 0, 1
        for size, axis in zip(reversed(self._shape), reversed(self._axes), strict=True):
            if axis == "C":
                channel, place = divmod(channel, size)
            else:
                frame, place = divmod(frame, size)
            index, step = index + place * step, step * size
        return index


def _series(file: TiffFile) -> list[TiffPageSeries]:
    """The series of a file that are neither labels nor overviews; always at least one."""
    found = [each for each in file.series if each.keyframe.ndim >= 2]
    whole = bool(found) and found[0].kind in _WHOLE_FILE
    if not found or not (whole or found[0].keyframe.offset == file.pages.first.offset):
        raise UnsupportedImageError(
            "has metadata that contradict its pages; save the file again as TIFF."
        )
    if not whole:
        return found[:1]
    return [each for each in found if each is found[0] or not each.keyframe.is_reduced]
