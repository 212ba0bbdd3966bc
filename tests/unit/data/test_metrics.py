"""COCO's metrics: by hand where possible, else compared with pycocotools."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from meinst.data.metrics import APSummary, coco_metrics

Dict = dict[str, Any]
NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar")


def rle(x: float, y: float, w: float, h: float, size: tuple[int, int] = (200, 200)) -> Dict:
    mask = np.zeros(size, np.uint8, order="F")
    mask[max(int(y), 0) : max(int(y + h), 0), max(int(x), 0) : max(int(x + w), 0)] = 1
    return {"size": list(size), "counts": coco_mask.encode(mask)["counts"].decode()}


def plain_counts(x: float, y: float, w: float, h: float, size: tuple[int, int]) -> list[int]:
    """Run lengths of a filled box, column by column: gap, side, gap, side, ..., rest."""
    top, side = int(y), int(y + h) - int(y)
    columns = int(x + w) - int(x)
    runs = [int(x) * size[0] + top] + [side, size[0] - side] * columns
    return [*runs[:-1], size[0] * size[1] - sum(runs[:-1])]


def truth(*boxes: tuple[float, ...], **more: Any) -> Dict:
    """One image of 200 x 200, one category, a filled box each."""
    annotations = [
        {"id": i, "image_id": 1, "category_id": 5, "bbox": list(box), "iscrowd": 0}
        | {"area": box[2] * box[3], "segmentation": rle(*box)}
        | more
        for i, box in enumerate(boxes, 1)
    ]
    images = [{"id": 1, "width": 200, "height": 200}]
    categories = [{"id": 5, "name": "cell"}]
    return {"images": images, "categories": categories, "annotations": annotations}


def result(score: float, box: tuple[float, ...], mask: tuple[float, ...] | None = None) -> Dict:
    return {"image_id": 1, "category_id": 5, "score": score, "bbox": list(box)} | {
        "segmentation": rle(*(mask or box))
    }


def test_no_results_and_no_objects() -> None:
    nothing_found = coco_metrics(truth((10, 10, 20, 20)), [])
    assert nothing_found.bbox.ap == nothing_found.segm.ar == 0
    assert nothing_found.bbox.ap_large is None  # there is no large object
    nothing_there = coco_metrics(truth(), [result(0.5, (1, 1, 9, 9))])
    assert nothing_there.segm.ap is nothing_there.bbox.ar is None
    assert nothing_there.segm.per_class == {"cell": APSummary(*[None] * 9)}


def test_unused_fields_may_have_any_type() -> None:
    """CVAT writes dates as numbers; other tools omit licences or write them as text."""
    box = (10, 10, 40, 40)
    content = truth(box)
    content["images"][0] |= {"date_captured": 0, "license": "", "coco_url": 0, "flickr_url": []}
    content["categories"][0] |= {"supercategory": 0}
    content |= {"info": 0, "licenses": [{"id": "x"}]}
    assert coco_metrics(content, [result(0.9, box)]).segm.ap == pytest.approx(1.0)


def test_one_of_two_found() -> None:
    # Precision 1 up to recall 1/2, which 51 of the 101 recall levels reach: AP = 51 / 101.
    found = [result(0.9, (10, 10, 40, 40)), result(0.8, (150, 150, 40, 40))]
    metrics = coco_metrics(truth((10, 10, 40, 40), (80, 80, 40, 40)), found)
    for iou_type in ("bbox", "segm"):
        assert getattr(metrics, iou_type).ap == pytest.approx(51 / 101, abs=1e-12)
        assert getattr(metrics, iou_type).ar == 0.5
        assert getattr(metrics, iou_type).per_class["cell"].ap50 == pytest.approx(
            51 / 101, abs=1e-12
        )


def test_threshold_of_the_best_f1() -> None:
    # Four cells; correct at 0.9, 0.8 and 0.537, wrong at 0.6 and 0.3. At 0.8, precision is
    # 1 and recall 1/2, so F1 is 2/3; at 0.537 both are 3/4; at 0.3 they are 3/5 and 3/4.
    cells = [(10.0, 10.0, 40.0, 40.0), (80, 80, 40, 40), (10, 80, 40, 40), (80, 10, 40, 40)]
    scores = {0.9: cells[0], 0.8: cells[1], 0.6: (150, 150, 40, 40), 0.537: cells[2]}
    found = [result(score, box) for score, box in scores.items()]
    metrics = coco_metrics(truth(*cells), [*found, result(0.3, (150, 10, 40, 40))])
    for iou_type in ("bbox", "segm"):
        for summary in (getattr(metrics, iou_type), getattr(metrics, iou_type).per_class["cell"]):
            assert summary.f1 == pytest.approx(0.75, abs=0.01)  # recalls are hundredths
            assert summary.f1_threshold == 0.53
    nothing = coco_metrics(truth(*cells), []).segm
    assert (nothing.f1, nothing.f1_threshold) == (0, None)


def test_one_threshold_for_all_classes() -> None:
    # Above 0.4, one of the two classes would have no detections.
    boxes = [(10.0, 10.0, 40.0, 40.0), (80.0, 80.0, 40.0, 40.0)]
    content = truth(*boxes)
    content["categories"].append({"id": 6, "name": "nucleus"})
    content["annotations"][1]["category_id"] = 6
    found = [result(0.9, boxes[0]), {**result(0.4, boxes[1]), "category_id": 6}]
    summary = coco_metrics(content, found).segm
    assert summary.per_class["cell"].f1_threshold == 0.9
    assert summary.per_class["nucleus"].f1_threshold == 0.4
    assert (summary.f1, summary.f1_threshold) == (pytest.approx(1), 0.4)


def test_masks_and_boxes_are_measured_separately() -> None:
    # The mask's IoU is 62 / 100, above 3 of the 10 thresholds: AP = 0.3. The box is exact.
    metrics = coco_metrics(
        truth((0, 0, 100, 100)), [result(0.9, (0, 0, 100, 100), (0, 0, 62, 100))]
    )
    assert metrics.bbox.ap == pytest.approx(1)
    assert metrics.segm.ap == pytest.approx(0.3, abs=1e-12)
    assert (metrics.segm.ap50, metrics.segm.ap75) == (pytest.approx(1), 0)


def test_limit_of_detections() -> None:
    boxes = ((10, 10, 40, 40), (80, 80, 40, 40))
    found = [result(0.9, boxes[0]), result(0.8, boxes[1])]
    assert coco_metrics(truth(*boxes), found, 2).segm.ap == pytest.approx(1)
    assert coco_metrics(truth(*boxes), found, 1).segm.ap == pytest.approx(51 / 101)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        coco_metrics(truth(), [], 0)


def test_size_of_a_mask_is_its_own_area() -> None:
    # The better result is wrong; its mask has 25 pixels, its box 3600. By its mask it is a small
    # false positive, so precision is 1/2; by its box it does not count as small.
    found = [result(0.9, (100, 100, 60, 60), (100, 100, 5, 5)), result(0.8, (10, 10, 20, 20))]
    metrics = coco_metrics(truth((10, 10, 20, 20)), found)
    assert metrics.segm.ap_small == pytest.approx(0.5)
    assert metrics.bbox.ap_small == pytest.approx(1)
    assert metrics.bbox.ap == pytest.approx(0.5)


def test_crowd_regions_are_ignored() -> None:
    found = [result(0.9, (100, 100, 20, 20)), result(0.8, (10, 10, 40, 40))]
    ground_truth = truth((10, 10, 40, 40), (90, 90, 80, 80))
    assert coco_metrics(ground_truth, found).segm.ap == pytest.approx(0.5 * 51 / 101)
    ground_truth["annotations"][1]["iscrowd"] = 1
    assert coco_metrics(ground_truth, found).segm.ap == pytest.approx(1)


@pytest.mark.parametrize("form", ["compressed", "plain", "polygon", "none"])
def test_missing_areas_are_taken_from_the_masks(form: str) -> None:
    ground_truth = truth((10, 10, 33, 33), (100, 100, 20, 20))
    for annotation in ground_truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
        x, y, w, h = annotation["bbox"]
        plain = {"size": [200, 200], "counts": plain_counts(x, y, w, h, (200, 200))}
        corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        forms = {"plain": plain, "polygon": corners, "none": []}
        annotation["segmentation"] = forms.get(form, annotation["segmentation"])
    before = copy.deepcopy(ground_truth)
    found = [result(0.9, (10, 10, 33, 33)), result(0.8, (100, 100, 20, 20))]
    metrics = coco_metrics(ground_truth, found).bbox
    assert (metrics.ap_small, metrics.ap_medium, metrics.ap_large) == (
        pytest.approx(1),
        pytest.approx(1),
        None,
    )
    assert ground_truth == before


def test_unknown_images_are_rejected() -> None:
    with pytest.raises(ValueError, match="the first 8, are not"):
        coco_metrics(truth(), [result(0.5, (1, 1, 9, 9)) | {"image_id": 8}])


def test_category_ids_and_path(tmp_path: Path) -> None:
    ground_truth = truth((10, 10, 40, 40))
    ground_truth["categories"] += [{"id": 2, "name": "other"}]
    ground_truth["annotations"] += [truth((80, 80, 9, 9))["annotations"][0] | {"id": 7}]
    ground_truth["annotations"][1]["category_id"] = 2
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(ground_truth))
    found = [result(0.9, (10, 10, 40, 40))]
    assert coco_metrics(path, found).bbox.ap == pytest.approx(0.5)  # the mean of 1 and 0
    chosen = coco_metrics(path, found, category_ids=[5]).bbox
    assert chosen.ap == pytest.approx(1)
    assert list(chosen.per_class) == ["cell"]


def random_case(seed: int, objects: int) -> tuple[Dict, list[Dict]]:
    """Random ground truth with many tied scores; image 30 is empty, class "d" has no objects."""
    rng = np.random.default_rng(seed)
    images, annotations, results = [], [], []
    for image_id in (50, 30, 10, 20):
        height, width = (int(side) for side in rng.integers(100, 260, 2))
        size = (height, width)
        images.append({"id": image_id, "width": width, "height": height})
        for _ in range(0 if image_id == 30 else objects):
            w, h = rng.uniform(3, min(height, width) * (0.8 if objects < 20 else 0.2), 2)
            x, y = rng.uniform(0, (width - w, height - h))
            form = rng.integers(0, 3)
            category = int(rng.choice([9, 2]))
            shape: Any = rle(x, y, w, h, size)
            if form == 0:
                shape = [[x, y, x + w, y, x + w, y + h / 2, x, y + h], [x, y, x + 6, y, x, y + 6]]
            elif form == 1:
                shape = {"size": list(size), "counts": plain_counts(x, y, w, h, size)}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": category}
                | {"bbox": [x, y, w, h], "area": w * h * rng.uniform(0.5, 1)}
                | {"segmentation": shape, "iscrowd": int(rng.random() < 0.15)}
            )
            for _ in range(rng.integers(0, 4)):
                dx, dy, dw, dh = rng.normal(0, 0.08, 4)
                box = (x + dx * w, y + dy * h, w * (1 + dw), h * (1 + dh))
                results.append(
                    {"image_id": image_id, "bbox": list(box), "segmentation": rle(*box, size)}
                    | {"category_id": category if rng.random() < 0.8 else 7}
                    | {"score": float(np.round(rng.random(), 1))}
                )
    categories = [{"id": i, "name": name} for i, name in zip((9, 2, 7, 4), "abcd", strict=True)]
    return {"images": images, "categories": categories, "annotations": annotations}, results


def numbers(summary: APSummary) -> list[float]:
    values = [getattr(summary, name) for name in NAMES]
    return [-1.0 if value is None else value for value in values]


@pytest.mark.parametrize(
    ("seed", "objects", "limit"),
    [(0, 6, 100), (1, 6, 300), (2, 40, 20), (3, 200, 100), (3, 200, 300)],
)
def test_equals_pycocotools(
    coco_reference: Callable[..., Dict], seed: int, objects: int, limit: int
) -> None:
    ground_truth, results = random_case(seed, objects)
    before = copy.deepcopy((ground_truth, results))
    metrics = coco_metrics(ground_truth, results, limit)
    assert (ground_truth, results) == before
    for iou_type in ("bbox", "segm"):
        expected = coco_reference(ground_truth, results, iou_type, limit)
        assert numbers(getattr(metrics, iou_type)) == pytest.approx(expected["all"], abs=1e-6)
        stats = expected["stats"]
        assert numbers(getattr(metrics, iou_type))[1:6] == pytest.approx(
            stats[1:6].tolist(), abs=1e-6
        )
        assert getattr(metrics, iou_type).per_class.keys() == expected["per_class"].keys()
        for name, values in expected["per_class"].items():
            assert numbers(getattr(metrics, iou_type).per_class[name]) == pytest.approx(
                values, abs=1e-6
            )
        assert getattr(metrics, iou_type).per_class["d"].ap is None
        assert 0.05 < getattr(metrics, iou_type).ap < 0.95


def test_limits_of_100_and_300_differ_in_the_crowded_case() -> None:
    ground_truth, results = random_case(3, 200)
    recalls = [coco_metrics(ground_truth, results, limit).segm.ar for limit in (100, 300)]
    assert recalls[0] < recalls[1] - 0.01
