"""Annotations in COCO's JSON format; all faults of a file are reported at once.

Masks decide where a file contradicts itself. Boxes that are missing, faulty or apart from their
mask are taken from it, and all boxes of a file whose boxes are in another format than COCO's. Other
boxes are clipped to the image. Areas that contradict the mask are left to be computed from it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.annotations.coco_file import EXAMPLES, load_document
from meinst.data.annotations.coco_file import AnnotationError as AnnotationError
from meinst.data.annotations.instance_batch import BatchReader, InstanceBatch, Tally
from meinst.data.shapes import Bitmap, Instances, Shape
from meinst.files import is_folder
from meinst.options import printable

_BATCH = 20_000  # annotations that are converted at once


@dataclass(frozen=True)
class ImageRecord:
    """An image of an annotation file; ``path`` is None if no image folder was given."""

    id: int
    path: Path | None
    width: int
    height: int


@dataclass(frozen=True)
class Finding:
    """A problem of ``count`` annotations or files; ``examples`` are the first few ids or names."""

    reason: str
    count: int
    examples: tuple[int | str, ...]
    noun: str = "annotation"

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        ids = ", ".join(printable(str(example)) for example in self.examples)
        return f"{self.count} x {self.reason} ({self.noun} {ids}{more})"


@dataclass(frozen=True)
class Report:
    """What was found while reading.

    Attributes:
        dropped: instances that are not used.
        repaired: instances that were changed.
        noted: what is used as it is, but is unusual.
    """

    dropped: tuple[Finding, ...] = ()
    repaired: tuple[Finding, ...] = ()
    noted: tuple[Finding, ...] = ()

    def __str__(self) -> str:
        lines = [f"dropped: {finding}" for finding in self.dropped]
        lines += [f"repaired: {finding}" for finding in self.repaired]
        lines += [f"note: {finding}" for finding in self.noted]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class AnnotationFields:
    """Fields of one image's annotations that only evaluation needs.

    Attributes:
        ids: ``(G,)`` int64, annotation ids.
        boxes: ``(G, 4)`` float64, ``x y width height`` in pixels; NaN where unusable.
        areas: ``(G,)`` float64, square pixels; NaN where missing or contradicting the mask.
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

    def select(self, index: Sequence[int]) -> CocoData:
        """Some of the images, by index, in the given order; the report stays that of all."""
        return replace(
            self,
            images=tuple(self.images[i] for i in index),
            instances=tuple(self.instances[i] for i in index),
            fields=tuple(self.fields[i] for i in index),
        )


def read_coco(
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    crowd_as_instances: bool = False,
    boxes_alone: bool = False,
    allow_outside: bool = False,
) -> CocoData:
    """Read and check a COCO annotation file.

    Masks may be polygons, compressed RLE (a string) or uncompressed RLE (a list). Polygons that are
    not nested, lists of points, and run lengths in the place of polygons are recognised. Instances
    are dropped and reported if their mask is faulty, of no area or outside the image, or their
    image or category is unknown. Faulty boxes are taken from the masks.

    Args:
        annotations: the JSON file.
        images: folder of the image files; None if only masks are needed.
        crowd_as_instances: read crowd regions as ordinary instances, not flagged; some tools mark
            every mask that was drawn with a brush as a crowd.
        boxes_alone: read objects with a box and no mask, too: they train class and box, and are
            not measured as masks. Their shapes are ``()``.
        allow_outside: allow file names that lead out of the folder.

    Raises:
        FileNotFoundError: if the file or the folder does not exist.
        AnnotationError: if the file is not valid; the message lists all faults.
    """
    path = Path(annotations)
    folder = None if images is None else Path(images)
    if folder is not None and not is_folder(folder):
        raise FileNotFoundError(f"The image folder {folder} does not exist.")
    document = load_document(path, folder, allow_outside=allow_outside)
    return read_document(
        document, path, folder, crowd_as_instances=crowd_as_instances, boxes_alone=boxes_alone
    )


def read_document(
    document: Mapping[str, Any],
    path: Path,
    folder: Path | None,
    *,
    crowd_as_instances: bool = False,
    boxes_alone: bool = False,
) -> CocoData:
    """Convert a document that :func:`load_document` has read and checked.

    Args:
        document: the document.
        path: its file.
        folder: folder of the images; None if only masks are needed.
        crowd_as_instances: read crowd regions as ordinary instances.
        boxes_alone: read objects with a box and no mask.
    """
    categories = sorted(document["categories"], key=lambda category: int(category["id"]))
    records = tuple(_record(entry, folder) for entry in document["images"])
    reader = BatchReader.for_document(
        document, crowd_as_instances=crowd_as_instances, boxes_alone=boxes_alone
    )
    entries = document["annotations"]
    starts = range(0, max(len(entries), 1), _BATCH)  # at least one batch, perhaps empty
    batches = [reader.read(entries[start : start + _BATCH]) for start in starts]
    instances, fields = by_image(batches, len(records))
    report = report_of(reader)
    return CocoData(
        path,
        records,
        instances,
        fields,
        tuple(category["name"] for category in categories),
        tuple(category["id"] for category in categories),
        replace(report, noted=report.noted + repetitions(records, instances, fields)),
    )


