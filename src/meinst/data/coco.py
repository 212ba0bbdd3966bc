"""Annotations in COCO's JSON format; all faults of a file are reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco_file import EXAMPLES, image_sizes, load_document
from meinst.data.coco_file import AnnotationError as AnnotationError
from meinst.data.instance_batch import BatchReader, InstanceBatch, Tally
from meinst.data.shapes import Instances, Shape


@dataclass(frozen=True)
class ImageRecord:
    """An image of an annotation file; ``path`` is None if no image folder was given."""

    id: int
    path: Path | None
    width: int
    height: int


@dataclass(frozen=True)
class Finding:
    """A problem of ``count`` annotations; ``examples`` are the first few annotation ids."""

    reason: str
    count: int
    examples: tuple[int, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        ids = ", ".join(map(str, self.examples))
        return f"{self.count} x {self.reason} (annotation {ids}{more})"


@dataclass(frozen=True)
class Report:
    """Instances that were dropped or repaired while reading."""

    dropped: tuple[Finding, ...] = ()
    repaired: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        lines = [f"dropped: {finding}" for finding in self.dropped]
        lines += [f"repaired: {finding}" for finding in self.repaired]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class AnnotationFields:
    """Fields of one image's annotations that only evaluation needs, unchanged.

    Attributes:
        ids: ``(G,)`` int64, annotation ids.
        boxes: ``(G, 4)`` float64, ``x y width height`` in pixels; NaN where missing.
        areas: ``(G,)`` float64, square pixels; NaN where missing.
    """

    ids: NDArray[np.int64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CocoData:
    """A checked annotation file.

    Attributes:
        annotations: path of the file.
        images: the images, in the order of the file.
        instances: the usable instances of each image.
        fields: further fields of these instances, for evaluation.
        class_names: names of the categories, by ascending category id; labels index them.
        category_ids: category ids in the same order.
        report: the instances that were dropped or repaired.
    """

    annotations: Path
    images: tuple[ImageRecord, ...]
    instances: tuple[Instances, ...]
    fields: tuple[AnnotationFields, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    report: Report

    def __len__(self) -> int:
        return len(self.images)


def read_coco(annotations: str | Path, images: str | Path | None = None) -> CocoData:
    """Read and check a COCO annotation file.

    Masks may be polygons, compressed RLE (a string) or uncompressed RLE (a list). Faulty instances
    are dropped and reported: masks or boxes of no area or outside the image, numbers that are not
    finite, polygons of fewer than three points, RLE that does not fit the image, unknown categories
    or images. Boxes are clipped to the image; missing boxes are taken from the mask. Crowd regions
    are kept and flagged.

    Args:
        annotations: the JSON file.
        images: folder of the image files; None if only masks are needed.

    Raises:
        FileNotFoundError: if the file or the folder does not exist.
        AnnotationError: if the file is not valid: not JSON, missing keys or image files, duplicate
            ids, or most annotations of unknown images or categories. The message lists all faults.
    """
    path = Path(annotations)
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"The image folder {folder} does not exist.")
    document = load_document(path, folder)
    categories = sorted(document["categories"], key=lambda category: int(category["id"]))
    records = tuple(_record(entry, folder) for entry in document["images"])
    category_ids = tuple(category["id"] for category in categories)
    reader = BatchReader(image_sizes(document), category_ids)
    batch = reader.read(document["annotations"])
    instances, fields = _by_image(batch, len(records))
    return CocoData(
        path,
        records,
        instances,
        fields,
        tuple(category["name"] for category in categories),
        category_ids,
        report_of(reader),
    )


def report_of(reader: BatchReader) -> Report:
    """Instances that a reader has dropped or repaired so far."""
    return Report(_findings(reader.dropped), _findings(reader.repaired))


def _record(entry: Mapping[str, Any], folder: Path | None) -> ImageRecord:
    path = None if folder is None else folder / entry["file_name"]
    return ImageRecord(entry["id"], path, entry["width"], entry["height"])


def _findings(tally: Tally) -> tuple[Finding, ...]:
    return tuple(
        Finding(reason, len(ids), tuple(ids[:EXAMPLES])) for reason, ids in tally.ids.items()
    )


def _by_image(
    batch: InstanceBatch, images: int
) -> tuple[tuple[Instances, ...], tuple[AnnotationFields, ...]]:
    """Group instances by image, in the order of their annotations."""
    parts = np.split(batch.coordinates, batch.part_starts[1:-1])
    starts = batch.instance_starts.tolist()
    shapes: list[Shape] = [tuple(parts[a:b]) for a, b in pairwise(starts)]
    for row, bitmap in batch.bitmaps.items():
        shapes[row] = bitmap
    order = np.argsort(batch.images, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(batch.images, minlength=images))[:-1])
    instances = tuple(
        Instances(
            batch.boxes[rows],
            batch.labels[rows],
            tuple(shapes[row] for row in rows),
            batch.crowd[rows],
        )
        for rows in groups
    )
    fields = tuple(
        AnnotationFields(batch.ids[rows], batch.file_boxes[rows], batch.file_areas[rows])
        for rows in groups
    )
    return instances, fields
