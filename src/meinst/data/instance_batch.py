"""Check annotations and convert them to arrays, thousands at a time.

Array operations process a whole batch at once; only run lengths, and batches with values that are
not numbers, are processed one by one.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from meinst.data.shapes import (
    Bitmap,
    Floats,
    bitmap_from_counts,
    bitmap_masks,
    read_counts,
)
from meinst.ops.rasterize import piece_starts, rasterize_flat

CLIP_TOLERANCE = 1.0
"""Boxes that exceed the image by at most this many pixels (rounding) are not reported."""

Integers: TypeAlias = NDArray[np.int64]
Truths: TypeAlias = NDArray[np.bool_]

_SHORTEST = 6  # numbers of the smallest polygon, three points
# Stands in for missing or unusable boxes.
_UNIT_BOX = [0.0, 0.0, 1.0, 1.0]


@dataclass(frozen=True, eq=False)
class InstanceBatch:
    """Instances of one or more images, in the order of their annotations.

    Attributes:
        ids: ``(N,)`` int64, annotation ids.
        images: ``(N,)`` int64, position of each instance's image in the file.
        labels: ``(N,)`` int64, indices into the class names.
        boxes: ``(N, 4)`` float64, ``x1 y1 x2 y2`` in pixels, clipped to the image.
        crowd: ``(N,)`` bool.
        coordinates: float64, ``x y x y ...`` of all polygons, concatenated.
        part_starts: ``(Q + 1,)`` int64, start of each polygon in ``coordinates``, and the end.
        instance_starts: ``(N + 1,)`` int64, start of each instance in ``part_starts``.
        bitmaps: masks given as run lengths, by instance; these have no polygons.
        file_boxes: ``(N, 4)`` float64, ``x y width height`` as in the file; NaN where missing.
        file_areas: ``(N,)`` float64 as in the file; NaN where missing or not a number.
    """

    ids: Integers
    images: Integers
    labels: Integers
    boxes: Floats
    crowd: Truths
    coordinates: Floats
    part_starts: Integers
    instance_starts: Integers
    bitmaps: dict[int, Bitmap]
    file_boxes: Floats
    file_areas: Floats

    def __len__(self) -> int:
        return len(self.images)

    def masks(self, size: int) -> NDArray[np.uint8]:
        """Each mask cropped by its own box to ``size x size``: ``(N, S, S)`` uint8."""
        masks = rasterize_flat(
            self.coordinates, self.part_starts, self.instance_starts, self.boxes, size
        )
        if self.bitmaps:
            rows = list(self.bitmaps)
            bitmaps = list(self.bitmaps.values())
            masks[rows] = bitmap_masks(bitmaps, self.boxes[rows], size)
        return masks

    def select(self, keep: Truths) -> InstanceBatch:
        """Select instances by a boolean mask ``(N,)``."""
        parts = np.repeat(keep, np.diff(self.instance_starts))
        numbers = np.repeat(parts, np.diff(self.part_starts))
        places = np.cumsum(keep) - 1
        return InstanceBatch(
            self.ids[keep],
            self.images[keep],
            self.labels[keep],
            self.boxes[keep],
            self.crowd[keep],
            self.coordinates[numbers],
            piece_starts(np.diff(self.part_starts)[parts]),
            piece_starts(np.diff(self.instance_starts)[keep]),
            {int(places[row]): bitmap for row, bitmap in self.bitmaps.items() if keep[row]},
            self.file_boxes[keep],
            self.file_areas[keep],
        )


@dataclass
class Tally:
    """Annotation ids by reason."""

    ids: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, ids: NDArray[Any]) -> None:
        """Add annotation ids to a reason."""
        if len(ids):
            self.ids.setdefault(reason, []).extend(ids.tolist())


class BatchReader:
    """Converts annotations of one file to batches and records dropped and repaired ones.

    Attributes:
        dropped: dropped annotations.
        repaired: repaired annotations.
    """

    def __init__(
        self, image_sizes: Mapping[int, tuple[int, int]], category_ids: Sequence[int]
    ) -> None:
        """Prepare to read annotations of a file.

        Args:
            image_sizes: height and width by image id, in the order of the file.
            category_ids: category ids in the order of the labels.
        """
        self.dropped = Tally()
        self.repaired = Tally()
        self._position = {image: place for place, image in enumerate(image_sizes)}
        self._sizes = np.array(list(image_sizes.values()), dtype=np.float64).reshape(-1, 2)
        self._label = {category: label for label, category in enumerate(category_ids)}

    def read(self, annotations: Sequence[dict[str, Any]]) -> InstanceBatch:
        """Read annotations and return the usable instances."""
        count = len(annotations)
        ids = np.array([entry["id"] for entry in annotations], dtype=object)
        faults = _Faults(count)
        images = _lookup(self._position, [entry["image_id"] for entry in annotations])
        labels = _lookup(self._label, [entry["category_id"] for entry in annotations])
        faults.note("unknown image id", images < 0)
        faults.note("unknown category id", labels < 0)
        sizes = self._sizes[images] if len(self._sizes) else np.zeros((count, 2))  # (N, 2)

        # Masks.
        shapes = [entry.get("segmentation") for entry in annotations]
        outlined = np.array([isinstance(shape, list) and bool(shape) for shape in shapes], np.bool_)
        filled = np.array([isinstance(shape, dict) for shape in shapes], np.bool_)
        faults.note("no mask", ~outlined & ~filled)
        polygons = _Polygons(shapes, outlined, faults)
        bitmaps = _read_bitmaps(shapes, filled, sizes, faults)

        # Boxes.
        bounds = polygons.bounds(count)
        for row, bitmap in bitmaps.items():
            bounds[row] = bitmap.box
        file_boxes, missing = _read_boxes([entry.get("bbox") for entry in annotations], faults)
        boxes, clipped = _clip(_to_corners(file_boxes, missing, bounds), sizes, bounds, faults)

        self._record(ids, faults, polygons.shortened, missing, clipped)
        batch = InstanceBatch(
            ids.astype(np.int64),
            images,
            labels,
            boxes,
            np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], dtype=np.bool_),
            polygons.coordinates,
            polygons.part_starts,
            polygons.instance_starts,
            bitmaps,
            file_boxes,
            _areas([entry.get("area") for entry in annotations]),
        )
        return batch if faults.none.all() else batch.select(faults.none)

    def _record(
        self,
        ids: NDArray[Any],
        faults: _Faults,
        shortened: Truths,
        missing: Truths,
        clipped: Truths,
    ) -> None:
        """Add a batch to the dropped and repaired annotations."""
        for reason, rows in faults.by_reason():
            self.dropped.add(reason, ids[rows])
        for reason, rows in (
            ("polygon part of fewer than three points ignored", shortened),
            ("missing box taken from the mask", missing),
            ("box clipped to the image", clipped),
        ):
            self.repaired.add(reason, ids[faults.none & rows])


class _Faults:
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


class _Polygons:
    """All polygons of a batch as flat arrays, without parts of fewer than three points."""

    def __init__(self, shapes: Sequence[Any], outlined: Truths, faults: _Faults) -> None:
        rows = np.flatnonzero(outlined).tolist()
        parts = list(chain.from_iterable(shapes[row] for row in rows))
        numbers = _numbers(parts)
        if numbers is None:
            bad = [row for row in rows if _numbers(shapes[row]) is None]
            faults.note(_NOT_FINITE, _at(bad, len(shapes)))
            rows = sorted(set(rows) - set(bad))
            parts = list(chain.from_iterable(shapes[row] for row in rows))
            numbers = _numbers(parts)
            assert numbers is not None  # the others were dropped
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        counts = np.zeros(len(shapes), dtype=np.int64)
        counts[rows] = [len(shapes[row]) for row in rows]
        owners = np.repeat(np.arange(len(shapes)), counts)  # (Q,)
        finite = np.isfinite(numbers)
        not_finite = np.repeat(owners, lengths)[~finite]
        faults.note(_NOT_FINITE, _at(not_finite.tolist(), len(shapes)))
        numbers[~finite] = 0  # so that the following computations give no NaN

        usable = (lengths >= _SHORTEST) & (lengths % 2 == 0)
        counts_usable = np.bincount(owners[usable], minlength=len(shapes))
        self.shortened = counts_usable < counts
        present = counts > 0
        faults.note("polygon of fewer than three points", present & (counts_usable == 0))
        self._owners = owners[usable]
        self.coordinates = numbers if usable.all() else numbers[np.repeat(usable, lengths)]
        self.part_starts = piece_starts(lengths[usable])
        self.instance_starts = piece_starts(counts_usable)
        thick = np.bincount(self._owners[~self._flat()], minlength=len(shapes))
        faults.note("mask of no area", present & (thick == 0))

    def _flat(self) -> Truths:
        """Whether the points of each polygon are exactly collinear: ``(Q,)``."""
        starts = self.part_starts[:-1] // 2
        if not len(starts):
            return np.zeros(0, dtype=np.bool_)
        points = self.coordinates.reshape(-1, 2)
        part = np.repeat(np.arange(len(starts)), np.diff(self.part_starts) // 2)
        with np.errstate(invalid="ignore", over="ignore"):  # huge but finite coordinates
            x, y = (points - points[starts][part]).T
            distance = np.abs(x) + np.abs(y)
            far = np.flatnonzero(distance == np.maximum.reduceat(distance, starts)[part])
            _, first = np.unique(part[far], return_index=True)
            farthest = far[first][part]
            crossing = x * y[farthest] != y * x[farthest]
        return ~np.logical_or.reduceat(crossing, starts)

    def bounds(self, count: int) -> Floats:
        """Tight ``x1 y1 x2 y2`` of each instance, ``(N, 4)``; zeros without polygons."""
        bounds = np.zeros((count, 4))
        rows = np.flatnonzero(np.diff(self.instance_starts))
        if len(rows):
            first = self.part_starts[self.instance_starts[rows]] // 2
            points = self.coordinates.reshape(-1, 2)
            bounds[rows, :2] = np.minimum.reduceat(points, first)
            bounds[rows, 2:] = np.maximum.reduceat(points, first)
        return bounds


_NOT_FINITE = "polygon that is not a list of finite numbers"


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
    shapes: Sequence[Any], filled: Truths, sizes: Floats, faults: _Faults
) -> dict[int, Bitmap]:
    """Read the RLE masks of a batch, by instance; record the faulty ones."""
    bitmaps: dict[int, Bitmap] = {}
    faulty: dict[str, list[int]] = {}
    for row in np.flatnonzero(filled & faults.none).tolist():
        bitmap = _read_bitmap(shapes[row], sizes[row])
        if isinstance(bitmap, Bitmap):
            bitmaps[row] = bitmap
        else:
            faulty.setdefault(bitmap, []).append(row)
    for reason, rows in faulty.items():
        faults.note(reason, _at(rows, len(shapes)))
    return bitmaps


def _read_bitmap(rle: Any, size: Floats) -> Bitmap | str:
    """Read the RLE mask of an image of the given height and width; returns a fault if invalid."""
    height, width = int(size[0]), int(size[1])
    given = rle.get("size")
    if given != [height, width]:
        return "RLE of another size than its image"
    if any(type(side) is not int for side in given):  # equal, but evaluators reject them
        return "RLE whose size is not integers"
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
    return bitmap or "mask of no area"


def _areas(values: Sequence[Any]) -> Floats:
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


def _read_boxes(given: Sequence[Any], faults: _Faults) -> tuple[Floats, Truths]:
    """Boxes ``(N, 4)`` ``x y width height``, NaN where missing, and which are missing."""
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
    not_finite = _any(~np.isfinite(boxes))
    faults.note("box that is not four finite numbers", wrong | not_finite)
    boxes[not_finite] = _UNIT_BOX
    faults.note("box of no area", _any(boxes[:, 2:] <= 0))
    boxes[missing] = np.nan
    return boxes, missing


def _to_corners(boxes: Floats, missing: Truths, bounds: Floats) -> Floats:
    """Convert ``x y width height`` to ``x1 y1 x2 y2``; missing boxes are taken from the masks."""
    with np.errstate(over="ignore"):  # huge but finite numbers are clipped later
        ends = boxes[:, :2] + boxes[:, 2:]
    return np.where(missing[:, None], bounds, np.concatenate((boxes[:, :2], ends), axis=1))


def _clip(boxes: Floats, sizes: Floats, bounds: Floats, faults: _Faults) -> tuple[Floats, Truths]:
    """Clip boxes to their images; also returns which boxes were changed noticeably."""
    low, high = np.maximum(boxes[:, :2], 0.0), np.minimum(boxes[:, 2:], sizes[:, ::-1])
    clipped = np.concatenate((low, high), axis=1)
    faults.note("box outside the image", _any(low >= high))
    changed = _any(np.abs(clipped - boxes) > CLIP_TOLERANCE)
    apart = _any((bounds[:, :2] > high) | (bounds[:, 2:] < low))
    faults.note("mask outside its box", apart)
    return clipped, changed


def _any(values: Truths) -> Truths:
    """Whether any value of each row of ``(N, M)`` is true."""
    return np.asarray(values.any(axis=1), dtype=np.bool_)


def _lookup(table: Mapping[int, int], keys: Sequence[Any]) -> Integers:
    return np.fromiter((table.get(key, -1) for key in keys), np.int64, len(keys))


def _at(rows: list[int], count: int) -> Truths:
    """Boolean mask ``(count,)`` that is true at the given rows."""
    mask = np.zeros(count, dtype=np.bool_)
    mask[rows] = True
    return mask