def report_of(reader: BatchReader) -> Report:
    """What a reader has found so far."""
    return Report(*map(_findings, (reader.dropped, reader.repaired, reader.noted)))


def repetitions(
    records: Sequence[ImageRecord],
    instances: Sequence[Instances],
    fields: Sequence[AnnotationFields],
    locate: Callable[[int], int | str] = int,
) -> tuple[Finding, ...]:
    """Image files under several ids, and annotations that repeat another one of their image.

    Args:
        records: the images.
        instances: of each image.
        fields: of each image.
        locate: what to call an annotation in examples, by its id.
    """
    findings = []
    names = Counter(str(record.path) for record in records if record.path is not None)
    several = [name for name, count in names.items() if count > 1]
    if several:
        reason = "image file with several ids"
        findings.append(Finding(reason, len(several), tuple(several[:EXAMPLES]), "file"))
    repeated = _repeated_annotations(instances, fields)
    if repeated:
        reason = "duplicate annotation"
        examples = tuple(map(locate, repeated[:EXAMPLES]))
        findings.append(Finding(reason, len(repeated), examples))
    return tuple(findings)


def _repeated_annotations(
    instances: Sequence[Instances], fields: Sequence[AnnotationFields]
) -> list[int]:
    """Ids of annotations of the same image, class, box and mask as an earlier one."""
    counts = [len(each) for each in instances]
    images = np.repeat(np.arange(len(counts)), counts)
    labels = np.concatenate([each.labels for each in instances])
    keys = np.column_stack((images, labels, np.concatenate([each.boxes for each in instances])))
    order = np.lexsort(keys.T)
    equal = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)  # to the one before
    groups = np.concatenate(([0], np.cumsum(~equal)))
    starts = np.concatenate(([0], np.cumsum(counts)))
    known: set[tuple[int, bytes]] = set()
    repeated = []
    # Masks are compared only where all else is equal.
    for place in np.flatnonzero(np.append(equal, False) | np.append(False, equal)).tolist():
        row = order[place]
        image = images[row]
        local = row - starts[image]
        key = int(groups[place]), _mask_bytes(instances[image].shapes[local])
        if key in known:
            repeated.append(int(fields[image].ids[local]))
        known.add(key)
    return sorted(repeated)


def _mask_bytes(shape: Shape) -> bytes:
    if isinstance(shape, Bitmap):
        return shape.counts.tobytes()
    return b"|".join(part.tobytes() for part in shape)


def _record(entry: Mapping[str, Any], folder: Path | None) -> ImageRecord:
    path = None if folder is None else folder / entry["file_name"]
    return ImageRecord(entry["id"], path, entry["width"], entry["height"])


def _findings(tally: Tally) -> tuple[Finding, ...]:
    return tuple(
        Finding(reason, len(ids), tuple(ids[:EXAMPLES])) for reason, ids in tally.ids.items()
    )


def by_image(
    batches: Sequence[InstanceBatch], images: int
) -> tuple[tuple[Instances, ...], tuple[AnnotationFields, ...]]:
    """Group instances by image, in the order of their annotations.

    Args:
        batches: instances of some images.
        images: number of images.
    """
    shapes: list[Shape] = []
    for batch in batches:
        parts = np.split(batch.coordinates, batch.part_starts[1:-1])
        own: list[Shape] = [tuple(parts[a:b]) for a, b in pairwise(batch.instance_starts.tolist())]
        for row, bitmap in batch.bitmaps.items():
            own[row] = bitmap
        shapes += own

    def joined(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(batch, name) for batch in batches])

    of_image = joined("images")
    order = np.argsort(of_image, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(of_image, minlength=images))[:-1])
    boxes, labels, crowd = joined("boxes"), joined("labels"), joined("crowd")
    instances = tuple(
        Instances(boxes[rows], labels[rows], tuple(shapes[row] for row in rows), crowd[rows])
        for rows in groups
    )
    ids, file_boxes, areas = joined("ids"), joined("file_boxes"), joined("file_areas")
    fields = tuple(AnnotationFields(ids[rows], file_boxes[rows], areas[rows]) for rows in groups)
    return instances, fields
