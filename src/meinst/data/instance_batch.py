"""Annotations to instances, thousands at a time: checked and kept as arrays.

Whatever a file holds for an instance is looked at by array operations over the whole batch;
only run lengths, and batches with something that is no number, are gone through one by one.
"""

from __future__ import annotations

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
"""Pixels by which a box may reach out of its image (rounding) before the report mentions it."""

Integers: TypeAlias = NDArray[np.int64]
Truths: TypeAlias = NDArray[np.bool_]

_SHORTEST = 6  # numbers of a polygon: those of three points
# Stands where there is no box, or no usable one.
_UNIT_BOX = [0.0, 0.0, 1.0, 1.0]


@dataclass(frozen=True, eq=False)
class InstanceBatch:
    """Instances of any images, in the order of their annotations.

    Attributes:
        images: ``(N,)`` int64, each instance's image, by its place in the file.
        labels: ``(N,)`` int64, indices into the class names.
        boxes: ``(N, 4)`` float64, ``x1 y1 x2 y2`` in pixels, within the image.
        crowd: ``(N,)`` bool.
        coordinates: float64, ``x y x y ...`` of all polygons, one after the other.
        part_starts: ``(Q + 1,)`` int64, where each polygon begins in them, and the end.
        instance_starts: ``(N + 1,)`` int64, where each instance begins in ``part_starts``.
        bitmaps: the masks that are run lengths, by instance; these have no polygons.
    """

    images: Integers
    labels: Integers
    boxes: Floats
    crowd: Truths
    coordinates: Floats
    part_starts: Integers
    instance_starts: Integers
    bitmaps: dict[int, Bitmap]

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
        """The instances where ``keep``, ``(N,)``, holds."""
        parts = np.repeat(keep, np.diff(self.instance_starts))
        numbers = np.repeat(parts, np.diff(self.part_starts))
        places = np.cumsum(keep) - 1
        return InstanceBatch(
            self.images[keep],
            self.labels[keep],
            self.boxes[keep],
            self.crowd[keep],
            self.coordinates[numbers],
            piece_starts(np.diff(self.part_starts)[parts]),
            piece_starts(np.diff(self.instance_starts)[keep]),
            {int(places[row]): bitmap for row, bitmap in self.bitmaps.items() if keep[row]},
        )


@dataclass
class Tally:
    """Annotation ids by reason."""

    ids: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, ids: NDArray[Any]) -> None:
        """Note that the annotations of these ids have this reason."""
        if len(ids):
            self.ids.setdefault(reason, []).extend(ids.tolist())


class BatchReader:
    """Turns annotations of one file into batches; notes what it leaves out or puts right.

    Attributes:
        dropped: annotations left out.
        repaired: annotations put right.
    """

    def __init__(
        self, image_sizes: Mapping[int, tuple[int, int]], category_ids: Sequence[int]
    ) -> None:
        """Know the file.

        Args:
            image_sizes: width and height by image id, in the file's order.
            category_ids: the category ids, in the order of the labels.
        """
        self.dropped = Tally()
        self.repaired = Tally()
        self._position = {image: place for place, image in enumerate(image_sizes)}
        self._sizes = np.array(list(image_sizes.values()), dtype=np.float64).reshape(-1, 2)
        self._label = {category: label for label, category in enumerate(category_ids)}

    def read(self, annotations: Sequence[dict[str, Any]]) -> InstanceBatch:
        """The usable instances of some annotations."""
        count = len(annotations)
        ids = np.array([entry["id"] for entry in annotations], dtype=object)
        faults = _Faults(count)
        images = _lookup(self._position, [entry["image_id"] for entry in annotations])
        labels = _lookup(self._label, [entry["category_id"] for entry in annotations])
        faults.note("unknown image id", images < 0)
        faults.note("unknown category id", labels < 0)
        sizes = self._sizes[images] if len(self._sizes) else np.zeros((count, 2))  # (N, 2)

        shapes = [entry.get("segmentation") for entry in annotations]
        outlined = np.array([isinstance(shape, list) and bool(shape) for shape in shapes], np.bool_)
        filled = np.array([isinstance(shape, dict) for shape in shapes], np.bool_)
        faults.note("no mask", ~outlined & ~filled)
        polygons = _Polygons(shapes, outlined, faults)
        bitmaps: dict[int, Bitmap] = {}
        broken: dict[str, list[int]] = {}
        for row in np.flatnonzero(filled & faults.none).tolist():
            found = _bitmap(shapes[row], sizes[row])
            if isinstance(found, Bitmap):
                bitmaps[row] = found
            else:
                broken.setdefault(found, []).append(row)
        for reason, at in broken.items():
            faults.note(reason, _at(at, count))
        bounds = polygons.bounds(count)
        for row, bitmap in bitmaps.items():
            bounds[row] = bitmap.box
        given, missing = _boxes([entry.get("bbox") for entry in annotations], faults)
        boxes = np.where(missing[:, None], bounds, given)
        clipped, reaching_out = _clip(boxes, sizes, bounds, faults)

        keep = faults.none
        for reason, rows in faults.by_reason():
            self.dropped.add(reason, ids[rows])
        self.repaired.add(
            "polygon part of fewer than three points ignored", ids[keep & polygons.shortened]
        )
        self.repaired.add("missing box taken from the mask", ids[keep & missing])
        self.repaired.add("box clipped to the image", ids[keep & reaching_out])
        crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], dtype=np.bool_)
        whole = InstanceBatch(
            images,
            labels,
            clipped,
            crowd,
            polygons.coordinates,
            polygons.part_starts,
            polygons.instance_starts,
            bitmaps,
        )
        return whole if keep.all() else whole.select(keep)


