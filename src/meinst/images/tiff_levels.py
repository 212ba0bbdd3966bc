"""Resolutions of a TIFF file, of which only the tiles or strips that a region needs are decoded.

tifffile's zarr store would do the same, but decodes whole strips again for each region, and needs
Python 3.11.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from meinst.images.readers import (
    UnsupportedImageError,
    Values,
    check_channels,
    check_tiff,
    to_grey_or_rgb,
)
from meinst.images.tiff_frames import Plane

Region = tuple[int, int, int, int]
"""``x1 y1 x2 y2`` in pixels."""

MAX_SEGMENT = 1 << 29
"""Largest decoded tile or strip that is read, in bytes."""

ALL_CHANNELS: Sequence[int] = (-1,)
"""Stands for all channels of an image."""

_CACHE = 1 << 29  # decoded bytes that are kept; a row of windows across 100,000 pixels takes less
_JPEG = (6, 7)
# Compressions of pictures: JPEG (old and new), JPEG 2000 (Aperio's for RGB, and Leica's) and WebP.
_PICTURES = (*_JPEG, 33005, 34712, 50001)
_AS_STORED = (1, 2, 6)  # photometric interpretations of grey and RGB, which JPEG stores as YCbCr


class DamagedRegionError(ValueError):
    """A tile or strip of a file that cannot be decoded; the message says where it is."""


class Level(Protocol):
    """One resolution of an image.

    Attributes:
        size: height and width as stored.
    """

    size: tuple[int, int]

    def read(self, region: Region, *, blank: bool = False) -> Values:
        """The values of a region; see :meth:`TiffLevel.read`."""


class TiffLevel:
    """One resolution of a TIFF file.

    Args:
        plane: where it is stored.
        cache: decoded segments, shared by all levels.
        any_channels: accept any number of samples for a pixel, for :meth:`read_channels`.

    Attributes:
        size: height and width as stored.
        page: the page.

    Raises:
        UnsupportedImageError: if regions of such a page cannot be read.
    """

    def __init__(self, plane: Plane, cache: SegmentCache, *, any_channels: bool = False) -> None:
        page = plane.page
        check_tiff(page, _PICTURES, any_channels=any_channels)
        if page.tiledepth > 1:
            raise UnsupportedImageError("has tiles of several planes; save it as one plane.")
        self.page = page
        self.size = (page.imagelength, page.imagewidth)
        self._cache = cache
        rows, columns = page.chunks[:2]
        if not page.is_tiled:
            rows = min(rows, page.imagelength)
        self._side = (rows, columns)  # of a segment
        self._planes = page.samplesperpixel if page.planarconfig == 2 else 1
        assert page.dtype is not None
        samples = page.samplesperpixel // self._planes
        segment = rows * columns * samples * page.dtype.itemsize
        self._shift = plane.number * page.nbytes  # bytes from the first plane
        if segment > MAX_SEGMENT and not page.is_memmappable:
            raise UnsupportedImageError(
                f"is stored in compressed pieces of {segment >> 20} MB, so no part of it can be "
                "read alone; save it as a tiled TIFF file, for example with `vips tiffsave --tile`."
            )

    def read(self, region: Region, *, blank: bool = False) -> Values:
        """The values of a region as stored.

        Args:
            region: within the image.
            blank: fill what cannot be decoded with zeros.

        Returns:
            ``(H, W)`` or ``(H, W, C)``, grey or RGB, perhaps with opacity.

        Raises:
            DamagedRegionError: if a segment cannot be decoded, unless ``blank``.
        """
        values = self._read(region, blank)
        return to_grey_or_rgb(values[..., 0] if values.shape[-1] == 1 else values, self.page)

    @property
    def channels(self) -> int:
        """Number of channels of :meth:`read_channels`."""
        if int(self.page.photometric) in _AS_STORED:
            return self.page.samplesperpixel
        colours = 1 if int(self.page.photometric) == 0 else 3
        return colours + self.has_opacity

    @property
    def has_opacity(self) -> bool:
        """Whether the last channel is opacity."""
        return tuple(self.page.extrasamples) in ((1,), (2,))

    def read_channels(self, region: Region, *, blank: bool = False) -> Values:
        """All channels of a region, ``(H, W, C)``; otherwise as :meth:`read`."""
        values = self._read(region, blank)
        if int(self.page.photometric) in _AS_STORED and self.page.bitspersample >= 8:
            return values
        values = to_grey_or_rgb(values[..., 0] if values.shape[-1] == 1 else values, self.page)
        return np.atleast_3d(values)

    def _read(self, region: Region, blank: bool) -> Values:
        read = self._mapped if self.page.is_memmappable else self._decoded
        return read(region, blank)

    def _mapped(self, region: Region, blank: bool) -> Values:
        """Copy a region of a file that is stored as it is."""
        page, (x1, y1, x2, y2) = self.page, region
        assert page._dtype is not None
        planes, _, rows, columns, samples = page.shaped
        file = page.parent.filehandle
        kind = page.parent.byteorder + page._dtype.char
        shape = (planes, y2 if planes == 1 else rows, columns, samples)
        try:  # mapped for one region, so that memory does not seem to grow with the file
            mapped = file.memmap_array(kind, shape, offset=page.dataoffsets[0] + self._shift)
        except ValueError as error:
            if blank:
                return np.zeros((y2 - y1, x2 - x1, page.samplesperpixel), dtype=page.dtype)
            raise DamagedRegionError(f"the file ends before row {y2}") from error
        part = np.asarray(mapped)[:, y1:y2, x1:x2]  # (planes, h, w, samples)
        part = part[0] if planes == 1 else np.moveaxis(part[..., 0], 0, -1)
        return np.array(part, dtype=page.dtype)

    def _decoded(self, region: Region, blank: bool) -> Values:
        """Put a region together from decoded segments."""
        x1, y1, x2, y2 = region
        samples = self.page.samplesperpixel
        values = np.zeros((y2 - y1, x2 - x1, samples), dtype=self.page.dtype)
        for (plane, top, left), segment in self._segments(region, blank):
            if segment is None:  # not stored: empty
                continue
            bottom, right = top + segment.shape[0], left + segment.shape[1]
            rows, columns = (
                slice(max(top, y1), min(bottom, y2)),
                slice(max(left, x1), min(right, x2)),
            )
            part = segment[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
            place = (
                slice(rows.start - y1, rows.stop - y1),
                slice(columns.start - x1, columns.stop - x1),
            )
            if self._planes == 1:
                values[place] = part
            else:
                values[(*place, plane)] = part[..., 0]
        return values

    def _segments(
        self, region: Region, blank: bool
    ) -> Iterator[tuple[tuple[int, int, int], Values | None]]:
        """Plane, first row and column, and values ``(h, w, samples)`` of a region's segments."""
        x1, y1, x2, y2 = region
        height, width = self._side
        across, down = -(-self.size[1] // width), -(-self.size[0] // height)
        for plane in range(self._planes):
            for row in range(y1 // height, -(-y2 // height)):
                for column in range(x1 // width, -(-x2 // width)):
                    index = (plane * down + row) * across + column
                    place = row * height, column * width
                    try:
                        yield (plane, *place), self._segment(index)
                    except DamagedRegionError as error:
                        if not blank:
                            x, y = place[1], place[0]
                            raise DamagedRegionError(
                                f"the {'tile' if self.page.is_tiled else 'strip'} at x = {x}, "
                                f"y = {y} is damaged ({error})"
                            ) from error

    def _segment(self, index: int) -> Values | None:
        key = (self.page.offset + self._shift, index)
        if key in self._cache:
            return self._cache.get(key)
        segment = self._decode(index)
        self._cache.put(key, segment)
        return segment

    def _decode(self, index: int) -> Values | None:
        """Read and decode one segment."""
        page = self.page
        if index >= min(len(page.dataoffsets), len(page.databytecounts)):
            raise DamagedRegionError("it is missing")
        offset, count = page.dataoffsets[index] + self._shift, page.databytecounts[index]
        if not count:
            return None
        file = page.parent.filehandle
        if offset + count > file.size:
            raise DamagedRegionError("the file ends before it")
        file.seek(offset)
        data = file.read(count)
        tables: dict[str, Any] = {}
        if page.compression in _JPEG:
            tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        try:
            if page.compression in _PICTURES:
                _check_picture(data, self._side)
            segment, _, _ = page.decode(data, index, **tables)
        except Exception as error:  # decoders raise almost anything
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DamagedRegionError(reason) from error
        # One plane in depth.
        return None if segment is None else segment[0]


class SegmentCache:
    """Keeps the decoded segments that were used last, up to a number of bytes."""

    def __init__(self, limit: int = _CACHE) -> None:
        self._limit, self._bytes = limit, 0
        self._items: OrderedDict[tuple[int, int], Values | None] = OrderedDict()

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._items

    def get(self, key: tuple[int, int]) -> Values | None:
        """A segment that is kept."""
        self._items.move_to_end(key)
        return self._items[key]

    def put(self, key: tuple[int, int], segment: Values | None) -> None:
        """Keep a segment; drops those that were not used for longest."""
        self._items[key] = segment
        self._bytes += 0 if segment is None else segment.nbytes
        while self._bytes > self._limit and len(self._items) > 1:
            _, dropped = self._items.popitem(last=False)
            self._bytes -= 0 if dropped is None else dropped.nbytes

    def clear(self) -> None:
        """Drop all segments."""
        self._items.clear()
        self._bytes = 0


class ChannelLevel:
    """Chosen channels of one resolution.

    Args:
        planes: the planes of all channels, or the only one, which contains them.
        channels: the chosen ones, or :data:`ALL_CHANNELS`, without opacity.

    Attributes:
        size: height and width as stored.

    Raises:
        UnsupportedImageError: if there are no such channels.
    """

    def __init__(self, planes: Sequence[TiffLevel], channels: Sequence[int]) -> None:
        self.size = planes[0].size
        count = planes[0].channels if len(planes) == 1 else len(planes)
        if channels == ALL_CHANNELS:
            channels = range(count - (len(planes) == 1 and planes[0].has_opacity))
        check_channels(channels, count)
        if len(planes) == 1:
            self._planes, self._channels = list(planes), list(channels)
            return
        distinct = sorted(set(channels))
        self._planes = [planes[channel] for channel in distinct]
        self._channels = [distinct.index(channel) for channel in channels]

    def read(self, region: Region, *, blank: bool = False) -> Values:
        """The values of a region, ``(H, W, C)``; as :meth:`TiffLevel.read`."""
        values = [plane.read_channels(region, blank=blank) for plane in self._planes]
        return np.concatenate(values, axis=-1)[..., self._channels]


def _check_picture(data: bytes, side: tuple[int, int]) -> None:
    """Reject a compressed picture that is larger than its segment, before it is decoded."""
    with Image.open(io.BytesIO(data)) as picture:
        if picture.height > side[0] or picture.width > side[1]:
            raise ValueError(
                f"it holds {picture.width} x {picture.height} pixels, not {side[1]} x {side[0]}"
            )
