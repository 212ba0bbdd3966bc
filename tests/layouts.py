"""The same small data set, written in every layout."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import yaml
from PIL import Image

CLASSES = ("cat", "dog")
# Sides are powers of two, so that coordinates divided by them stay exact.
SIZES = {"a": (64, 128), "b": (128, 64), "c": (128, 128), "d": (64, 64)}  # height, width
PARTS = {"train": ("a", "b", "c"), "val": ("d",)}


@dataclass(frozen=True)
class Object:
    """A rectangle ``x1 y1 x2 y2`` in whole pixels, of a class; dogs lack the upper right part."""

    label: int
    box: tuple[int, int, int, int]

    @property
    def middle(self) -> tuple[int, int]:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) // 2, (y1 + y2) // 2

    @property
    def outline(self) -> list[list[float]]:
        x1, y1, x2, y2 = self.box
        x, y = self.middle
        if self.label:
            return [[x1, y1], [x, y1], [x, y], [x2, y], [x2, y2], [x1, y2]]
        return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]

    def fill(self, values: np.ndarray, value: Any) -> None:
        """Set the pixels of the object in ``(H, W)`` or ``(H, W, C)``."""
        x1, y1, x2, y2 = self.box
        x, y = self.middle
        values[y if self.label else y1 : y2, x1:x2] = value
        values[y1:y2, x1 : x if self.label else x2] = value

    @property
    def area(self) -> int:
        x1, y1, x2, y2 = self.box
        x, y = self.middle
        return (x2 - x1) * (y2 - y1) - self.label * (x2 - x) * (y - y1)

    @property
    def polygon(self) -> list[float]:
        return [value for point in self.outline for value in point]


def objects(name: str) -> list[Object]:
    """The objects of a picture: they do not touch, and every picture has both classes but d."""
    height, width = SIZES[name]
    half = width // 2
    return [
        Object(0, (4, 6, half - 7, height // 2)),
        Object(1, (half + 3, 8, width - 5, height - 9)),
        Object(0, (5, height // 2 + 4, half - 2, height - 3)),
    ]


def draw(name: str) -> Image.Image:
    """A noisy picture with its objects in flat colours."""
    height, width = SIZES[name]
    pixels = np.random.default_rng(ord(name)).integers(0, 99, (height, width, 3), np.uint8)
    for thing in objects(name):
        thing.fill(pixels, (200, 40, 40) if thing.label else (40, 200, 90))
    return Image.fromarray(pixels)


def numbered(name: str, values: list[int]) -> np.ndarray:
    """``(H, W)`` with a value for each object."""
    labels = np.zeros(SIZES[name], dtype=np.int64)
    for thing, value in zip(objects(name), values, strict=True):
        thing.fill(labels, value)
    return labels


def save_images(folder: Path, names: tuple[str, ...], suffix: str = ".png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        draw(name).save(folder / f"{name}{suffix}")


def coco(names: tuple[str, ...], file_name: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
    }
    for number, name in enumerate(names, 1):
        height, width = SIZES[name]
        content["images"].append(
            {"id": number, "width": width, "height": height, **file_name(name)}
        )
        for thing in objects(name):
            x1, y1, x2, y2 = thing.box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": thing.label + 1,
                    "segmentation": [thing.polygon],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": thing.area,
                    "iscrowd": 0,
                }
            )
    return content


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def plain_name(name: str) -> dict[str, Any]:
    return {"file_name": f"{name}.png"}


def write_coco(root: Path) -> None:
    for part, names in PARTS.items():
        save_images(root / f"{part}2017", names)
        write_json(root / "annotations" / f"instances_{part}2017.json", coco(names, plain_name))
        write_json(root / "annotations" / f"captions_{part}2017.json", {"images": []})


def write_roboflow_coco(root: Path) -> None:
    for part, names in PARTS.items():
        folder = root / {"val": "valid"}.get(part, part)
        save_images(folder, names)
        write_json(folder / "_annotations.coco.json", coco(names, plain_name))


def write_lvis(root: Path) -> None:
    for part, names in PARTS.items():
        save_images(root / "images" / f"{part}2017", names)
        url = f"http://images.cocodataset.org/{part}2017"
        content = coco(names, lambda name, url=url: {"coco_url": f"{url}/{name}.png"})  # type: ignore[misc]
        write_json(root / f"lvis_v1_{part}.json", content)


def write_cvat_coco(root: Path) -> None:
    for part, names in PARTS.items():
        save_images(root / "images" / part, names)
        content = coco(names, lambda name, part=part: {"file_name": f"{part}/{name}.png"})  # type: ignore[misc]
        write_json(root / "annotations" / f"instances_{part}.json", content)


def write_label_studio_coco(root: Path) -> None:
    for part, names in PARTS.items():
        save_images(root / part / "images", names)
        content = coco(names, lambda name: {"file_name": f"..\\..\\upload\\{name}.png"})
        write_json(root / part / "result.json", content)


def _write_yolo(labels: Path, names: tuple[str, ...]) -> None:
    labels.mkdir(parents=True, exist_ok=True)
    for name in names:
        height, width = SIZES[name]
        lines = []
        for thing in objects(name):
            values = [f"{x / width!r} {y / height!r}" for x, y in thing.outline]
            lines.append(f"{thing.label} {' '.join(values)}")
        (labels / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_yolo(root: Path) -> None:
    """Ultralytics: images/train and labels/train."""
    for part, names in PARTS.items():
        save_images(root / "images" / part, names)
        _write_yolo(root / "labels" / part, names)
    content = {
        "path": "somewhere/else",
        "train": "images/train",
        "val": "images/val",
        "names": dict(enumerate(CLASSES)),
    }
    (root / "data.yaml").write_text(yaml.safe_dump(content))


def write_roboflow_yolo(root: Path) -> None:
    """Roboflow: train/images and train/labels, with paths that start at a folder beside."""
    folders = {"train": "train", "val": "valid"}
    for part, names in PARTS.items():
        save_images(root / folders[part] / "images", names)
        _write_yolo(root / folders[part] / "labels", names)
    content = {
        "train": "../train/images",
        "val": "../valid/images",
        "nc": 2,
        "names": list(CLASSES),
    }
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    (root / "README.roboflow.txt").write_text("exported")


def write_cvat_yolo(root: Path) -> None:
    """CVAT: lists of images."""
    for part, names in PARTS.items():
        save_images(root / "images" / part, names)
        _write_yolo(root / "labels" / part, names)
        lines = [f"images/{part}/{name}.png\n" for name in names]
        (root / f"{part}.txt").write_text("".join(lines))
    content = {
        "train": "train.txt",
        "val": "val.txt",
        "names": dict(enumerate(CLASSES)),
        "path": ".",
    }
    (root / "data.yaml").write_text(yaml.safe_dump(content))


def write_label_studio_yolo(root: Path) -> None:
    for part, names in PARTS.items():
        save_images(root / "images" / part, names)
        _write_yolo(root / "labels" / part, names)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    write_json(root / "notes.json", {"categories": []})


def write_labelme(root: Path) -> None:
    for part, names in PARTS.items():
        save_images(root / part, names)
        for name in names:
            height, width = SIZES[name]
            shapes = [
                {
                    "label": CLASSES[thing.label],
                    "points": thing.outline,
                    "group_id": None,
                    "shape_type": "polygon",
                    "flags": {},
                }
                for thing in objects(name)
            ]
            content = {
                "version": "5.4.1",
                "flags": {},
                "shapes": shapes,
                "imagePath": f"{name}.png",
                "imageData": base64.b64encode(b"picture" * 1000).decode(),
                "imageHeight": height,
                "imageWidth": width,
            }
            write_json(root / part / f"{name}.json", content)


def write_voc(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    for part, names in PARTS.items():
        save_images(base / "JPEGImages", names)
        for name in names:
            classes = [8 if thing.label == 0 else 12 for thing in objects(name)]  # cat and dog
            _save_palette(base / "SegmentationObject" / f"{name}.png", numbered(name, [1, 2, 3]))
            _save_palette(base / "SegmentationClass" / f"{name}.png", numbered(name, classes))
        lists = base / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text("\n".join(names) + "\n")


def write_cvat_voc(root: Path) -> None:
    """CVAT's segmentation masks: colours, named by labelmap.txt."""
    colours = {"background": (0, 0, 0), "cat": (250, 50, 83), "dog": (51, 221, 255)}
    for part, names in PARTS.items():
        save_images(root / "JPEGImages", names)
        for name in names:
            table = np.array([*colours.values()], dtype=np.uint8)
            classes = numbered(name, [thing.label + 1 for thing in objects(name)])
            instances = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 128)], np.uint8)
            for folder, values, palette in (
                ("SegmentationClass", classes, table),
                ("SegmentationObject", numbered(name, [1, 2, 3]), instances),
            ):
                (root / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(palette[values]).save(root / folder / f"{name}.png")
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{part}.txt").write_text("\n".join(names) + "\n")
    lines = [f"{name}:{','.join(map(str, colour))}::\n" for name, colour in colours.items()]
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "".join(lines))


