"""Parse the masks and boxes of annotations into arrays, and find their faults.

Array operations process thousands of annotations at once; only run lengths, masks of unusual forms,
and batches with values that are not numbers, are processed one by one.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from meinst.data.annotations.mask_forms import rewrite_mask
from meinst.data.shapes import Bitmap, Floats, bitmap_from_counts, read_counts
from meinst.ops.rasterize import piece_starts

Integers: TypeAlias = NDArray[np.int64]
Truths: TypeAlias = NDArray[np.bool_]

MARGIN = 1000.0
"""Polygons may exceed their image by its longer side, and at least by this many pixels."""

MAX_OUTLINE = 2.0**22
"""Longest outline of a polygon part, in pixels: evaluators walk along it pixel by pixel."""

MAX_BITMAP = 2**28
"""Largest box of a mask given as run lengths, in pixels: it is decoded to one byte per pixel."""

MISSING_BOX = "missing box"

_SHORTEST = 6  # numbers of the smallest polygon, three points
_NOT_FINITE = "polygon that is not a list of finite numbers"
# Stands in for missing or unusable boxes.
_UNIT_BOX = [0.0, 0.0, 1.0, 1.0]


@dataclass(frozen=True, eq=False)
class ParsedMasks:
    """The masks of ``N`` annotations.

    Attributes:
        polygons: those given as polygons.
        bitmaps: those given as run lengths, by row.
        bounds: ``(N, 4)`` float64, tight ``x1 y1 x2 y2`` in pixels; zeros without a mask.
        areas: ``(N,)`` float64, square pixels; overlaps of polygons count twice.
        missing: ``(N,)`` rows whose ``segmentation`` is empty or missing.
        repaired: ``(N,)`` rows that were rewritten or lost a part, by reason.
    """

    polygons: ParsedPolygons
    bitmaps: dict[int, Bitmap]
    bounds: Floats
    areas: Floats
    missing: Truths
    repaired: dict[str, Truths]


def parse_masks(
    masks: Sequence[Any], sizes: Floats, faults: Faults, *, without: bool = False
) -> ParsedMasks:
    """Parse the ``segmentation`` of annotations.

    Args:
        masks: the ``N`` masks as in the file.
        sizes: ``(N, 2)`` height and width of their images; 0 if unknown.
        faults: the unusable masks are added.
        without: accept annotations whose ``segmentation`` is empty or missing.
    """
    rewritten: dict[str, list[int]] = {}
    shapes = list(masks)
    for row, (mask, (height, width)) in enumerate(zip(masks, sizes.tolist(), strict=True)):
        shapes[row], form = rewrite_mask(mask, int(height), int(width))
        if form is not None:
            rewritten.setdefault(f"{form}, accepted", []).append(row)
    outlined = np.array([isinstance(shape, list) and bool(shape) for shape in shapes], np.bool_)
    filled = np.array([isinstance(shape, dict) for shape in shapes], np.bool_)
    missing = np.array([mask is None or mask == [] for mask in masks], np.bool_)
    faults.note("no mask", ~outlined & ~filled & ~(missing & without))
    polygons = ParsedPolygons(shapes, outlined, sizes, faults)
    bitmaps = _read_bitmaps(shapes, filled, sizes, faults)
    bounds, areas = polygons.bounds(), polygons.areas()
    for row, bitmap in bitmaps.items():
        bounds[row], areas[row] = bitmap.box, bitmap.area
    repaired = {reason: at(rows, len(shapes)) for reason, rows in rewritten.items()}
    return ParsedMasks(polygons, bitmaps, bounds, areas, missing, repaired | polygons.ignored)


class Faults:
    """The first fault of each annotation."""

    def __init__(self, count: int) -> None:
        self.none = np.ones(count, dtype=np.bool_)
        self._found: dict[str, Truths] = {}

    def note(self, reason: str, rows: Truths) -> None:
        """Record a fault of the annotations where ``rows``, ``(N,)``, unless they have another."""
        new = rows & self.none
        if new.any():
            self._found[reason] = self._found.get(reason, np.zeros_like(new)) | new
            self.none &= ~new

    def by_reason(self) -> list[tuple[str, Truths]]:
        """Reasons and their annotations, in the order of their first annotations."""
        return sorted(self._found.items(), key=lambda item: int(item[1].argmax()))


class ParsedPolygons:
    """The usable polygons of ``N`` annotations as flat arrays.

    Attributes:
        coordinates: float64, ``x y x y ...`` of all parts, concatenated.
        part_starts: ``(Q + 1,)`` int64, start of each part in ``coordinates``, and the end.
        instance_starts: ``(N + 1,)`` int64, start of each annotation in ``part_starts``.
        ignored: ``(N,)`` rows that lost a part, by reason.
    """

    def __init__(
        self, shapes: Sequence[Any], outlined: Truths, sizes: Floats, faults: Faults
    ) -> None:
        """Parse ``shapes`` where ``outlined``; ``sizes`` as in :func:`parse_masks`."""
        count = len(shapes)
        rows = np.flatnonzero(outlined).tolist()
        numbers = _numbers(list(chain.from_iterable(shapes[row] for row in rows)))
        if numbers is None:
            bad = [row for row in rows if _numbers(shapes[row]) is None]
            faults.note(_NOT_FINITE, at(bad, count))
            rows = sorted(set(rows) - set(bad))
            numbers = _numbers(list(chain.from_iterable(shapes[row] for row in rows)))
            assert numbers is not None  # the others were dropped
        parts = list(chain.from_iterable(shapes[row] for row in rows))
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        counts = np.zeros(count, dtype=np.int64)
        counts[rows] = [len(shapes[row]) for row in rows]
        owners = np.repeat(np.arange(count), counts)  # (Q,)
        finite = np.isfinite(numbers)
        faults.note(_NOT_FINITE, at(np.repeat(owners, lengths)[~finite], count))
        numbers[~finite] = 0  # so that the following computations give no NaN

        far = _far_parts(numbers, lengths, sizes[owners])
        numbers[np.repeat(far, lengths)] = 0  # so that no computation overflows
        reasons = {
            "with fewer than three points": lengths < _SHORTEST,
            "with an odd number of coordinates": lengths % 2 == 1,
            "far outside the image": far,
            "whose outline is too long": _long_parts(numbers, lengths),
        }
        usable = ~np.logical_or.reduce(list(reasons.values()))
        counts_usable = np.bincount(owners[usable], minlength=count)
        present = counts > 0
        self.ignored: dict[str, Truths] = {}
        for reason, wrong in reasons.items():
            affected = at(owners[wrong], count)
            self.ignored[f"polygon part {reason}, ignored"] = affected
            faults.note(f"polygon {reason}", affected & (counts_usable == 0))
        self._owners = owners[usable]
        self.coordinates = numbers if usable.all() else numbers[np.repeat(usable, lengths)]
        self.part_starts = piece_starts(lengths[usable])
        self.instance_starts = piece_starts(counts_usable)
        thick = np.bincount(self._owners[~self._flat()], minlength=count)
        faults.note("mask with zero area", present & (thick == 0))

    def _relative(self) -> tuple[Floats, Floats, Integers, Integers]:
        """Points relative to the first of their part, their parts, and the first point of each."""
        starts = self.part_starts[:-1] // 2
        part = np.repeat(np.arange(len(starts)), np.diff(self.part_starts) // 2)
        points = self.coordinates.reshape(-1, 2)
        x, y = (points - points[starts][part]).T
        return x, y, part, starts

    def _flat(self) -> Truths:
        """Whether the points of each part are exactly collinear: ``(Q,)``."""
        if len(self.part_starts) == 1:
            return np.zeros(0, dtype=np.bool_)
        x, y, part, starts = self._relative()
        distance = np.abs(x) + np.abs(y)
        far = np.flatnonzero(distance == np.maximum.reduceat(distance, starts)[part])
        _, first = np.unique(part[far], return_index=True)
        farthest = far[first][part]
        crossing = x * y[farthest] != y * x[farthest]
        return ~np.logical_or.reduceat(crossing, starts)

    def areas(self) -> Floats:
        """Area of each annotation in square pixels, ``(N,)``; overlaps of parts count twice."""
        count = len(self.instance_starts) - 1
        if len(self.part_starts) == 1:
            return np.zeros(count)
        x, y, _, starts = self._relative()
        # The first point of each part is the origin, so its two edges add nothing.
        cross = np.append(x[:-1] * y[1:] - x[1:] * y[:-1], 0.0)
        areas = np.abs(np.add.reduceat(cross, starts)) / 2
        return np.bincount(self._owners, areas, count).astype(np.float64)

    def bounds(self) -> Floats:
        """Tight ``x1 y1 x2 y2`` of each annotation, ``(N, 4)``; zeros without polygons."""
        bounds = np.zeros((len(self.instance_starts) - 1, 4))
        rows = np.flatnonzero(np.diff(self.instance_starts))
        if len(rows):
            first = self.part_starts[self.instance_starts[rows]] // 2
            points = self.coordinates.reshape(-1, 2)
            bounds[rows, :2] = np.minimum.reduceat(points, first)
            bounds[rows, 2:] = np.maximum.reduceat(points, first)
        return bounds


def _far_parts(numbers: Floats, lengths: Integers, sizes: Floats) -> Truths:
    """Which parts have a point far outside their image of ``(Q, 2)`` height and width."""
    if not len(numbers) or (numbers.min() >= -MARGIN and numbers.max() <= MARGIN):
        return np.zeros(len(lengths), dtype=np.bool_)
    part = np.repeat(np.arange(len(lengths)), lengths)
    along_y = (np.arange(len(numbers)) - piece_starts(lengths)[:-1][part]) % 2 == 1
    margin = np.maximum(sizes.max(axis=1), MARGIN)[part]
    side = np.where(along_y, sizes[part, 0], sizes[part, 1])
    return at(part[(numbers < -margin) | (numbers > side + margin)], len(lengths))


def _long_parts(numbers: Floats, lengths: Integers) -> Truths:
    """Which parts have a longer outline than :data:`MAX_OUTLINE`, within a factor of two."""
    none = np.zeros(len(lengths), dtype=np.bool_)
    if not len(numbers) or lengths.max() * (numbers.max() - numbers.min()) <= MAX_OUTLINE:
        return none
    part = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.abs(numbers[2:] - numbers[:-2]) * (part[2:] == part[:-2])
    # The evaluators take the longer of a step along x and one along y. Each step is counted twice.
    longer = np.maximum(steps, np.append(steps[1:], 0.0))
    return np.bincount(part[:-2], weights=longer, minlength=len(lengths)) / 2 > MAX_OUTLINE


def _numbers(parts: Sequence[Any]) -> Floats | None:
    """Concatenate flat lists of numbers; None if they contain anything else."""
    numbers = array("d")  # three times as fast as NumPy for lists
    try:
        for part in parts:
            numbers.fromlist(part)
    except (TypeError, OverflowError):  # not a list, not a number, or too large
        return None
    return np.array(numbers)


def _read_bitmaps(
    shapes: Sequence[Any], filled: Truths, sizes: Floats, faults: Faults
) -> dict[int, Bitmap]:
    """Read the RLE masks of a batch, by row; record the faulty ones."""
    bitmaps: dict[int, Bitmap] = {}
    faulty: dict[str, list[int]] = {}
    for row in np.flatnonzero(filled & faults.none).tolist():
        bitmap = _read_bitmap(shapes[row], sizes[row])
        if isinstance(bitmap, Bitmap):
            bitmaps[row] = bitmap
        else:
            faulty.setdefault(bitmap, []).append(row)
    for reason, rows in faulty.items():
        faults.note(reason, at(rows, len(shapes)))
    return bitmaps


def _read_bitmap(rle: Any, size: Floats) -> Bitmap | str:
    """Read the RLE mask of an image of the given height and width; returns a fault if invalid."""
    height, width = int(size[0]), int(size[1])
    given = rle.get("size")
    if given != [height, width]:
        return "RLE whose size differs from its image"
    if any(type(side) is not int for side in given):  # equal, but evaluators reject them
        return "RLE whose size is not two integers"
    counts = rle.get("counts")
    try:
        if isinstance(counts, str):
            runs = read_counts(counts)
        else:
            runs = np.asarray(counts)
            if runs.dtype.kind not in "iu" or runs.ndim != 1:
                raise ValueError("the counts are not integers")
        bitmap = bitmap_from_counts(runs.astype(np.int64), height, width)
    except (ValueError, OverflowError) as error:
        return f"broken RLE: {error}"
    if bitmap is None:
        return "mask with zero area"
    x1, y1, x2, y2 = bitmap.box
    if (x2 - x1) * (y2 - y1) > MAX_BITMAP:
        return f"mask whose box has more than {MAX_BITMAP} pixels"
    return bitmap


def parse_areas(values: Sequence[Any]) -> Floats:
    """Areas ``(N,)``; NaN where missing or not a finite number."""
    numbers = np.array([_to_float(value) for value in values], dtype=np.float64)
    numbers[~np.isfinite(numbers)] = math.nan
    return numbers


def _to_float(value: Any) -> float:
    """A number of a file as a float; NaN if it is not a number, or too large."""
    try:
        return float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:
        return math.nan


def parse_boxes(given: Sequence[Any]) -> tuple[Floats, dict[str, Truths]]:
    """Parse the ``bbox`` of annotations.

    Returns:
        Boxes ``(N, 4)`` ``x y width height``, NaN where there is no usable one, and the rows
        without a usable one, by reason.
    """
    missing = np.array([box is None for box in given], dtype=np.bool_)
    values = [_UNIT_BOX if box is None else box for box in given]
    numbers = _numbers(values)
    wrong = np.zeros(len(given), dtype=np.bool_)
    if numbers is None or any(len(box) != 4 for box in values):
        wrong = np.array([_numbers([box]) is None or len(box) != 4 for box in values], np.bool_)
        values = [_UNIT_BOX if bad else box for box, bad in zip(values, wrong, strict=True)]
        numbers = _numbers(values)
        assert numbers is not None  # the others were replaced
    boxes = numbers.reshape(-1, 4)  # (N, 4) x y width height
    wrong |= any_of_row(~np.isfinite(boxes))
    boxes[wrong] = _UNIT_BOX
    empty = any_of_row(boxes[:, 2:] <= 0)
    boxes[missing | wrong | empty] = np.nan
    return boxes, {
        MISSING_BOX: missing,
        "box that is not four finite numbers": wrong,
        "box with zero area": empty,
    }


def any_of_row(values: Truths) -> Truths:
    """Whether any value of each row of ``(N, M)`` is true."""
    return np.asarray(values.any(axis=1), dtype=np.bool_)


def at(rows: Sequence[int] | Integers, count: int) -> Truths:
    """Boolean mask ``(count,)`` that is true at the given rows."""
    mask = np.zeros(count, dtype=np.bool_)
    mask[rows] = True
    return mask
