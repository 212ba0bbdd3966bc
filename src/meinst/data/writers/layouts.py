"""One writer for each layout: COCO JSON, YOLO, labelme and label images."""

from __future__ import annotations

import base64
import io
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from typing_extensions import override

from meinst.data.coco import CocoData
from meinst.data.shapes import Bitmap, Instances, Shape
from meinst.data.writers.masks import coco_segmentation, joined_outline, outlines, pixels

CROWDS = "crowd regions"


class Writer(ABC):
    """Writes the labels of a data set, image by image.

    Args:
        root: folder of the data set, which exists.
        class_names: names of the classes, in the order of the labels.

    Attributes:
        lost: what the layout cannot represent, with the number of objects.
    """

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        self.root = root
        self.class_names = tuple(class_names)
        self.lost: Counter[str] = Counter()

    @abstractmethod
    def image_folder(self, part: str) -> Path:
        """Where the images of a part belong."""

    @abstractmethod
    def add(self, part: str, name: str, data: CocoData, index: int) -> None:
        """Write the labels of image ``index``, whose file is written as ``name``."""

    def finish(self, parts: Sequence[str]) -> None:  # noqa: B027  (not all layouts have such)
        """Write what describes the data set as a whole."""

    def without_crowds(self, instances: Instances) -> Instances:
        """The instances that are not crowds; the others count as lost."""
        if not instances.crowd.any():
            return instances
        self.lost[CROWDS] += int(instances.crowd.sum())
        return instances.select(np.flatnonzero(~instances.crowd))


class COCOWriter(Writer):
    """``train/_annotations.coco.json`` beside the images, as Roboflow writes it. Loses nothing."""

    def __init__(self, root: Path, class_names: Sequence[str]) -> None:
        super().__init__(root, class_names)
        self._images: dict[str, list[dict[str, Any]]] = {}
        self._annotations: dict[str, list[dict[str, Any]]] = {}

    @override
    def image_folder(self, part: str) -> Path:
        return self.root / part

    @override
    def add(self, part: str, name: str, data: CocoData, index: int) -> None:
        record, instances = data.images[index], data.instances[index]
        fields = data.fields[index]
        images = self._images.setdefault(part, [])
        annotations = self._annotations.setdefault(part, [])
        number = len(images) + 1
        images.append(
            {"id": number, "file_name": name, "width": record.width, "height": record.height}
        )
        corners = np.concatenate(
            (instances.boxes[:, :2], instances.boxes[:, 2:] - instances.boxes[:, :2]), axis=1
        )
        boxes = np.where(np.isnan(fields.boxes), corners, fields.boxes).tolist()
        for i, (shape, box, area) in enumerate(
            zip(instances.shapes, boxes, fields.areas.tolist(), strict=True)
        ):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": int(instances.labels[i]) + 1,
                "segmentation": coco_segmentation(shape),
                "bbox": box,
                "iscrowd": int(instances.crowd[i]),
            }
            annotations.append(annotation if np.isnan(area) else {**annotation, "area": area})

    @override
    def finish(self, parts: Sequence[str]) -> None:
        categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, 1)]
        for part in parts:
            content = {
                "images": self._images.get(part, []),
                "annotations": self._annotations.get(part, []),
                "categories": categories,
            }
            with (self.image_folder(part) / "_annotations.coco.json").open("w") as file:
                json.dump(content, file)


class YOLOWriter(Writer):
    """``images/train``, ``labels/train`` and ``data.yaml``, as Ultralytics expects them."""

    @override
    def image_folder(self, part: str) -> Path:
        return self.root / "images" / part

    @override
    def add(self, part: str, name: str, data: CocoData, index: int) -> None:
        record, instances = data.images[index], self.without_crowds(data.instances[index])
        lines = [
            yolo_line(label, shape, record.width, record.height)
            for label, shape in zip(instances.labels.tolist(), instances.shapes, strict=True)
        ]
        path = (self.root / "labels" / part / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))

    @override
    def finish(self, parts: Sequence[str]) -> None:
        content: dict[str, str] = {part: f"images/{part}" for part in parts}
        if "train" not in content:  # Ultralytics needs one
            content["train"] = f"images/{parts[0]}"
        text = yolo_description(content, self.class_names)
        (self.root / "data.yaml").write_text(text, encoding="utf-8")


