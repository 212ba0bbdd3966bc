"""Annotated masks at the resolution of their images, ready to be compared with decoded ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco import CocoData, ImageRecord
from meinst.data.shapes import Bitmap, Instances, Shape, read_counts
from meinst.engine.evaluate import ground_truth, some_names
from meinst.ops.mask_iou import Runs, boundary_distance, boundary_runs, mask_runs, pixel_count

Integers = NDArray[np.int64]

_FEWEST_DETECTIONS = 100  # COCO's own limit


@dataclass(frozen=True, eq=False)
class TrueImage:
    """The measured instances of an image.

    Attributes:
        id: of the image in the truth's document.
        height: in pixels.
        width: in pixels.
        instances: their boxes and shapes, labels being indices into the truth's class names.
        masks: each mask as runs of the image's pixels.
        boundaries: their boundaries likewise.
    """

    id: int
    height: int
    width: int
    instances: Instances
    masks: tuple[Runs, ...]
    boundaries: tuple[Runs, ...]

    @property
    def areas(self) -> list[int]:
        """Pixels of each mask."""
        return [pixel_count(mask) for mask in self.masks]


@dataclass(frozen=True, eq=False)
class CodecTruth:
    """What codecs are measured on: the instances of some annotation files, joined.

    The arrays have an entry for each measured instance, file after file and image after image.

    Attributes:
        data: the files.
        class_names: the measured categories; those of one name are one.
        unknown_categories: the others.
        document: a COCO document of all files, without the unknown categories; ids are unique,
            and that of a category is its label and 1.
        max_instances: the most instances of one image, and at least COCO's limit of 100.
        files: ``(N,)`` indices into ``data``.
        image_ids: ``(N,)``, as in the instance's file.
        annotation_ids: ``(N,)``, as in the instance's file.
        labels: ``(N,)`` indices into ``class_names``.
    """

    data: tuple[CocoData, ...]
    class_names: tuple[str, ...]
    unknown_categories: tuple[str, ...]
    document: dict[str, Any]
    max_instances: int
    files: Integers
    image_ids: Integers
    annotation_ids: Integers
    labels: Integers

    def __len__(self) -> int:
        return len(self.labels)

    def images(self) -> Iterator[TrueImage]:
        """Trace the masks of one image after the other; images without instances are left out."""
        ids = (image["id"] for image in self.document["images"])
        for data in self.data:
            labels = _new_labels(data, self.class_names)
            for record, instances in zip(data.images, data.instances, strict=True):
                image_id = next(ids)
                measured = _measured(instances, labels)
                if len(measured):
                    yield _trace(image_id, record, measured)


def gather_truth(data: Sequence[CocoData], known_names: Sequence[str] | None = None) -> CodecTruth:
    """Join annotation files for measuring codecs.

    Args:
        data: the files; crowds stay in the document and are not measured.
        known_names: the categories to measure, by name; None for all.

    Raises:
        ValueError: if nothing is left to measure.
    """
    names = tuple(dict.fromkeys(chain.from_iterable(one.class_names for one in data)))
    wanted = set(names if known_names is None else known_names)
    known = tuple(name for name in names if name in wanted)
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(known)],
    }
    files, image_ids, annotation_ids, labels, most = [], [], [], [], _FEWEST_DETECTIONS
    next_id = None
    for number, one in enumerate(data):
        new_labels = _new_labels(one, known)
        # Ids of the first file stay, since ties of equal scores are broken by image ids.
        shift = 0 if next_id is None else next_id - min(record.id for record in one.images)
        next_id = shift + max(record.id for record in one.images) + 1
        of_image = _add_entries(document, one, known, shift)
        for record, instances in zip(one.images, one.instances, strict=True):
            chosen = _chosen(instances, new_labels)
            ids = np.array(of_image.get(record.id, ()), dtype=np.int64)[chosen]
            files.append(np.full(len(ids), number))
            image_ids.append(np.full(len(ids), record.id))
            annotation_ids.append(ids)
            labels.append(new_labels[instances.labels[chosen]])
            most = max(most, len(ids))
    truth = CodecTruth(
        data=tuple(data),
        class_names=known,
        unknown_categories=tuple(name for name in names if name not in known),
        document=document,
        max_instances=most,
        files=_joined(files),
        image_ids=_joined(image_ids),
        annotation_ids=_joined(annotation_ids),
        labels=_joined(labels),
    )
    _check_filled(truth, known_names)
    return truth


def _add_entries(
    document: dict[str, Any], data: CocoData, known: Sequence[str], shift: int
) -> dict[int, list[int]]:
    """Add a file to the document.

    Returns:
        For each image the ids of its annotations, in the order of its instances.
    """
    names = dict(zip(data.category_ids, data.class_names, strict=True))
    new_ids = {name: label + 1 for label, name in enumerate(known)}
    document["images"] += [
        {"id": record.id + shift, "height": record.height, "width": record.width}
        for record in data.images
    ]
    of_image: dict[int, list[int]] = {}
    for entry in ground_truth(data)["annotations"]:
        of_image.setdefault(entry["image_id"], []).append(entry["id"])
        name = names[entry["category_id"]]
        if name in new_ids:
            document["annotations"].append(
                {
                    **{key: entry.get(key) for key in ("bbox", "area", "segmentation", "iscrowd")},
                    "id": len(document["annotations"]) + 1,
                    "image_id": entry["image_id"] + shift,
                    "category_id": new_ids[name],
                }
            )
    return of_image


def _new_labels(data: CocoData, class_names: Sequence[str]) -> Integers:
    """For each class of a file its label among all, -1 for one that is not measured."""
    labels = {name: label for label, name in enumerate(class_names)}
    return np.array([labels.get(name, -1) for name in data.class_names], dtype=np.int64)


def _chosen(instances: Instances, new_labels: Integers) -> Integers:
    return np.flatnonzero(~instances.crowd & (new_labels[instances.labels] >= 0))


def _measured(instances: Instances, new_labels: Integers) -> Instances:
    chosen = instances.select(_chosen(instances, new_labels))
    return Instances(chosen.boxes, new_labels[chosen.labels], chosen.shapes, chosen.crowd)


def _joined(arrays: Sequence[Integers]) -> Integers:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])


def _check_filled(truth: CodecTruth, known_names: Sequence[str] | None) -> None:
    if len(truth):
        return
    files = ", ".join(str(one.annotations) for one in truth.data) or "no annotation file"
    if known_names is not None and not truth.class_names:
        raise ValueError(
            f"{files}: none of the categories ({some_names(truth.unknown_categories)}) is a class "
            f"of this codec ({some_names(known_names)}): use annotations with these names."
        )
    raise ValueError(
        f"{files}: no instance is left to measure a codec on, which needs at least one that is "
        f"neither faulty nor a crowd: use annotations with masks."
    )


def _trace(image_id: int, record: ImageRecord, instances: Instances) -> TrueImage:
    height, width = record.height, record.width
    masks = tuple(shape_runs(shape, height, width) for shape in instances.shapes)
    distance = boundary_distance(height, width)
    return TrueImage(
        id=image_id,
        height=height,
        width=width,
        instances=instances,
        masks=masks,
        boundaries=tuple(boundary_runs(mask, height, distance) for mask in masks),
    )


def shape_runs(shape: Shape, height: int, width: int) -> Runs:
    """A mask in the pixels of its image; polygons by COCO's rule, parts merged by union.

    Returns:
        ``(R, 2)``, see :mod:`meinst.ops.mask_iou`.
    """
    if isinstance(shape, Bitmap):
        counts = shape.counts.astype(np.int64)
        counts[0] += shape.box[0] * height  # the bitmap begins at its first column
        return mask_runs(counts)
    from pycocotools import mask as coco_mask

    parts = coco_mask.frPyObjects(list(shape), height, width)
    return mask_runs(read_counts(coco_mask.merge(parts)["counts"].decode()))
