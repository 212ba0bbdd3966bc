"""Check annotations and convert them to instances, thousands at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.annotations.arrays import (
    Faults,
    Integers,
    ParsedMasks,
    Truths,
    any_of_row,
    parse_areas,
    parse_boxes,
    parse_masks,
)
from meinst.data.annotations.box_format import SAMPLE, box_format_fault
from meinst.data.annotations.coco_file import image_sizes
from meinst.data.annotations.large_file import sample
from meinst.data.shapes import Bitmap, Floats, bitmap_masks
from meinst.ops.rasterize import piece_starts, rasterize_flat

CLIP_TOLERANCE = 1.0
"""Boxes that exceed the image by at most this many pixels (rounding) are not reported."""

CROWD = "crowd region, not used as an instance"
CROWD_USED = "crowd region, used as an instance"
BOX_ALONE = "box without a mask, used for class and box"

FROM_MASK = ", taken from the mask"

AREA_FACTOR, AREA_SLACK = 10.0, 16.0
"""An area contradicts its mask if they differ by this factor, and further by this many pixels."""


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
        file_boxes: ``(N, 4)`` float64, ``x y width height`` as in the file; NaN where ``boxes`` is
            taken from the mask.
        file_areas: ``(N,)`` float64 as in the file; NaN where missing or contradicting the mask.
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
    """Converts annotations of one file to batches and records what it drops and repairs.

    Attributes:
        dropped: dropped annotations.
        repaired: repaired annotations.
        noted: usable annotations that are unusual: crowd regions.
    """

    def __init__(
        self,
        image_sizes: Mapping[int, tuple[int, int]],
        category_ids: Sequence[int],
        *,
        crowd_as_instances: bool = False,
        boxes_alone: bool = False,
    ) -> None:
        """Prepare to read annotations of a file.

        Args:
            image_sizes: height and width by image id, in the order of the file.
            category_ids: category ids in the order of the labels.
            crowd_as_instances: read crowd regions as ordinary instances.
            boxes_alone: read objects with a box and no mask; their shapes are ``()``.
        """
        self.dropped = Tally()
        self.repaired = Tally()
        self.noted = Tally()
        self._position = {image: place for place, image in enumerate(image_sizes)}
        self._sizes = np.array(list(image_sizes.values()), dtype=np.float64).reshape(-1, 2)
        self._label = {category: label for label, category in enumerate(category_ids)}
        self._crowd_as_instances = crowd_as_instances
        self._boxes_alone = boxes_alone
        self._box_fault: str | None = None

    @classmethod
    def for_document(
        cls,
        document: Mapping[str, Any],
        *,
        crowd_as_instances: bool = False,
        boxes_alone: bool = False,
    ) -> BatchReader:
        """A reader of a checked document, which recognises the format of its boxes.

        Args:
            document: the result of :func:`meinst.data.annotations.coco_file.load_document`.
            crowd_as_instances: read crowd regions as ordinary instances.
            boxes_alone: read objects with a box and no mask.
        """
        categories = sorted(int(category["id"]) for category in document["categories"])
        reader = cls(
            image_sizes(document),
            categories,
            crowd_as_instances=crowd_as_instances,
            boxes_alone=boxes_alone,
        )
        reader._box_fault = reader._find_box_fault(sample(document["annotations"], SAMPLE))
        return reader

    def read(self, annotations: Sequence[dict[str, Any]]) -> InstanceBatch:
        """Read annotations and return the usable instances."""
        ids = np.array([entry["id"] for entry in annotations], dtype=object)
        faults = Faults(len(annotations))
        images, labels, sizes = self._places(annotations, faults)
        crowd = _crowd([entry.get("iscrowd") for entry in annotations], faults)
        masks = parse_masks(
            [entry.get("segmentation") for entry in annotations],
            sizes,
            faults,
            without=self._boxes_alone,
        )
        file_boxes, derived = parse_boxes([entry.get("bbox") for entry in annotations])
        alone = masks.missing
        faults.note("neither a mask nor a usable box", alone & np.isnan(file_boxes[:, 0]))
        boxes, reasons = self._boxes(file_boxes, derived, masks, sizes)
        faults.note("mask outside the image", any_of_row(boxes[:, 2:] <= boxes[:, :2]))
        areas = parse_areas([entry.get("area") for entry in annotations])
        wrong_area = _contradicting(areas, masks, sizes)
        areas[wrong_area] = np.nan

        for reason, rows in faults.by_reason():
            self.dropped.add(reason, ids[rows])
        reasons["area that contradicts the mask, computed from the mask"] = wrong_area
        for reason, rows in (masks.repaired | reasons).items():
            self.repaired.add(reason, ids[faults.none & rows])
        self.noted.add(BOX_ALONE, ids[faults.none & alone & ~crowd])
        reason = CROWD_USED if self._crowd_as_instances else CROWD
        self.noted.add(reason, ids[faults.none & crowd])
        batch = InstanceBatch(
            ids.astype(np.int64),
            images,
            labels,
            boxes,
            np.zeros_like(crowd) if self._crowd_as_instances else crowd,
            masks.polygons.coordinates,
            masks.polygons.part_starts,
            masks.polygons.instance_starts,
            masks.bitmaps,
            file_boxes,
            areas,
        )
        return batch if faults.none.all() else batch.select(faults.none)

    def _places(
        self, annotations: Sequence[dict[str, Any]], faults: Faults
    ) -> tuple[Integers, Integers, Floats]:
        """Positions of the images, labels, and ``(N, 2)`` height and width of the images."""
        images = _lookup(self._position, [entry["image_id"] for entry in annotations])
        labels = _lookup(self._label, [entry["category_id"] for entry in annotations])
        faults.note("unknown image id", images < 0)
        faults.note("unknown category id", labels < 0)
        known = images >= 0
        sizes = np.zeros((len(annotations), 2))
        sizes[known] = self._sizes[images[known]]
        return images, labels, sizes

    def _boxes(
        self, file_boxes: Floats, derived: dict[str, Truths], masks: ParsedMasks, sizes: Floats
    ) -> tuple[Floats, dict[str, Truths]]:
        """Boxes ``(N, 4)`` as corners, from the masks where those of the file are unusable.

        Args:
            file_boxes: ``(N, 4)``; those that are not used are replaced by NaN.
            derived: rows without a usable box, by reason.
            masks: the masks; a box without a mask is kept if it is in the image.
            sizes: ``(N, 2)``, of the images.

        Returns:
            The boxes, and the repaired rows by reason.
        """
        if self._box_fault is not None:
            every = np.ones(len(file_boxes), dtype=np.bool_)
            derived = {f"box in a file whose boxes {self._box_fault}": every}
        given = ~np.logical_or.reduce(list(derived.values()))
        bounds = masks.bounds
        boxes, clipped = _clip(_to_corners(file_boxes, ~given, bounds), sizes)
        outside = given & any_of_row(boxes[:, 2:] <= boxes[:, :2])
        apart = any_of_row((bounds[:, :2] > boxes[:, 2:]) | (bounds[:, 2:] < boxes[:, :2]))
        apart &= given & ~outside & ~masks.missing
        derived |= {"box outside the image": outside, "box that does not overlap its mask": apart}
        unused = ~given | outside | apart
        boxes[unused] = _clip(bounds, sizes)[0][unused]
        file_boxes[unused] = np.nan
        reasons = {reason + FROM_MASK: rows for reason, rows in derived.items()}
        reasons["box clipped to the image"] = clipped & ~unused
        return boxes, reasons

    def _find_box_fault(self, annotations: Sequence[dict[str, Any]]) -> str | None:
        """What the boxes of annotations appear to be, if not ``x y width height``."""
        faults = Faults(len(annotations))
        _, _, sizes = self._places(annotations, faults)
        masks = parse_masks([entry.get("segmentation") for entry in annotations], sizes, faults)
        boxes, unusable = parse_boxes([entry.get("bbox") for entry in annotations])
        kept = faults.none & ~np.logical_or.reduce(list(unusable.values()))
        return box_format_fault(boxes[kept], masks.bounds[kept], sizes[kept])


def _crowd(values: Sequence[Any], faults: Faults) -> Truths:
    """``iscrowd`` of annotations, false if missing; a text or a list is a fault, not true."""
    wrong = [
        value is not None and (type(value) not in (int, bool) or value not in (0, 1))
        for value in values
    ]
    faults.note("iscrowd that is not 0 or 1", np.array(wrong, dtype=np.bool_))
    return np.array([value == 1 for value in values], dtype=np.bool_)


def _contradicting(areas: Floats, masks: ParsedMasks, sizes: Floats) -> Truths:
    """Which areas contradict their masks, see :data:`AREA_FACTOR`."""
    ends = sizes[:, ::-1] + CLIP_TOLERANCE
    inside = (masks.bounds[:, :2] >= -CLIP_TOLERANCE) & (masks.bounds[:, 2:] <= ends)
    too_large = areas > AREA_FACTOR * masks.areas + AREA_SLACK
    too_small = areas < masks.areas / AREA_FACTOR - AREA_SLACK
    # Of a mask that exceeds its image, the area may be that of the visible part.
    contradicts = (areas <= 0) | too_large | (too_small & inside.all(axis=1))
    return np.asarray(contradicts & ~masks.missing, dtype=np.bool_)


def _to_corners(boxes: Floats, missing: Truths, bounds: Floats) -> Floats:
    """Convert ``x y width height`` to ``x1 y1 x2 y2``; missing boxes are taken from the masks."""
    with np.errstate(over="ignore"):  # huge but finite numbers are clipped later
        ends = boxes[:, :2] + boxes[:, 2:]
    return np.where(missing[:, None], bounds, np.concatenate((boxes[:, :2], ends), axis=1))


def _clip(boxes: Floats, sizes: Floats) -> tuple[Floats, Truths]:
    """Clip boxes to their images; also returns which boxes were changed noticeably."""
    low, high = np.maximum(boxes[:, :2], 0.0), np.minimum(boxes[:, 2:], sizes[:, ::-1])
    clipped = np.concatenate((low, high), axis=1)
    return clipped, any_of_row(np.abs(clipped - boxes) > CLIP_TOLERANCE)


def _lookup(table: Mapping[int, int], keys: Sequence[Any]) -> Integers:
    return np.fromiter((table.get(key, -1) for key in keys), np.int64, len(keys))
