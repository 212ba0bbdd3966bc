"""Rectangles as objects and detections, so that every overlap is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from meinst.data.coco import CocoData, read_coco
from meinst.data.ground_truth import ClassMatch, match_classes
from meinst.diagnosis.assignments import Assignments, assign

SIDE = 100  # pixels of each image
NAMES = ("cat", "dog", "owl")  # categories 1, 2, 3

Box = tuple[int, int, int, int]  # x1 y1 x2 y2
Object = tuple[int, str, Box]  # image, class, box
Detection = tuple[int, str, float, Box]  # image, class, score, box


def rle(*boxes: Box) -> dict[str, Any]:
    """The union of boxes as compressed RLE."""
    mask = np.zeros((SIDE, SIDE), dtype=np.uint8, order="F")
    for x1, y1, x2, y2 in boxes:
        mask[y1:y2, x1:x2] = 1
    coded = coco_mask.encode(mask)
    return {"size": [SIDE, SIDE], "counts": coded["counts"].decode()}


def read_objects(
    folder: Path, objects: Sequence[Object], crowds: Sequence[Object] = (), images: int = 2
) -> CocoData:
    """Annotations of rectangles; the ids of images are 1, 2, ..."""
    content: dict[str, Any] = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE}
            for n in range(1, images + 1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES, start=1)],
        "annotations": [],
    }
    for index, (image, name, (x1, y1, x2, y2)) in enumerate([*objects, *crowds]):
        content["annotations"].append(
            {
                "id": 100 + index,
                "image_id": image,
                "category_id": 1 + NAMES.index(name),
                "segmentation": rle((x1, y1, x2, y2)),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": int(index >= len(objects)),
            }
        )
    path = folder / "rectangles.json"
    path.write_text(json.dumps(content))
    return read_coco(path)


def to_results(detections: Sequence[Detection]) -> list[dict[str, Any]]:
    """Detections in COCO's format."""
    return [
        {
            "image_id": image,
            "category_id": 1 + NAMES.index(name),
            "score": score,
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "segmentation": rle((x1, y1, x2, y2)),
        }
        for image, name, score, (x1, y1, x2, y2) in detections
    ]


def classes_of(data: CocoData) -> ClassMatch:
    return match_classes(NAMES, data)


def assigned(
    data: CocoData, results: Sequence[dict[str, Any]], working_score: float = 0.5
) -> Assignments:
    return assign(data, results, classes_of(data), working_score)


def random_case(folder: Path, seed: int) -> tuple[CocoData, list[dict[str, Any]]]:
    """Objects of three classes in six images, a crowd, and detections with all kinds of errors."""
    random = np.random.default_rng(seed)

    def box() -> Box:
        x, y = random.integers(0, 70, 2)
        w, h = random.integers(8, 30, 2)
        return int(x), int(y), int(x + w), int(y + h)

    def moved(b: Box, most: int) -> Box:
        x1, y1, x2, y2 = np.array(b) + random.integers(-most, most + 1, 4)
        x1, y1 = max(x1, 0), max(y1, 0)
        return int(x1), int(y1), int(min(max(x2, x1 + 2), SIDE)), int(min(max(y2, y1 + 2), SIDE))

    objects = [(int(random.integers(1, 7)), NAMES[random.integers(3)], box()) for _ in range(40)]
    crowds = [(1, "cat", (0, 60, 100, 100))]
    detections: list[Detection] = []
    for image, name, b in objects:
        for _ in range(random.integers(0, 4)):
            wrong = random.random() < 0.2
            label = NAMES[random.integers(3)] if wrong else name
            score = round(float(random.uniform(0.1, 1)), 3)
            detections.append((image, label, score, moved(b, int(random.integers(1, 7)))))
    for _ in range(20):
        image, name = int(random.integers(1, 7)), NAMES[random.integers(3)]
        detections.append((image, name, round(float(random.uniform(0, 0.8)), 3), box()))
    return read_objects(folder, objects, crowds, images=6), to_results(detections)
