"""Build checked arrays from the labels of single images, some hundred images at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from meinst.data.annotations.arrays import MISSING_BOX
from meinst.data.annotations.coco_file import EXAMPLES, MAX_PIXELS
from meinst.data.annotations.instance_batch import FROM_MASK, BatchReader, Tally
from meinst.data.coco import (
    AnnotationFields,
    CocoData,
    Finding,
    ImageRecord,
    Report,
    by_image,
    repetitions,
)
from meinst.data.datasets.parts import DatasetError, ReadOptions
from meinst.data.shapes import Instances

_CHUNK = 500  # images


@dataclass(frozen=True)
class LabelledImage:
    """An image and its labels as they are in the file.

    Attributes:
        path: the image.
        width: of the image, in pixels.
        height: of the image, in pixels.
        labels: class of each object, as an index into the class names.
        masks: mask of each object, in one of the forms of COCO's ``segmentation``; None without.
        label_file: name of the file that holds the labels, for messages.
        crowd: which objects are crowd regions; empty if none.
        notes: what is unusual in the label file.
        boxes: ``x y width height`` of each object that has no mask, in pixels, else None; empty if
            the layout has no boxes.
    """

    path: Path
    width: int
    height: int
    labels: Sequence[int]
    masks: Sequence[Any]
    label_file: str
    crowd: Sequence[bool] = ()
    notes: Iterable[str] = ()
    boxes: Sequence[Sequence[float] | None] = ()


def assemble(
    images: Iterable[LabelledImage],
    class_names: Sequence[str],
    source: Path,
    options: ReadOptions,
) -> CocoData:
    """Check the labels of all images, and convert them to the arrays that COCO's reader builds.

    Args:
        images: the images, in order; read once.
        class_names: names of the classes, in the order of the labels.
        source: what messages name as the file: an annotation file or folder.
        options: how annotations are read.

    Raises:
        DatasetError: if there are no images or classes, or classes share a name.
    """
    _check_names(class_names, source)
    builder = _Builder(len(class_names), options)
    stream = iter(images)
    while chunk := list(islice(stream, _CHUNK)):
        builder.add(chunk)
    if not builder.records:
        raise DatasetError(f"{source} has no images; put images there, or give another folder.")
    data = CocoData(
        source,
        tuple(builder.records),
        tuple(builder.instances),
        tuple(builder.fields),
        tuple(class_names),
        tuple(range(1, len(class_names) + 1)),
        builder.report(),
    )
    repeated = repetitions(data.images, data.instances, data.fields, builder.locate)
    return replace(data, report=replace(data.report, noted=data.report.noted + repeated))


def _check_names(class_names: Sequence[str], source: Path) -> None:
    repeated = [name for name, count in Counter(class_names).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{source}: the class name {repeated[0]!r} is given twice; names must be unique."
        )
    if not class_names:
        raise DatasetError(f"{source}: there are no labels, and so no classes; label some objects.")


class _Builder:
    def __init__(self, classes: int, options: ReadOptions) -> None:
        self.records: list[ImageRecord] = []
        self.instances: list[Instances] = []
        self.fields: list[AnnotationFields] = []
        self._classes = classes
        self._options = options
        self._label_files: list[str] = []
        self._starts: list[int] = []  # id of the first object of each image
        self._next = 1
        self._tallies = Tally(), Tally(), Tally()
        self._notes: dict[str, tuple[int, list[str]]] = {}

    def add(self, chunk: Sequence[LabelledImage]) -> None:
        """Add some images."""
        first = len(self.records) + 1
        sizes = {first + i: (image.height, image.width) for i, image in enumerate(chunk)}
        reader = BatchReader(
            sizes,
            range(1, self._classes + 1),
            crowd_as_instances=self._options.crowd_as_instances,
            boxes_alone=self._options.boxes_alone,
        )
        entries = [
            entry
            for number, image in enumerate(chunk, first)
            for entry in self._entries(image, number)
        ]
        batch = reader.read(entries)
        instances, fields = by_image([batch], len(chunk))
        self.instances += instances
        self.fields += fields
        reader.repaired.ids.pop(MISSING_BOX + FROM_MASK, None)  # these layouts have no boxes
        for total, found in zip(
            self._tallies, (reader.dropped, reader.repaired, reader.noted), strict=True
        ):
            for reason, ids in found.ids.items():
                total.ids.setdefault(reason, []).extend(ids)

    def _entries(self, image: LabelledImage, number: int) -> Iterator[dict[str, Any]]:
        if image.width * image.height > MAX_PIXELS:
            raise DatasetError(
                f"{image.path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS}; "
                "cut the image into tiles."
            )
        self.records.append(ImageRecord(number, image.path, image.width, image.height))
        self._label_files.append(image.label_file)
        self._starts.append(self._next)
        for note in dict.fromkeys(image.notes):
            count, examples = self._notes.get(note, (0, []))
            self._notes[note] = count + 1, [*examples, image.label_file][:EXAMPLES]
        crowd = image.crowd or [False] * len(image.labels)
        boxes = image.boxes or [None] * len(image.labels)
        rows = zip(image.labels, image.masks, crowd, boxes, strict=True)
        for label, mask, is_crowd, box in rows:
            yield {
                "id": self._next,
                "image_id": number,
                "category_id": label + 1,
                "segmentation": mask,
                "bbox": box,
                "iscrowd": int(is_crowd),
            }
            self._next += 1

    def locate(self, number: int) -> str:
        """The label file of an object, and its position there, counted from 1."""
        image = bisect_right(self._starts, number) - 1
        return f"{self._label_files[image]}: {number - self._starts[image] + 1}"

    def report(self) -> Report:
        """What was found, with label files in place of ids."""
        dropped, repaired, noted = (
            tuple(
                Finding(reason, len(ids), tuple(map(self.locate, ids[:EXAMPLES])), "object")
                for reason, ids in tally.ids.items()
            )
            for tally in self._tallies
        )
        further = tuple(
            Finding(note, count, tuple(examples), "file")
            for note, (count, examples) in self._notes.items()
        )
        return Report(dropped, repaired, noted + further)
