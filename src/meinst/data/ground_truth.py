"""Ground truth for COCO evaluation, and matching of classes by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from meinst.data.coco import CocoData
from meinst.data.shapes import Bitmap, Instances, Shape
from meinst.options import first_few


@dataclass(frozen=True)
class ClassMatch:
    """Correspondence between a model's classes and an annotation file's categories, by name.

    Attributes:
        category_ids: id of the category of each class of the model, or None.
        only_model: classes without a category; their detections are ignored.
        only_data: categories without a class; their objects are ignored.
    """

    category_ids: tuple[int | None, ...]
    only_model: tuple[str, ...]
    only_data: tuple[str, ...]

    @property
    def matched_ids(self) -> list[int]:
        """Ids of the evaluated categories."""
        return [category for category in self.category_ids if category is not None]

    @property
    def warnings(self) -> list[str]:
        """One line for unmatched categories and one for unmatched classes, if any."""
        unmatched = (
            (self.only_data, "categories that the model does not know"),
            (self.only_model, "classes of the model without a category"),
        )
        return [f"not measured: {what}: {first_few(names)}" for names, what in unmatched if names]


def match_classes(class_names: Sequence[str], data: CocoData) -> ClassMatch:
    """Match a model's classes to an annotation file's categories by name.

    Raises:
        ValueError: if no name matches.
    """
    ids = dict(zip(data.class_names, data.category_ids, strict=True))
    if not ids.keys() & set(class_names):
        raise ValueError(
            f"none of the model's classes ({first_few(class_names)}) is a category of "
            f"{data.annotations} ({first_few(data.class_names)}); use annotations with the "
            "model's class names."
        )
    return ClassMatch(
        category_ids=tuple(ids.get(name) for name in class_names),
        only_model=tuple(name for name in class_names if name not in ids),
        only_data=tuple(name for name in data.class_names if name not in class_names),
    )


def boxes_as_crowds(data: CocoData) -> CocoData:
    """Data in which objects without a mask are crowd regions that fill their boxes."""
    if all(instances.has_mask.all() for instances in data.instances):
        return data
    return replace(data, instances=tuple(map(_fill_boxes, data.instances)))


def _fill_boxes(instances: Instances) -> Instances:
    x1, y1, x2, y2 = instances.boxes.T
    corners = np.stack((x1, y1, x2, y1, x2, y2, x1, y2), axis=1)
    known = instances.has_mask
    shapes = [
        shape if has_mask else (corner,)
        for shape, has_mask, corner in zip(instances.shapes, known, corners, strict=True)
    ]
    crowd = instances.crowd | ~known
    return Instances(instances.boxes, instances.labels, tuple(shapes), crowd)


def ground_truth(data: CocoData) -> dict[str, Any]:
    """Convert the usable instances to a COCO document for :func:`coco_metrics`.

    Ids, boxes and areas are those of the file; missing boxes and areas are None.
    """
    return {
        "images": [
            {"id": record.id, "width": record.width, "height": record.height}
            for record in data.images
        ],
        "categories": [
            {"id": category, "name": name}
            for category, name in zip(data.category_ids, data.class_names, strict=True)
        ],
        "annotations": [
            entry for index in range(len(data.images)) for entry in image_annotations(data, index)
        ],
    }


def image_annotations(data: CocoData, index: int) -> Iterator[dict[str, Any]]:
    """Annotations of one image in the form of :func:`ground_truth`, in the order of the file."""
    instances, fields = data.instances[index], data.fields[index]
    rows = zip(
        fields.ids.tolist(),
        instances.labels.tolist(),
        instances.crowd.tolist(),
        instances.shapes,
        fields.boxes.tolist(),
        fields.areas.tolist(),
        strict=True,
    )
    for annotation_id, label, crowd, shape, box, area in rows:
        yield {
            "id": annotation_id,
            "image_id": data.images[index].id,
            "category_id": data.category_ids[label],
            "segmentation": segmentation(shape),
            "bbox": None if math.isnan(box[0]) else box,
            "area": None if math.isnan(area) else area,
            "iscrowd": int(crowd),
        }


def segmentation(shape: Shape) -> Any:
    """Convert a mask to COCO's format: polygons, or uncompressed RLE of the whole image."""
    if isinstance(shape, Bitmap):
        return {"size": list(shape.image_size), "counts": shape.image_counts()}
    return [part.tolist() for part in shape]