class _Faults:
    """The first fault found in each annotation."""

    def __init__(self, count: int) -> None:
        self.none = np.ones(count, dtype=np.bool_)
        self._found: dict[str, Truths] = {}

    def note(self, reason: str, rows: Truths) -> None:
        """Where ``rows``, ``(N,)``, holds this is the fault, unless there was another before."""
        new = rows & self.none
        if new.any():
            self._found[reason] = self._found.get(reason, np.zeros_like(new)) | new
            self.none &= ~new

    def by_reason(self) -> list[tuple[str, Truths]]:
        """Reasons with their annotations; the reason that comes first in the file is first."""
        return sorted(self._found.items(), key=lambda item: int(item[1].argmax()))


class _Polygons:
    """All polygons of a batch as flat arrays; parts of fewer than three points left out."""

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
            assert numbers is not None  # the others were left out
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        counts = np.zeros(len(shapes), dtype=np.int64)
        counts[rows] = [len(shapes[row]) for row in rows]
        owners = np.repeat(np.arange(len(shapes)), counts)  # (Q,)
        finite = np.isfinite(numbers)
        wild = np.repeat(owners, lengths)[~finite]
        faults.note(_NOT_FINITE, _at(wild.tolist(), len(shapes)))
        numbers[~finite] = 0  # so that what follows need not think of them

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
        """Whether all points of a polygon lie on one line, exactly: ``(Q,)``."""
        starts = self.part_starts[:-1] // 2
        if not len(starts):
            return np.zeros(0, dtype=np.bool_)
        points = self.coordinates.reshape(-1, 2)
        part = np.repeat(np.arange(len(starts)), np.diff(self.part_starts) // 2)
        with np.errstate(invalid="ignore", over="ignore"):  # of absurd but finite coordinates
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


_NOT_FINITE = "polygon that is no list of finite numbers"


def _numbers(parts: Sequence[Any]) -> Floats | None:
    """The numbers of flat lists, one after the other; None if there is anything else in them."""
    numbers = array("d")  # takes whole lists three times as fast as NumPy takes numbers
    try:
        for part in parts:
            numbers.fromlist(part)
    except (TypeError, OverflowError):  # no list, no number, or one that no float can hold
        return None
    return np.array(numbers)


def _bitmap(rle: Any, size: Floats) -> Bitmap | str:
    """The mask of an RLE in an image of a width and height, or what is wrong with it."""
    width, height = int(size[0]), int(size[1])
    given = rle.get("size")
    if given != [height, width]:
        return "RLE of another size than its image"
    if any(type(side) is not int for side in given):  # equal, but no evaluator takes them
        return "RLE whose size is no integers"
    counts = rle.get("counts")
    try:
        if isinstance(counts, str):
            runs = read_counts(counts)
        else:
            runs = np.asarray(counts)
            if runs.dtype.kind not in "iu" or runs.ndim != 1:
                raise ValueError("the RLE's counts are no integers")
        bitmap = bitmap_from_counts(runs.astype(np.int64), height, width)
    except (ValueError, OverflowError) as error:
        return f"broken RLE: {error}"
    return bitmap or "mask of no area"


def _boxes(given: Sequence[Any], faults: _Faults) -> tuple[Floats, Truths]:
    """Boxes ``(N, 4)`` as ``x1 y1 x2 y2`` where given, and where they are missing."""
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
    wild = _any(~np.isfinite(boxes))
    faults.note("box that is not four finite numbers", wrong | wild)
    boxes[wild] = _UNIT_BOX
    faults.note("box of no area", _any(boxes[:, 2:] <= 0))
    with np.errstate(over="ignore"):  # of absurd but finite numbers, which are clipped later
        ends = boxes[:, :2] + boxes[:, 2:]
    return np.concatenate((boxes[:, :2], ends), axis=1), missing


def _clip(boxes: Floats, sizes: Floats, bounds: Floats, faults: _Faults) -> tuple[Floats, Truths]:
    """Boxes cut to their images, and which of them reached out."""
    limits = np.concatenate((sizes, sizes), axis=1)
    low, high = np.maximum(boxes[:, :2], 0.0), np.minimum(boxes[:, 2:], limits[:, 2:])
    clipped = np.concatenate((low, high), axis=1)
    faults.note("box outside the image", _any(low >= high))
    reaching_out = _any(np.abs(clipped - boxes) > CLIP_TOLERANCE)
    apart = _any((bounds[:, :2] > high) | (bounds[:, 2:] < low))
    faults.note("mask outside its box", apart)
    return clipped, reaching_out


def _any(values: Truths) -> Truths:
    """Whether any of each row, ``(N, M)``, holds."""
    return np.asarray(values.any(axis=1), dtype=np.bool_)


def _lookup(table: Mapping[int, int], keys: Sequence[Any]) -> Integers:
    return np.fromiter((table.get(key, -1) for key in keys), np.int64, len(keys))


def _at(rows: list[int], count: int) -> Truths:
    found = np.zeros(count, dtype=np.bool_)
    found[rows] = True
    return found
