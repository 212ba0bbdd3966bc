"""A model, annotated images and the numbers that come out."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DrawnData

from meinst.data.coco import CocoData, read_coco
from meinst.data.transforms import ResizedImage
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.engine.evaluate import evaluate


class Perfect:
    """Finds exactly what is annotated; knows the images by their sizes, which differ."""

    selection = SelectOptions(max_detections=50)

    def __init__(self, data: CocoData, class_names: tuple[str, ...], model: MEInst) -> None:
        self.data, self.class_names, self.codec = data, class_names, model.codec
        self.seen: list[weakref.ref[np.ndarray]] = []
        self.most_alive = 0

    def resize(self, image: np.ndarray) -> ResizedImage:
        return ResizedImage(image, image)

    def predict(self, images: list[ResizedImage], **options: Any) -> list[Detections]:
        assert options == {"score_threshold": 0.0, "max_detections": 50}
        return [self.find(image.original) for image in images]

    def find(self, image: np.ndarray) -> Detections:
        self.seen.append(weakref.ref(image))
        self.most_alive = max(self.most_alive, sum(ref() is not None for ref in self.seen))
        sizes = [(record.height, record.width) for record in self.data.images]
        instances = self.data.instances[sizes.index(image.shape[:2])]
        instances = instances.select(np.flatnonzero(~instances.crowd))
        labels = [
            self.class_names.index(self.data.class_names[label]) for label in instances.labels
        ]
        masks = torch.from_numpy(instances.masks(self.codec.mask_size))
        return Detections(
            boxes=torch.from_numpy(instances.boxes).float(),
            scores=torch.linspace(0.9, 0.1, len(labels)),
            labels=torch.tensor(labels, dtype=torch.int64),
            codes=self.codec.transform(masks),
            image_size=(image.shape[0], image.shape[1]),
            codec=self.codec,
            class_names=self.class_names,
        )


@pytest.fixture
def data(drawn_data: DrawnData) -> CocoData:
    return read_coco(drawn_data.annotations, drawn_data.images)


def test_equal_to_pycocotools(
    tiny_model: MEInst,
    drawn_data: DrawnData,
    data: CocoData,
    coco_reference: Callable[..., dict[str, Any]],
) -> None:
    metrics = evaluate(tiny_model, data, max_detections=90).to_dict()
    results = []
    for record in data.images:
        found = tiny_model.predict(record.path, score_threshold=0, max_detections=90)
        results += found.to_coco(record.id, [7, 3])  # the ids of "box" and "disc"
    assert metrics["detections"] == len(results) > 100
    for kind in ("bbox", "segm"):
        expected = coco_reference(drawn_data.content(), results, kind, 90)
        values = [metrics[kind][name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")]
        mine = [-1.0 if value is None else value for value in values]
        assert mine == pytest.approx(expected["all"], abs=1e-6)
        assert mine[0] > 0


def test_perfect_detections_in_another_order_of_classes(tiny_model: MEInst, data: CocoData) -> None:
    model = Perfect(data, ("star", "box", "cat", "disc"), tiny_model)
    calls = []
    metrics = evaluate(model, data, on_image=lambda: calls.append(1))  # type: ignore[arg-type]
    assert metrics.bbox["AP"] == pytest.approx(1)
    assert metrics.bbox["per_class"]["star"]["AP"] is None
    assert metrics.segm["AP50"] > 0.9
    assert (metrics.images, metrics.instances, metrics.detections) == (6, 9, 9)
    assert (metrics.classes.only_model, metrics.classes.only_data) == (("cat",), ())
    assert (len(calls), metrics.max_detections, metrics.failures) == (6, 50, ())
    assert model.most_alive <= 3  # one is in work, one is read ahead, one may still be told of
    json.dumps(metrics.to_dict(), allow_nan=False)


def test_classes_without_a_category_do_not_count(tiny_model: MEInst, data: CocoData) -> None:
    model = Perfect(data, ("box", "disc"), tiny_model)
    model.class_names = ("box", "ring")  # its discs are now no category's

    model.find = Perfect(data, ("box", "disc"), tiny_model).find  # type: ignore[method-assign]
    metrics = evaluate(model, data)  # type: ignore[arg-type]
    assert metrics.bbox["AP"] == pytest.approx(1)  # discs are not measured at all
    assert (metrics.instances, metrics.detections) == (4, 4)
    assert metrics.to_dict()["classes_only_in_model"] == ["ring"]
    assert metrics.to_dict()["classes_only_in_annotations"] == ["disc", "star"]


def test_no_common_class_is_an_error(tiny_model: MEInst, data: CocoData) -> None:
    with pytest.raises(ValueError, match=r"none of the model's classes \(cat\).*disc, box, star"):
        evaluate(Perfect(data, ("cat",), tiny_model), data)  # type: ignore[arg-type]


def test_limit_below_one_is_an_error(tiny_model: MEInst, data: CocoData) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate(tiny_model, data, max_detections=0)


def test_broken_image_counts_as_empty(
    tiny_model: MEInst, drawn_data: DrawnData, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(drawn_data.images, images)
    broken = images / "small.png"  # a box and a disc of the 4 boxes and 5 discs
    broken.write_bytes(broken.read_bytes()[:500])
    data = read_coco(drawn_data.annotations, images)
    metrics = evaluate(Perfect(data, ("box", "disc"), tiny_model), data)  # type: ignore[arg-type]
    assert [failure.path.name for failure in metrics.failures] == ["small.png"]
    assert "small.png" in metrics.to_dict()["failures"][0]["file"]
    assert "truncated" in metrics.failures[0].reason
    assert (metrics.images, metrics.instances, metrics.detections) == (6, 9, 7)
    # Recalls 3/4 and 4/5 at precision 1 reach 76 and 81 of the 101 recall levels.
    assert metrics.bbox["AP"] == pytest.approx((76 + 81) / 2 / 101)


def test_image_of_another_size_than_annotated_is_a_failure(
    tiny_model: MEInst, drawn_data: DrawnData, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(drawn_data.images, images)
    shutil.copy(images / "small.png", images / "empty.png")
    data = read_coco(drawn_data.annotations, images)
    metrics = evaluate(tiny_model, data)
    assert [failure.path.name for failure in metrics.failures] == ["empty.png"]
    assert "64 x 64 pixels, but the annotations say 100 x 80" in metrics.failures[0].reason


@pytest.mark.parametrize(
    ("change", "instances"),
    [
        ({"segmentation": None}, 8),
        ({"segmentation": [[1, 2, 3, 4]]}, 8),
        ({"bbox": "none"}, 8),
        ({"image_id": 99, "area": None}, 8),
        ({"bbox": None, "area": "unknown", "iscrowd": None}, 9),
    ],
)
def test_faulty_instances_do_not_count(
    change: dict[str, Any],
    instances: int,
    tiny_model: MEInst,
    drawn_data: DrawnData,
    tmp_path: Path,
) -> None:
    content = drawn_data.content()
    content["annotations"][1].update(change)
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(content))
    data = read_coco(path, drawn_data.images)
    metrics = evaluate(Perfect(data, ("box", "disc"), tiny_model), data)  # type: ignore[arg-type]
    assert metrics.instances == instances
    assert metrics.bbox["AP"] == pytest.approx(1)
