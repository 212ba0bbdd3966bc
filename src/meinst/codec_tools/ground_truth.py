"""Annotated masks at the resolution of their images, for comparison with decoded masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco import CocoData, ImageRecord
from meinst.data.ground_truth import image_annotations
from meinst.data.shapes import Bitmap, Instances, Shape, read_counts
from meinst.ops.mask_iou import Runs, boundary_distance, boundary_runs, mask_runs, pixel_count
from meinst.options import first_few

Integers = NDArray[np.int64]

_COCO_LIMIT = 100  # detections per image that COCO's evaluation counts


@dataclass(frozen=True, eq=False)
class ImageMasks:
    """The measured instances of an image.

    Attributes:
        id: id of the image in :attr:`CodecGroundTruth.document`.
        height: in pixels.
        width: in pixels.
        instances: boxes and shapes; labels index :attr:`CodecGroundTruth.class_names`.
        masks: the masks as runs of the image's pixels; see :mod:`meinst.ops.mask_iou`.
        boundaries: the boundaries of the masks, in the same format.
    """

    id: int
    height: int
    width: int
    instances: Instances
    masks: tuple[Runs, ...]
    boundaries: tuple[Runs, ...]

    @property
    def areas(self) -> list[int]:
        """Number of pixels of each mask."""
        return [pixel_count(mask) for mask in self.masks]


@dataclass(frozen=True, eq=False)
class CodecGroundTruth:
    """The ``N`` instances of one or more annotation files that codecs are measured on.

    Arrays list the measured instances file by file and image by image.

    Attributes:
        data: the annotation files.
        class_names: names of the measured categories; equal names of several files are merged.
        unknown_categories: names of the other categories.
        document: content of a COCO annotation file with the images and annotations of all files,
            without unknown categories. Ids are unique; category ids are labels plus 1.
        max_instances: largest number of instances in an image, and at least COCO's limit of 100.
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

    def images(self) -> Iterator[ImageMasks]:
        """Trace the masks of one image after the other, skipping images without instances."""
        ids = (image["id"] for image in self.document["images"])
        for data in self.data:
            labels = _new_labels(data, self.class_names)
            for record, instances in zip(data.images, data.instances, strict=True):
                image_id = next(ids)
                measured = _measured(instances, labels)
                if len(measured):
                    yield _trace(image_id, record, measured)


def join_ground_truth(
    data: Sequence[CocoData], known_names: Sequence[str] | None = None
) -> CodecGroundTruth:
    """Join annotation files for measuring codecs.

    Args:
        data: the files. Crowds are part of the document but are not measured.
        known_names: names of the categories to measure; all if None.

    Raises:
        ValueError: if there are no instances to measure.
    """
    names = tuple(dict.fromkeys(chain.from_iterable(file.class_names for file in data)))
    known = names if known_names is None else tuple(n for n in names if n in set(known_names))
    document = _empty_document(known)
    files, image_ids, annotation_ids, labels = [], [], [], []
    max_instances = _COCO_LIMIT
    next_id = None
    for index, file in enumerate(data):
        new_labels = _new_labels(file, known)
        # Keep the ids of the first file, since image ids decide between equal scores.
        shift = 0 if next_id is None else next_id - min(record.id for record in file.images)
        next_id = shift + max(record.id for record in file.images) + 1
        ids_of_image = _add_entries(document, file, known, shift)
        for record, instances in zip(file.images, file.instances, strict=True):
            chosen = _measured_indices(instances, new_labels)
            ids = np.array(ids_of_image.get(record.id, ()), dtype=np.int64)[chosen]
            files.append(np.full(len(ids), index))
            image_ids.append(np.full(len(ids), record.id))
            annotation_ids.append(ids)
            labels.append(new_labels[instances.labels[chosen]])
            max_instances = max(max_instances, len(ids))
    truth = CodecGroundTruth(
        data=tuple(data),
        class_names=known,
        unknown_categories=tuple(name for name in names if name not in known),
        document=document,
        max_instances=max_instances,
        files=_concatenate(files),
        image_ids=_concatenate(image_ids),
        annotation_ids=_concatenate(annotation_ids),
        labels=_concatenate(labels),
    )
    _check_not_empty(truth, known_names)
    return truth


