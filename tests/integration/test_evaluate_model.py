"""Evaluation of a model on annotated images."""

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
from conftest import SyntheticData

from meinst.data.coco import CocoData, read_coco
from meinst.data.images import Picture
from meinst.data.transforms import ResizedImage
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.images.intensity import InputOptions
from meinst.inference.evaluate import evaluate


class Perfect:
    """A model that returns the annotations; it recognises images by their different sizes."""

    selection = SelectOptions(max_detections=50)
    input_options = InputOptions()

    def __init__(self, data: CocoData, class_names: tuple[str, ...], model: MEInst) -> None:
        self.data, self.class_names, self.codec = data, class_names, model.codec
        self.images: list[weakref.ref[np.ndarray]] = []
        self.most_in_memory = 0

    def resize(self, image: Picture) -> ResizedImage:
        return ResizedImage(image.pixels, image.pixels)

    def predict_batch(
        self, images: list[ResizedImage], selection: SelectOptions
    ) -> list[Detections]:
        assert (selection.score_threshold, selection.max_detections) == (0.0, 50)
        return [self.find(image.original) for image in images]

    def find(self, image: np.ndarray) -> Detections:
        self.images.append(weakref.ref(image))
        in_memory = sum(reference() is not None for reference in self.images)
        self.most_in_memory = max(self.most_in_memory, in_memory)
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
def data(synthetic_data: SyntheticData) -> CocoData:
    return read_coco(synthetic_data.annotations, synthetic_data.images)


def results_of(model: MEInst, data: CocoData) -> list[dict[str, Any]]:
    """COCO results of at most 90 detections per image, of any score."""
    results = []
    for record in data.images:
        detections = model.predict(record.path, score_threshold=0, max_detections=90)
        results += detections.to_coco(record.id, [7, 3])  # the ids of "box" and "disc"
    return results


def figures_of(metrics: dict[str, Any]) -> list[float]:
    """The figures that pycocotools computes, with -1 for none."""
    values = [metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")]
    return [-1.0 if value is None else value for value in values]


def corners(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x, y, x + width, y + height]


def centres(entry: dict[str, Any]) -> None:
    x, y, width, height = entry["bbox"]
    entry["bbox"] = [x + width / 2, y + height / 2, width, height]


def other_forms(entry: dict[str, Any]) -> None:
    mask = entry["segmentation"]
    if isinstance(mask, dict):
        if isinstance(mask["counts"], list):
            entry["segmentation"] = [mask["counts"]]
    elif len(mask) == 1:
        entry["segmentation"] = mask[0]
    else:
        entry["segmentation"] = [np.reshape(part, (-1, 2)).tolist() for part in mask]


def faulty_part(entry: dict[str, Any]) -> None:
    if isinstance(entry["segmentation"], list):
        entry["segmentation"].append([900.0, 5.0, 3.0])


WRITTEN_OTHERWISE: dict[str, Callable[[dict[str, Any]], object]] = {
    "boxes as corners": corners,
    "boxes from the centre": centres,
    "no boxes": lambda entry: entry.update(bbox=None),
    "empty boxes": lambda entry: entry.update(bbox=[0, 0, 0, 0]),
    "negative areas": lambda entry: entry.update(area=-1),
    "absurd areas": lambda entry: entry.update(area=1e12),
    "other forms of masks": other_forms,
    "a faulty part": faulty_part,
}


@pytest.mark.parametrize("name", WRITTEN_OTHERWISE)
def test_file_written_otherwise_gives_pycocotools_figures_of_the_correct_one(
    name: str,
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    coco_reference: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    content = synthetic_data.content()
    for entry in content["annotations"]:
        WRITTEN_OTHERWISE[name](entry)
    path = tmp_path / "otherwise.json"
    path.write_text(json.dumps(content))
    data = read_coco(path, synthetic_data.images)
    metrics = evaluate(tiny_model, data, max_detections=90)
    correct = read_coco(synthetic_data.annotations, synthetic_data.images)
    for ours, same in zip(data.instances, correct.instances, strict=True):
        np.testing.assert_allclose(ours.boxes, same.boxes, atol=0.5)
        np.testing.assert_array_equal(ours.crowd, same.crowd)
    results = results_of(tiny_model, correct)
    for kind, figures in (("bbox", metrics.bbox), ("segm", metrics.segm)):
        expected = coco_reference(synthetic_data.content(), results, kind, 90)
        assert figures_of(figures.to_dict()) == pytest.approx(expected["all"], abs=1e-6)


def test_equal_to_pycocotools(
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    data: CocoData,
    coco_reference: Callable[..., dict[str, Any]],
) -> None:
    metrics = evaluate(tiny_model, data, max_detections=90).to_dict()
    results = results_of(tiny_model, data)
    assert metrics["detections"] == len(results) > 100
    for kind in ("bbox", "segm"):
        expected = coco_reference(synthetic_data.content(), results, kind, 90)
        found = figures_of(metrics[kind])
        assert found == pytest.approx(expected["all"], abs=1e-6)
        assert found[0] > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iscrowd": 1}, "10 x crowd region .* --crowd-as-instances"),
        ({"segmentation": []}, "10 x no mask"),
        ({"category_id": 20}, r"its \d+ usable objects are of other classes \(star"),
    ],
)
def test_nothing_to_measure_is_an_error(
    changes: dict[str, Any],
    reason: str,
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    tmp_path: Path,
) -> None:
    content = synthetic_data.content()
    for entry in content["annotations"]:
        entry.update(changes)
    path = tmp_path / "none.json"
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=rf"none\.json: no usable objects .* to measure: .*{reason}"
    ):
        evaluate(tiny_model, read_coco(path, synthetic_data.images))