def write_sbd(root: Path) -> None:
    from scipy.io import savemat

    for part, names in PARTS.items():
        save_images(root / "img", names)
        (root / "inst").mkdir(parents=True, exist_ok=True)
        for name in names:
            classes = [8 if thing.label == 0 else 12 for thing in objects(name)]
            content = {
                "Segmentation": numbered(name, [1, 2, 3]).astype(np.uint8),
                "Categories": np.array(classes, np.uint8)[:, None],
            }
            savemat(root / "inst" / f"{name}.mat", {"GTinst": content})
        (root / f"{part}.txt").write_text("\n".join(names) + "\n")


def write_panoptic(root: Path) -> None:
    for part, names in PARTS.items():
        save_images(root / f"{part}2017", names)
        folder = root / "annotations" / f"panoptic_{part}2017"
        folder.mkdir(parents=True, exist_ok=True)
        content = coco(names, plain_name)
        content["categories"] = [
            {**category, "isthing": 1} for category in content["categories"]
        ] + [{"id": 90, "name": "grass", "isthing": 0}]
        content["annotations"] = []
        for number, name in enumerate(names, 1):
            ids = [300, 70000, 70001]
            values = np.where(numbered(name, ids) == 0, 5, numbered(name, ids))  # 5 is grass
            colours = np.stack([values >> shift & 255 for shift in (0, 8, 16)], axis=-1)
            Image.fromarray(colours.astype(np.uint8)).save(folder / f"{name}.png")
            segments = [{"id": 5, "category_id": 90, "iscrowd": 0}] + [
                {"id": each, "category_id": thing.label + 1, "iscrowd": 0}
                for each, thing in zip(ids, objects(name), strict=True)
            ]
            content["annotations"].append(
                {"image_id": number, "file_name": f"{name}.png", "segments_info": segments}
            )
        write_json(root / "annotations" / f"panoptic_{part}2017.json", content)


