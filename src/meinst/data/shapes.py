"""Instances of an image in compact form: polygons, or run lengths inside their box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from meinst.ops.rasterize import rasterize_polygons, sample_bitmaps

Floats: TypeAlias = NDArray[np.float64]
Polygons: TypeAlias = "tuple[Floats, ...]"
"""Parts of one instance, each flat ``x0 y0 x1 y1 ...`` in pixels of the original image."""
Window: TypeAlias = "tuple[float, float, float, float]"

_UNPACKED = 64  # bitmaps decoded at once; each may be as large as its image


@dataclass(frozen=True, eq=False)
class Bitmap:
    """A mask as run lengths for the columns of its tight box, decoded on demand.

    Attributes:
        box: tight ``x1 y1 x2 y2`` of the mask in whole pixels of the image, ends excluded.
        image_size: height and width of the image.
        counts: ``(n,)`` int32 lengths of alternating runs of 0 and 1, down the columns ``x1`` to
            ``x2`` of the image.
        area: number of pixels of the mask.
    """

    box: tuple[int, int, int, int]
    image_size: tuple[int, int]
    counts: NDArray[np.int32]
    area: int

    @property
    def offset(self) -> tuple[int, int]:
        """Column and row of the bitmap's first pixel in the image."""
        return self.box[0], self.box[1]

    def array(self) -> NDArray[np.uint8]:
        """The mask inside its box, ``(h, w)`` uint8 of 0 and 1."""
        x1, y1, x2, y2 = self.box
        values = np.zeros(len(self.counts), dtype=np.uint8)
        values[1::2] = 1
        columns = np.repeat(values, self.counts).reshape(x2 - x1, -1)  # (w, H)
        return np.ascontiguousarray(columns[:, y1:y2].T)  # (h, w)

    def image_counts(self) -> list[int]:
        """Run lengths of the whole image, as in COCO's uncompressed RLE."""
        height, width = self.image_size
        counts: list[int] = self.counts.tolist()
        counts[0] += self.box[0] * height
        counts[-1] += (width - self.box[2]) * height
        return counts


Shape: TypeAlias = "Polygons | Bitmap"


@dataclass(frozen=True, eq=False)
class Instances:
    """Annotated instances of an image, in pixels of the original image.

    Attributes:
        boxes: ``(G, 4)`` float64, ``x1 y1 x2 y2``, within the image.
        labels: ``(G,)`` int64, indices into the class names.
        shapes: the ``G`` masks; ``()`` of an object that has only a box.
        crowd: ``(G,)`` bool, regions of many objects, not used for training.
    """

    boxes: Floats
    labels: NDArray[np.int64]
    shapes: tuple[Shape, ...]
    crowd: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def has_mask(self) -> NDArray[np.bool_]:
        """``(G,)`` bool, whether an object has more than a box."""
        return np.array([isinstance(s, Bitmap) or len(s) > 0 for s in self.shapes], dtype=np.bool_)

    def select(self, index: NDArray[np.int64]) -> Instances:
        """Select instances by index, in the given order."""
        shapes = tuple(self.shapes[i] for i in index)
        return Instances(self.boxes[index], self.labels[index], shapes, self.crowd[index])

    def masks(self, size: int) -> NDArray[np.uint8]:
        """Each mask cropped by its own box to ``size x size``: ``(G, S, S)`` uint8."""
        masks = np.zeros((len(self), size, size), dtype=np.uint8)
        outlines = [i for i, shape in enumerate(self.shapes) if not isinstance(shape, Bitmap)]
        if outlines:
            polygons = [shape for shape in self.shapes if not isinstance(shape, Bitmap)]
            masks[outlines] = rasterize_polygons(polygons, self.boxes[outlines], size)
        filled = [i for i, shape in enumerate(self.shapes) if isinstance(shape, Bitmap)]
        if filled:
            bitmaps = [shape for shape in self.shapes if isinstance(shape, Bitmap)]
            masks[filled] = bitmap_masks(bitmaps, self.boxes[filled], size)
        return masks


def bitmap_masks(bitmaps: Sequence[Bitmap], boxes: Floats, size: int) -> NDArray[np.uint8]:
    """Each bitmap cropped by its box of ``(G, 4)`` to ``size x size``: ``(G, S, S)`` uint8."""
    masks = np.zeros((len(bitmaps), size, size), dtype=np.uint8)
    for start in range(0, len(bitmaps), _UNPACKED):
        chunk = bitmaps[start : start + _UNPACKED]
        masks[start : start + _UNPACKED] = sample_bitmaps(
            [bitmap.array() for bitmap in chunk],
            np.array([bitmap.offset for bitmap in chunk]),
            boxes[start : start + _UNPACKED],
            size,
            np.array([bitmap.image_size for bitmap in chunk]),
        )
    return masks


