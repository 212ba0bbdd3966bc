"""Open a data set of any layout, and divide it where it has no validation part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from meinst.data.coco import CocoData, Report
from meinst.data.datasets.layouts import find_layout
from meinst.data.datasets.parts import TEST, TRAIN, VAL, WHOLE, DatasetError, Part, ReadOptions
from meinst.options import first_few


@dataclass(frozen=True)
class Dataset:
    """A data set that was found but not read.

    Attributes:
        path: the folder or file that was given.
        layout: name of its layout.
        parts: its parts by name: ``train``, ``val`` and ``test``, or ``all`` if it is not divided.
    """

    path: Path
    layout: str
    parts: Mapping[str, Part]

    def __str__(self) -> str:
        """The layout and the parts, in one line."""
        parts = ", ".join(f"{name} ({part.source})" for name, part in self.parts.items())
        return f"{self.path}: {self.layout}, parts: {parts}"

    def read(
        self,
        part: str,
        *,
        crowd_as_instances: bool = False,
        allow_outside: bool = False,
        boxes_alone: bool = False,
    ) -> CocoData:
        """Read and check a part.

        Args:
            part: its name.
            crowd_as_instances: read crowd regions as ordinary instances.
            allow_outside: allow file names that lead out of the image folder.
            boxes_alone: read objects with a box and no mask, too.

        Raises:
            DatasetError: if there is no such part, or its labels are not valid.
            AnnotationError: if an annotation file is not valid.
        """
        if part not in self.parts:
            raise DatasetError(
                f"{self.path} has no part {part}; it has {first_few(list(self.parts))}."
            )
        options = ReadOptions(crowd_as_instances, allow_outside, boxes_alone)
        return self.parts[part].read(options)

    def training_part(self) -> str:
        """The part to train on: ``train``, or the only part.

        Raises:
            DatasetError: if there is neither.
        """
        for name in (TRAIN, WHOLE):
            if name in self.parts:
                return name
        raise DatasetError(
            f"{self.path} has no part to train on, only {first_few(list(self.parts))}; name one "
            f"{TRAIN}."
        )

    def evaluation_part(self) -> str:
        """The part that models are measured on: validation, else test, else the only part.

        Raises:
            DatasetError: if there is only a training part.
        """
        for name in (VAL, TEST):
            if name in self.parts:
                return name
        (only, *others) = self.parts
        if only == TRAIN or others:
            raise DatasetError(
                f"{self.path} has only the part train; give --part train to measure on it."
            )
        return only


def check_same_classes(train: CocoData, val: CocoData) -> None:
    """Reject parts that do not fit together.

    Raises:
        DatasetError: if their classes have different names, or a class has objects in the
            validation part but none in the training part.
    """
    train_names, val_names = set(train.class_names), set(val.class_names)
    if train_names != val_names:
        raise DatasetError(
            f"{val.annotations}: its classes ({first_few(list(val.class_names))}) are not those of "
            f"{train.annotations} ({first_few(list(train.class_names))}); only one of them has "
            f"{first_few(sorted(train_names ^ val_names))}. Give both parts the same classes."
        )
    known, measured = (
        {part.class_names[i] for each in part.instances for i in each.labels[~each.crowd]}
        for part in (train, val)
    )
    if measured - known:
        raise DatasetError(
            f"{train.annotations}: no objects of {first_few(sorted(measured - known))}, which the "
            f"validation part {val.annotations} has; add images of them to the training part."
        )


def join(parts: Sequence[CocoData]) -> CocoData:
    """Join parts of a data set to one; images are numbered anew.

    Raises:
        DatasetError: if their classes differ.
    """
    first, *others = parts
    for other in others:
        if other.class_names != first.class_names:
            raise DatasetError(
                f"{other.annotations}: its classes are not those of {first.annotations}, or in "
                "another order; give both the same classes."
            )
    if not others:
        return first
    report = Report(
        *(
            tuple(finding for part in parts for finding in getattr(part.report, kind))
            for kind in ("dropped", "repaired", "noted")
        )
    )
    return replace(
        first,
        images=tuple(
            replace(record, id=number)
            for number, record in enumerate((r for part in parts for r in part.images), 1)
        ),
        instances=tuple(each for part in parts for each in part.instances),
        fields=tuple(each for part in parts for each in part.fields),
        report=report,
    )


def open_dataset(path: str | Path) -> Dataset:
    """Find out the layout of a data set; nothing is read yet.

    Args:
        path: a folder, a YOLO description (``data.yaml``) or a COCO annotation file. Layouts are
            COCO JSON (also of LVIS, Roboflow, CVAT and Label Studio), COCO panoptic, YOLO
            segmentation, labelme, Pascal VOC, SBD, and label images as of Cellpose and StarDist.

    Raises:
        FileNotFoundError: if the path does not exist.
        DatasetError: if it has none of the layouts, or several at once.
    """
    layout, found = find_layout(Path(path))
    return Dataset(Path(path), layout, found.parts)