def write_label_images(root: Path, bits: int = 16) -> None:
    """Folders images and masks; all objects are of one class."""
    for part, names in PARTS.items():
        save_images(root / part / "images", names)
        masks = root / part / "masks"
        masks.mkdir(parents=True, exist_ok=True)
        for name in names:
            values = numbered(name, [1, 3, 700 if bits > 8 else 7]).astype(f"uint{bits}")
            if bits == 32:
                tifffile.imwrite(masks / f"{name}.tif", values)
            else:
                Image.fromarray(values).save(masks / f"{name}.png")


def write_cellpose(root: Path) -> None:
    """x_img.tif and x_masks.tif in the same folder."""
    for part, names in PARTS.items():
        folder = root / part
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            draw(name).save(folder / f"{name}_img.tif")
            values = numbered(name, [1, 2, 3]).astype(np.uint16)
            Image.fromarray(values).save(folder / f"{name}_masks.tif")


def _save_palette(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), mode="P")
    image.putpalette(np.random.default_rng(0).integers(0, 255, 768, np.uint8).tobytes())
    image.save(path)


def png(values: np.ndarray) -> str:
    """A PNG file in base64."""
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


TWO_CLASSES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "coco": ("COCO JSON", write_coco),
    "roboflow coco": ("COCO JSON", write_roboflow_coco),
    "lvis": ("COCO JSON", write_lvis),
    "cvat coco": ("COCO JSON", write_cvat_coco),
    "label studio coco": ("COCO JSON", write_label_studio_coco),
    "panoptic": ("COCO panoptic", write_panoptic),
    "yolo": ("YOLO", write_yolo),
    "roboflow yolo": ("YOLO", write_roboflow_yolo),
    "cvat yolo": ("YOLO", write_cvat_yolo),
    "label studio yolo": ("YOLO", write_label_studio_yolo),
    "labelme": ("labelme", write_labelme),
    "cvat voc": ("Pascal VOC", write_cvat_voc),
    "voc": ("Pascal VOC", write_voc),
    "sbd": ("SBD", write_sbd),
}
ONE_CLASS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "label images": ("label images", write_label_images),
    "cellpose": ("label images", write_cellpose),
}