def read_counts(text: str) -> NDArray[np.int64]:
    """Decode the run lengths of a compressed COCO RLE string.

    Each character holds 5 bits of a number, lowest first, and a flag (32) if more follow. Bit 16
    of the last character is the sign. From the fourth on, numbers are differences from the number
    before the previous one. This is the format of ``rleToString`` of pycocotools.

    Raises:
        ValueError: if the string has invalid characters or ends within a number.
    """
    raw = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64) - 48
    if raw.size == 0 or raw.min() < 0 or raw.max() > 63 or raw[-1] & 32:
        raise ValueError("the string is not valid")
    ends = np.flatnonzero((raw & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 8:  # 40 bits: no image is that large
        raise ValueError("the string is not valid")
    place = np.arange(len(raw)) - np.repeat(starts, lengths)
    values = np.add.reduceat((raw & 31) << (5 * place), starts)
    values -= np.where(raw[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def bitmap_from_counts(counts: NDArray[np.int64], height: int, width: int) -> Bitmap | None:
    """Convert run lengths of a whole image to a :class:`Bitmap`; None for an empty mask.

    Raises:
        ValueError: if a run is negative or the runs do not fill the image exactly.
    """
    pixels = height * width
    ends = np.cumsum(counts)
    # Check the maximum too, since sums of huge numbers may overflow.
    if len(counts) == 0 or counts.min() < 0 or counts.max() > pixels or ends[-1] != pixels:
        raise ValueError("the counts do not fill the image")
    runs = 2 * np.flatnonzero(counts[1::2]) + 1  # runs of 1 that are not empty
    if len(runs) == 0:
        return None
    first, last = ends[runs - 1], ends[runs] - 1  # pixels, counted down the columns
    x1, x2 = int(first[0]) // height, int(last[-1]) // height + 1
    if (first // height != last // height).any():  # a run spans several columns
        y1, y2 = 0, height
    else:
        y1, y2 = int((first % height).min()), int((last % height).max()) + 1
    kept = np.empty(int(runs[-1] - runs[0]) + 3, dtype=np.int32)
    kept[0] = first[0] - x1 * height
    kept[1:-1] = counts[runs[0] : runs[-1] + 1]
    kept[-1] = x2 * height - 1 - last[-1]
    return Bitmap((x1, y1, x2, y2), (height, width), kept, int(counts[1::2].sum()))


def polygon_area(polygons: Polygons) -> float:
    """Total area of the parts (shoelace formula), in square pixels; overlaps count twice."""
    total = 0.0
    for part in polygons:
        x, y = part[0::2], part[1::2]
        # Relative to the first point, to keep precision with large coordinates.
        x, y = x - x[0], y - y[0]
        total += abs(float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))) / 2
    return total


def shape_bounds(shape: Shape) -> Window:
    """Tight ``x1 y1 x2 y2`` of a mask in pixels."""
    if isinstance(shape, Bitmap):
        x1, y1, x2, y2 = shape.box
        return float(x1), float(y1), float(x2), float(y2)
    points = np.concatenate(shape).reshape(-1, 2)
    low, high = points.min(0), points.max(0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def clip_polygons(polygons: Sequence[Polygons], window: Window) -> list[Polygons]:
    """Clip polygons to a window (Sutherland and Hodgman 1974), all parts at once.

    Args:
        polygons: the parts of each instance.
        window: ``x1 y1 x2 y2`` in the same pixels.

    Returns:
        The parts of each instance inside the window, without parts that are outside. Pieces of one
        part stay connected by edges of no area on the border of the window, which do not extend
        beyond the pieces.
    """
    parts = [part for instance in polygons for part in instance]
    if not parts:
        return [() for _ in polygons]
    points = np.concatenate(parts).reshape(-1, 2)
    part_of = np.repeat(np.arange(len(parts)), [len(part) // 2 for part in parts])
    for axis, bound, side in (
        (0, window[0], 1),
        (1, window[1], 1),
        (0, window[2], -1),
        (1, window[3], -1),
    ):
        points, part_of = _clip_half_plane(points, part_of, axis, bound, side)
    points, part_of = _drop_tongues(points, part_of, window)
    sizes = np.bincount(part_of, minlength=len(parts))
    pieces = iter(np.split(points.reshape(-1), np.cumsum(2 * sizes)[:-1]))
    return [
        tuple(piece for piece in [next(pieces) for _ in instance] if piece.size >= 6)
        for instance in polygons
    ]


def _clip_half_plane(
    points: Floats, part_of: NDArray[np.int64], axis: int, bound: float, side: int
) -> tuple[Floats, NDArray[np.int64]]:
    """Clip closed outlines to the half-plane ``side * (coordinate - bound) >= 0``."""
    if len(points) == 0:
        return points, part_of
    following = _next_point(part_of)
    depth = side * (points[:, axis] - bound)
    inside = depth >= 0
    crossing = inside != inside[following]
    # Each point yields itself if inside, then the crossing on the edge to the next point.
    counts = inside.astype(np.int64) + crossing
    place = np.cumsum(counts) - counts
    result = np.empty((int(counts.sum()), 2))
    result[place[inside]] = points[inside]
    start, end = points[crossing], points[following[crossing]]
    share = depth[crossing] / (depth[crossing] - depth[following[crossing]])
    cut = start + share[:, None] * (end - start)
    cut[:, axis] = bound
    result[(place + inside)[crossing]] = cut
    return result, np.repeat(part_of, counts)


def _drop_tongues(
    points: Floats, part_of: NDArray[np.int64], window: Window
) -> tuple[Floats, NDArray[np.int64]]:
    """Drop edges that run along the border of the window and back, which widen the bounds."""
    border = np.array(window).reshape(2, 2)
    while len(points):
        following = _next_point(part_of)
        there = points[following] - points
        back = np.empty_like(points)
        back[following] = -there
        twice = (there == 0).all(1)
        if twice.any():  # first, since a repeated corner of the window looks like two turns
            dropped = twice
        else:
            along = (there == 0) & (back == 0) & (points == border[:, None]).any(0)
            dropped = along.any(1) & (there * back >= 0).all(1)
        if not dropped.any():
            break
        points, part_of = points[~dropped], part_of[~dropped]
    return points, part_of


def _next_point(part_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the next point of each point; the last point of a part is followed by its first."""
    first = np.flatnonzero(np.diff(part_of, prepend=-1))  # of each part
    following = np.arange(1, len(part_of) + 1)
    following[np.append(first[1:], len(part_of)) - 1] = first
    return following
