"""Objects with a box and no mask: read by request, trained as boxes, not measured as masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meinst import coco_metrics, read_coco
from meinst.data.coco import CocoData
from meinst.data.ground_truth import boxes_as_crowds, ground_truth
from meinst.data.transforms import Geometry, transform_instances

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def document(*annotations: dict[str, Any]) -> dict[str, Any]:
    common = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{**common, "id": n, **each} for n, each in enumerate(annotations, 1)],
    }


def read(folder: Path, *annotations: dict[str, Any], boxes_alone: bool = True) -> CocoData:
    path = folder / "a.json"
    path.write_text(json.dumps(document(*annotations)))
    return read_coco(path, boxes_alone=boxes_alone)


MASKED = {"bbox": [10, 10, 20, 20], "segmentation": SQUARE}
BOX = {"bbox": [50, 20, 30, 40], "segmentation": []}


def test_they_are_dropped_by_default(tmp_path: Path) -> None:
    data = read(tmp_path, MASKED, BOX, boxes_alone=False)
    assert len(data.instances[0]) == 1
    assert "dropped: 1 x no mask (annotation 2)" in str(data.report)


@pytest.mark.parametrize("mask", [[], None])
def test_they_keep_their_boxes(tmp_path: Path, mask: Any) -> None:
    (instances,) = read(tmp_path, {**BOX, "segmentation": mask}, MASKED).instances
    np.testing.assert_array_equal(instances.boxes, [[50, 20, 80, 60], [10, 10, 30, 30]])
    np.testing.assert_array_equal(instances.has_mask, [False, True])
    assert instances.shapes[0] == ()


def test_report_counts_them(tmp_path: Path) -> None:
    report = str(read(tmp_path, MASKED, BOX, BOX | {"bbox": [1, 1, 5, 5]}).report)
    assert report == "note: 2 x box without a mask, used for class and box (annotation 2, 3)"


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"segmentation": []}, "neither a mask nor a usable box"),
        ({"segmentation": [], "bbox": [1, 1, 0, 5]}, "neither a mask nor a usable box"),
        ({"segmentation": [], "bbox": [200, 1, 5, 5]}, "mask outside the image"),
        ({"segmentation": "none", "bbox": [1, 1, 5, 5]}, "no mask"),
        ({"segmentation": [[1, 1, 2, 2]], "bbox": [1, 1, 5, 5]}, "fewer than three points"),
    ],
)
def test_unusable_ones_are_dropped(tmp_path: Path, annotation: Any, reason: str) -> None:
    data = read(tmp_path, MASKED, annotation)
    assert len(data.instances[0]) == 1
    assert f"dropped: 1 x {reason}" in str(data.report) or reason in str(data.report)


def test_box_is_clipped_to_the_image(tmp_path: Path) -> None:
    (instances,) = read(tmp_path, {"segmentation": [], "bbox": [90, 70, 50, 50]}).instances
    np.testing.assert_array_equal(instances.boxes, [[90, 70, 100, 80]])


def test_targets_say_which_masks_are_known(tmp_path: Path) -> None:
    (instances,) = read(tmp_path, MASKED, BOX).instances
    whole = Geometry((0, 0, 100, 80), (80, 100))
    target = transform_instances(instances, whole, 8)
    assert target.has_mask is not None
    assert target.has_mask.tolist() == [True, False]
    assert target.masks.sum((1, 2)).tolist() == [64, 0]
    assert transform_instances(instances.select(np.array([0])), whole, 8).has_mask is None


@pytest.mark.parametrize(("min_visible", "kept"), [(0.0, True), (0.4, True), (0.6, False)])
def test_boxes_are_cut_at_the_window(tmp_path: Path, min_visible: float, kept: bool) -> None:
    (instances,) = read(tmp_path, BOX).instances
    window = Geometry((65, 0, 100, 80), (80, 35))  # half of the box
    target = transform_instances(instances, window, 8, min_visible)
    assert target.boxes.tolist() == ([[0, 20, 15, 60]] if kept else [])


def test_masks_in_their_boxes_are_neither_right_nor_wrong(tmp_path: Path) -> None:
    truth = ground_truth(read(tmp_path, MASKED, BOX))

    def result(score: float, box: list[float]) -> dict[str, Any]:
        x, y, w, h = box
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        from pycocotools import mask

        (rle,) = mask.frPyObjects(outline, 80, 100)
        rle["counts"] = rle["counts"].decode()
        return {"image_id": 1, "category_id": 1, "score": score, "bbox": box, "segmentation": rle}

    found = [result(0.95, [50, 20, 30, 40]), result(0.9, [10, 10, 20, 20])]
    metrics = coco_metrics(truth, found)
    assert metrics.bbox.ap == pytest.approx(1)
    assert metrics.segm.ap == pytest.approx(1)
    metrics = coco_metrics(truth, found[1:])  # the box is missed, but its mask is unknown
    assert metrics.bbox.ap == pytest.approx(0.505, abs=0.01)
    assert metrics.segm.ap == pytest.approx(1)
    wrong = [result(0.95, [0, 60, 15, 15]), found[1]]
    assert coco_metrics(truth, wrong).segm.ap == pytest.approx(0.5, abs=0.01)


def test_as_crowd_regions(tmp_path: Path) -> None:
    data = read(tmp_path, MASKED, BOX)
    (instances,) = boxes_as_crowds(data).instances
    np.testing.assert_array_equal(instances.crowd, [False, True])
    np.testing.assert_array_equal(instances.shapes[1][0], [50, 20, 80, 20, 80, 60, 50, 60])
    plain = read(tmp_path, MASKED)
    assert boxes_as_crowds(plain) is plain


def test_yolo_boxes(tmp_path: Path) -> None:
    from PIL import Image

    from meinst import open_dataset

    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (64, 32)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.5\n1 0 0 0.5 0 0.5 0.5\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = open_dataset(tmp_path).read("all", boxes_alone=True)
    np.testing.assert_array_equal(data.instances[0].boxes, [[24, 8, 40, 24], [0, 0, 32, 16]])
    np.testing.assert_array_equal(data.instances[0].has_mask, [False, True])
    assert len(open_dataset(tmp_path).read("all").instances[0]) == 1