def _empty_document(class_names: Sequence[str]) -> dict[str, Any]:
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(class_names)]
    return {"images": [], "annotations": [], "categories": categories}


def _add_entries(
    document: dict[str, Any], data: CocoData, known: Sequence[str], shift: int
) -> dict[int, list[int]]:
    """Add a file to the document.

    Returns:
        The annotation ids of each image, by image id, in the order of its instances.
    """
    names = dict(zip(data.category_ids, data.class_names, strict=True))
    new_ids = {name: label + 1 for label, name in enumerate(known)}
    document["images"] += [
        {"id": record.id + shift, "height": record.height, "width": record.width}
        for record in data.images
    ]
    ids_of_image: dict[int, list[int]] = {}
    for index, record in enumerate(data.images):
        ids_of_image[record.id] = data.fields[index].ids.tolist()
        for entry in image_annotations(data, index):
            name = names[entry["category_id"]]
            if name in new_ids:
                document["annotations"].append(
                    entry
                    | {
                        "id": len(document["annotations"]) + 1,
                        "image_id": record.id + shift,
                        "category_id": new_ids[name],
                    }
                )
    return ids_of_image


def _new_labels(data: CocoData, class_names: Sequence[str]) -> Integers:
    """The new label of each class of a file, -1 for classes that are not measured."""
    labels = {name: label for label, name in enumerate(class_names)}
    return np.array([labels.get(name, -1) for name in data.class_names], dtype=np.int64)


def _measured_indices(instances: Instances, new_labels: Integers) -> Integers:
    return np.flatnonzero(~instances.crowd & (new_labels[instances.labels] >= 0))


def _measured(instances: Instances, new_labels: Integers) -> Instances:
    chosen = instances.select(_measured_indices(instances, new_labels))
    return Instances(chosen.boxes, new_labels[chosen.labels], chosen.shapes, chosen.crowd)


def _concatenate(arrays: Sequence[Integers]) -> Integers:
    return np.concatenate([np.zeros(0, dtype=np.int64), *arrays])


def _check_not_empty(truth: CodecGroundTruth, known_names: Sequence[str] | None) -> None:
    if len(truth):
        return
    files = ", ".join(str(file.annotations) for file in truth.data) or "no annotation file"
    if known_names is not None and not truth.class_names:
        raise ValueError(
            f"{files}: none of the categories ({first_few(truth.unknown_categories)}) is a class "
            f"of the codec ({first_few(known_names)}); use annotations with the codec's class "
            "names."
        )
    raise ValueError(
        f"{files}: no instances to measure the codec on (faulty annotations and crowds do not "
        "count); use annotations with masks."
    )


def _trace(image_id: int, record: ImageRecord, instances: Instances) -> ImageMasks:
    height, width = record.height, record.width
    masks = tuple(shape_runs(shape, height, width) for shape in instances.shapes)
    distance = boundary_distance(height, width)
    return ImageMasks(
        id=image_id,
        height=height,
        width=width,
        instances=instances,
        masks=masks,
        boundaries=tuple(boundary_runs(mask, height, distance) for mask in masks),
    )


def shape_runs(shape: Shape, height: int, width: int) -> Runs:
    """Rasterise a mask at the size of its image, by COCO's rule; the union of all polygons.

    Returns:
        ``(R, 2)`` runs; see :mod:`meinst.ops.mask_iou`.
    """
    if isinstance(shape, Bitmap):
        counts = shape.counts.astype(np.int64)
        counts[0] += shape.box[0] * height  # the bitmap starts at its first column
        return mask_runs(counts)
    from pycocotools import mask as coco_mask

    parts = coco_mask.frPyObjects(list(shape), height, width)
    return mask_runs(read_counts(coco_mask.merge(parts)["counts"].decode()))
