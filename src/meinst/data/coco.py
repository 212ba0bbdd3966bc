"""Annotations in COCO's JSON format: checked whole, with every fault of a file told at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco_file import EXAMPLES, load_document
from meinst.data.coco_file import AnnotationError as AnnotationError
from meinst.data.shapes import (
    Bitmap,
    Instances,
    Polygons,
    Shape,
    Window,
    bitmap_from_counts,
    is_flat,
    read_counts,
    shape_bounds,
)

CLIP_TOLERANCE = 1.0
"""Pixels by which a box may reach out of its image (rounding) before the report mentions it."""


@dataclass(frozen=True)
class ImageRecord:
    """An image of an annotation file; ``path`` is None where no image folder was given."""

    id: int
    path: Path | None
    width: int
    height: int


@dataclass(frozen=True)
class Finding:
    """Something found in ``count`` annotations; ``examples`` are the ids of the first few."""

    reason: str
    count: int
    examples: tuple[int, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        ids = ", ".join(map(str, self.examples))
        return f"{self.count} x {self.reason} (annotation {ids}{more})"


@dataclass(frozen=True)
class Report:
    """What reading changed: instances left out (with all their ids), and instances put right."""

    dropped: tuple[Finding, ...] = ()
    repaired: tuple[Finding, ...] = ()
    dropped_ids: frozenset[int] = frozenset()

    def __str__(self) -> str:
        lines = [f"left out: {finding}" for finding in self.dropped]
        lines += [f"put right: {finding}" for finding in self.repaired]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class CocoData:
    """A checked annotation file.

    Attributes:
        annotations: the file itself; an evaluator reads it as it is.
        images: the images, in the file's order.
        instances: what is in each of them.
        class_names: the categories' names, by ascending category id; labels index them.
        category_ids: the category ids in the same order.
        report: the instances that were left out or put right.
    """

    annotations: Path
    images: tuple[ImageRecord, ...]
    instances: tuple[Instances, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    report: Report

    def __len__(self) -> int:
        return len(self.images)


def read_coco(annotations: str | Path, images: str | Path | None = None) -> CocoData:
    """Read and check a COCO annotation file.

    Masks may be polygons, compressed RLE (a string) or uncompressed RLE (a list). A faulty
    instance is left out and counted in the report: a mask or box of no area or outside the image,
    numbers that are not finite, no polygon of three points, an RLE of another size or with counts
    that do not fill it, an unknown category or image. A box that reaches out of the image is
    clipped; a missing one is taken from the mask. Crowd regions are kept and flagged.

    Args:
        annotations: the JSON file.
        images: the folder that the file names are relative to; None if only masks are wanted.

    Raises:
        FileNotFoundError: if the file or the folder does not exist.
        AnnotationError: for a file that is at fault itself: no JSON, keys missing, ids that occur
            twice, image files missing, or most annotations of unknown images or categories. The
            message lists all its faults.
    """
    path = Path(annotations)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"The image folder {folder} does not exist.")
    document = load_document(path, folder)
    categories = sorted(document["categories"], key=lambda category: int(category["id"]))
    records = tuple(
        ImageRecord(
            entry["id"],
            None if folder is None else folder / entry["file_name"],
            entry["width"],
            entry["height"],
        )
        for entry in document["images"]
    )
    reader = _InstanceReader(records, [category["id"] for category in categories])
    for annotation in document["annotations"]:
        reader.add(annotation)
    return CocoData(
        path,
        records,
        reader.instances(),
        tuple(category["name"] for category in categories),
        tuple(category["id"] for category in categories),
        Report(
            reader.dropped.findings(),
            reader.repaired.findings(),
            frozenset(chain.from_iterable(reader.dropped.ids.values())),
        ),
    )


class _FaultyInstanceError(Exception):
    """Why an instance is left out."""


@dataclass
class _Tally:
    """Counts annotations by reason, with the first few ids."""

    ids: dict[str, list[int]] = field(default_factory=dict)

    def add(self, reason: str, annotation_id: int) -> None:
        self.ids.setdefault(reason, []).append(annotation_id)

    def findings(self) -> tuple[Finding, ...]:
        return tuple(
            Finding(reason, len(ids), tuple(ids[:EXAMPLES])) for reason, ids in self.ids.items()
        )


class _InstanceReader:
    """Turns annotations into instances, image by image."""

    def __init__(self, records: tuple[ImageRecord, ...], category_ids: list[int]) -> None:
        self.dropped = _Tally()
        self.repaired = _Tally()
        self._records = records
        self._position = {record.id: i for i, record in enumerate(records)}
        self._label = {category: label for label, category in enumerate(category_ids)}
        self._boxes: list[list[Window]] = [[] for _ in records]
        self._labels: list[list[int]] = [[] for _ in records]
        self._shapes: list[list[Shape]] = [[] for _ in records]
        self._crowd: list[list[bool]] = [[] for _ in records]

    def add(self, annotation: dict[str, Any]) -> None:
        """Take one annotation in, or note why not."""
        try:
            position = self._position.get(annotation["image_id"])
            label = self._label.get(annotation["category_id"])
            if position is None:
                raise _FaultyInstanceError("unknown image id")
            if label is None:
                raise _FaultyInstanceError("unknown category id")
            record = self._records[position]
            shape = self._shape(annotation, record)
            box = self._box(annotation, record, shape)
        except _FaultyInstanceError as fault:
            self.dropped.add(str(fault), annotation["id"])
            return
        self._boxes[position].append(box)
        self._labels[position].append(label)
        self._shapes[position].append(shape)
        self._crowd[position].append(bool(annotation.get("iscrowd", 0)))

    def instances(self) -> tuple[Instances, ...]:
        """The instances of each image."""
        return tuple(
            Instances(
                np.array(boxes, dtype=np.float64).reshape(-1, 4),  # (G, 4)
                np.array(labels, dtype=np.int64),
                tuple(shapes),
                np.array(crowd, dtype=np.bool_),
            )
            for boxes, labels, shapes, crowd in zip(
                self._boxes, self._labels, self._shapes, self._crowd, strict=True
            )
        )

    def _shape(self, annotation: dict[str, Any], record: ImageRecord) -> Shape:
        segmentation = annotation.get("segmentation")
        if isinstance(segmentation, dict):
            return self._bitmap(segmentation, record)
        if isinstance(segmentation, list) and segmentation:
            return self._polygons(segmentation, annotation["id"])
        raise _FaultyInstanceError("no mask")

    def _bitmap(self, rle: dict[str, Any], record: ImageRecord) -> Bitmap:
        if rle.get("size") != [record.height, record.width]:
            raise _FaultyInstanceError("RLE of another size than its image")
        counts = rle.get("counts")
        try:
            if isinstance(counts, str):
                runs = read_counts(counts)
            else:
                runs = np.asarray(counts)
                if runs.dtype.kind not in "iu" or runs.ndim != 1:
                    raise ValueError("the RLE's counts are no integers")
            bitmap = bitmap_from_counts(runs.astype(np.int64), record.height, record.width)
        except (ValueError, OverflowError) as error:
            raise _FaultyInstanceError(f"broken RLE: {error}") from error
        if bitmap is None:
            raise _FaultyInstanceError("mask of no area")
        return bitmap

    def _polygons(self, segmentation: list[Any], annotation_id: int) -> Polygons:
        parts = [_numbers(part) for part in segmentation]
        if any(part is None for part in parts):
            raise _FaultyInstanceError("polygon that is no list of finite numbers")
        polygons = tuple(p for p in parts if p is not None and p.size >= 6 and p.size % 2 == 0)
        if not polygons:
            raise _FaultyInstanceError("polygon of fewer than three points")
        if all(map(is_flat, polygons)):
            raise _FaultyInstanceError("mask of no area")
        if len(polygons) < len(parts):
            self.repaired.add("polygon part of fewer than three points ignored", annotation_id)
        return polygons

    def _box(self, annotation: dict[str, Any], record: ImageRecord, shape: Shape) -> Window:
        low_x, low_y, high_x, high_y = shape_bounds(shape)
        if annotation.get("bbox") is None:
            self.repaired.add("missing box taken from the mask", annotation["id"])
            box = low_x, low_y, high_x, high_y
        else:
            given = _numbers(annotation["bbox"])
            if given is None or given.size != 4:
                raise _FaultyInstanceError("box that is not four finite numbers")
            x, y, width, height = given.tolist()
            if width <= 0 or height <= 0:
                raise _FaultyInstanceError("box of no area")
            box = x, y, x + width, y + height
        x1, y1 = max(box[0], 0.0), max(box[1], 0.0)
        x2, y2 = min(box[2], float(record.width)), min(box[3], float(record.height))
        if x1 >= x2 or y1 >= y2:
            raise _FaultyInstanceError("box outside the image")
        if max(x1 - box[0], y1 - box[1], box[2] - x2, box[3] - y2) > CLIP_TOLERANCE:
            self.repaired.add("box clipped to the image", annotation["id"])
        if low_x > x2 or high_x < x1 or low_y > y2 or high_y < y1:
            raise _FaultyInstanceError("mask outside its box")
        return x1, y1, x2, y2


def _numbers(values: Any) -> NDArray[np.float64] | None:
    """A flat array of finite numbers, or None."""
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    return array if array.ndim == 1 and bool(np.isfinite(array).all()) else None
