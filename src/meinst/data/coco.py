"""Annotations in COCO's JSON format: checked whole, with every fault of a file told at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from meinst.data.coco_file import EXAMPLES, image_sizes, load_document
from meinst.data.coco_file import AnnotationError as AnnotationError
from meinst.data.instance_batch import BatchReader, InstanceBatch, Tally
from meinst.data.shapes import Instances, Shape


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
    category_ids = tuple(category["id"] for category in categories)
    reader = BatchReader(image_sizes(document), category_ids)
    batch = reader.read(document["annotations"])
    return CocoData(
        path,
        records,
        _by_image(batch, len(records)),
        tuple(category["name"] for category in categories),
        category_ids,
        report_of(reader),
    )


def report_of(reader: BatchReader) -> Report:
    """What a reader has left out and put right so far."""
    return Report(
        _findings(reader.dropped),
        _findings(reader.repaired),
        frozenset(chain.from_iterable(reader.dropped.ids.values())),
    )


def _findings(tally: Tally) -> tuple[Finding, ...]:
    return tuple(
        Finding(reason, len(ids), tuple(ids[:EXAMPLES])) for reason, ids in tally.ids.items()
    )


def _by_image(batch: InstanceBatch, images: int) -> tuple[Instances, ...]:
    """The instances of each image, in the order of their annotations."""
    parts = np.split(batch.coordinates, batch.part_starts[1:-1])
    starts = batch.instance_starts.tolist()
    shapes: list[Shape] = [tuple(parts[a:b]) for a, b in pairwise(starts)]
    for row, bitmap in batch.bitmaps.items():
        shapes[row] = bitmap
    order = np.argsort(batch.images, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(batch.images, minlength=images))[:-1])
    return tuple(
        Instances(
            batch.boxes[rows],
            batch.labels[rows],
            tuple(shapes[row] for row in rows),
            batch.crowd[rows],
        )
        for rows in groups
    )