def test_classes_are_matched_by_name(tiny_model: MEInst, data: CocoData) -> None:
    model = Perfect(data, ("star", "box", "cat", "disc"), tiny_model)
    calls = []
    metrics = evaluate(model, data, on_image=lambda: calls.append(1))  # type: ignore[arg-type]
    assert metrics.bbox.ap == pytest.approx(1)
    assert metrics.bbox.per_class["star"].ap is None
    assert metrics.segm.ap50 is not None
    assert metrics.segm.ap50 > 0.9
    assert (metrics.images, metrics.instances, metrics.detections) == (6, 9, 9)
    assert (metrics.classes.only_model, metrics.classes.only_data) == (("cat",), ())
    assert (len(calls), metrics.max_detections, metrics.failures) == (6, 50, ())
    assert model.most_in_memory <= 3  # the current image, the next one and the last result
    json.dumps(metrics.to_dict(), allow_nan=False)


def test_classes_without_a_category_do_not_count(tiny_model: MEInst, data: CocoData) -> None:
    model = Perfect(data, ("box", "disc"), tiny_model)
    model.class_names = ("box", "ring")  # discs match no category now
    model.find = Perfect(data, ("box", "disc"), tiny_model).find  # type: ignore[method-assign]
    metrics = evaluate(model, data)  # type: ignore[arg-type]
    assert metrics.bbox.ap == pytest.approx(1)  # discs are not measured at all
    assert (metrics.instances, metrics.detections) == (4, 4)
    assert metrics.to_dict()["classes_only_in_model"] == ["ring"]
    assert metrics.to_dict()["classes_only_in_annotations"] == ["disc", "star"]


def test_rejects_data_without_common_classes(tiny_model: MEInst, data: CocoData) -> None:
    with pytest.raises(ValueError, match=r"\(cat\).*disc, box, star"):
        evaluate(Perfect(data, ("cat",), tiny_model), data)  # type: ignore[arg-type]


def test_rejects_limits_below_one(tiny_model: MEInst, data: CocoData) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        evaluate(tiny_model, data, max_detections=0)
    with pytest.raises(ValueError, match=r"max_detections must be an integer, got 1\.5"):
        evaluate(tiny_model, data, max_detections=1.5)  # type: ignore[arg-type]


def test_unreadable_image_counts_as_empty(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(synthetic_data.images, images)
    broken = images / "small.png"  # a box and a disc of the 4 boxes and 5 discs
    broken.write_bytes(broken.read_bytes()[:500])
    data = read_coco(synthetic_data.annotations, images)
    metrics = evaluate(Perfect(data, ("box", "disc"), tiny_model), data)  # type: ignore[arg-type]
    assert [failure.path.name for failure in metrics.failures] == ["small.png"]
    assert "small.png" in metrics.to_dict()["failures"][0]["file"]
    assert "truncated" in metrics.failures[0].reason
    assert (metrics.images, metrics.instances, metrics.detections) == (6, 9, 7)
    # Recalls 3/4 and 4/5 at precision 1 reach 76 and 81 of the 101 recall levels.
    assert metrics.bbox.ap == pytest.approx((76 + 81) / 2 / 101)


def test_image_of_another_size_than_annotated_is_a_failure(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(synthetic_data.images, images)
    shutil.copy(images / "small.png", images / "empty.png")
    data = read_coco(synthetic_data.annotations, images)
    metrics = evaluate(tiny_model, data)
    assert [failure.path.name for failure in metrics.failures] == ["empty.png"]
    assert "has 64 x 64 pixels, but the annotations expect 100 x 80" in metrics.failures[0].reason


@pytest.mark.parametrize(
    ("change", "instances"),
    [
        ({"segmentation": None}, 8),
        ({"segmentation": [[1, 2, 3, 4]]}, 8),
        ({"iscrowd": "0"}, 8),
        ({"bbox": "none"}, 9),
        ({"image_id": 99, "area": None}, 8),
        ({"bbox": None, "area": "unknown", "iscrowd": None}, 9),
    ],
)
def test_faulty_instances_do_not_count(
    change: dict[str, Any],
    instances: int,
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    tmp_path: Path,
) -> None:
    content = synthetic_data.content()
    content["annotations"][1].update(change)
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(content))
    data = read_coco(path, synthetic_data.images)
    metrics = evaluate(Perfect(data, ("box", "disc"), tiny_model), data)  # type: ignore[arg-type]
    assert metrics.instances == instances
    assert metrics.bbox.ap == pytest.approx(1)