class LabelmeWriter(Writer):
    """``train/x.json`` beside ``train/x.png``; shapes with the same ``group_id`` are one object."""

    @override
    def image_folder(self, part: str) -> Path:
        return self.root / part

    @override
    def add(self, part: str, name: str, data: CocoData, index: int) -> None:
        record, instances = data.images[index], self.without_crowds(data.instances[index])
        shapes = [
            each
            for number, (label, shape) in enumerate(
                zip(instances.labels.tolist(), instances.shapes, strict=True), 1
            )
            for each in labelme_shapes(self.class_names[label], shape, number)
        ]
        content = labelme_content(shapes, name, record.width, record.height)
        path = (self.image_folder(part) / name).with_suffix(".json")
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


class LabelImageWriter(Writer):
    """``train/images`` and ``train/masks``, with the number of its object in every pixel."""

    @override
    def image_folder(self, part: str) -> Path:
        return self.root / part / "images"

    @override
    def add(self, part: str, name: str, data: CocoData, index: int) -> None:
        record, instances = data.images[index], self.without_crowds(data.instances[index])
        if len(self.class_names) > 1:
            self.lost[f"classes: all of {len(self.class_names)} become one"] += len(instances)
        polygons = sum(not isinstance(shape, Bitmap) for shape in instances.shapes)
        self.lost["outlines between pixels: polygons are rounded to pixels"] += polygons
        large = len(instances) > np.iinfo(np.uint16).max
        values = np.zeros((record.height, record.width), np.uint32 if large else np.uint16)
        overlaps = 0
        for number, shape in enumerate(instances.shapes, 1):
            mask = pixels(shape, record.height, record.width)
            overlaps += bool(values[mask].any())
            values[mask] = number
        self.lost["overlaps: a pixel belongs to the last of its objects"] += overlaps
        hidden = len(instances) - len(np.unique(values[values > 0]))
        self.lost["objects without a pixel of their own"] += hidden
        path = (self.root / part / "masks" / name).with_suffix(".tif" if large else ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if large:
            import tifffile

            tifffile.imwrite(path, values, compression="zlib")
        else:
            Image.fromarray(values).save(path)


def yolo_line(label: int, shape: Shape, width: int, height: int) -> str:
    """The line of an object: its class, and its outline divided by the image's sides."""
    points = np.array(joined_outline(shape)).reshape(-1, 2) / np.array([width, height])
    return f"{label} {' '.join(map(repr, points.ravel().tolist()))}\n"


def yolo_description(parts: Mapping[str, str], class_names: Sequence[str]) -> str:
    """The content of ``data.yaml``.

    Args:
        parts: the folder of images of each part.
        class_names: names of the classes.
    """
    content = {**parts, "names": dict(enumerate(class_names))}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return text


def labelme_shapes(
    name: str, shape: Shape, number: int, description: str | None = None
) -> list[dict[str, Any]]:
    """The shapes of an object in labelme's files: a mask, or a polygon for each part.

    Args:
        name: its class.
        shape: its mask.
        number: what its parts have in common.
        description: a text that labelme shows with it.
    """
    common: dict[str, Any] = {"label": name, "flags": {}, "group_id": None}
    if description is not None:
        common["description"] = description
    if isinstance(shape, Bitmap):
        x1, y1, x2, y2 = shape.box
        # labelme's second point is the last pixel.
        corners = [[x1, y1], [x2 - 1, y2 - 1]]
        mask = {"shape_type": "mask", "points": corners, "mask": _png(shape.array() * 255)}
        return [{**common, **mask}]
    parts = outlines(shape)
    group = number if len(parts) > 1 else None
    shapes = []
    for outline in parts:
        points = np.array(outline).reshape(-1, 2).tolist()
        polygon = {"shape_type": "polygon", "points": points, "group_id": group}
        shapes.append({**common, **polygon})
    return shapes


def labelme_content(
    shapes: Sequence[dict[str, Any]], image: str, width: int, height: int
) -> dict[str, Any]:
    """The content of a labelme file.

    Args:
        shapes: the shapes.
        image: path of the image from the file's folder.
        width: of the image, in pixels.
        height: of the image, in pixels.
    """
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _png(values: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")
