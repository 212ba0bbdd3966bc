"""Checked annotations as COCO ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from meinst.data.coco import read_coco
from meinst.data.ground_truth import ground_truth, match_classes

if TYPE_CHECKING:
    from conftest import SyntheticData


def pixels(segmentation: Any, height: int, width: int) -> np.ndarray:
    """``(H, W)`` by pycocotools."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    decoded: np.ndarray = coco_mask.decode(rle)
    return decoded


def test_no_instances(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    image = {"id": 1, "file_name": "a.png", "width": 5, "height": 4}
    content = {"images": [image], "annotations": [], "categories": [{"id": 2, "name": "cell"}]}
    path.write_text(json.dumps(content))
    truth = ground_truth(read_coco(path))
    assert truth["annotations"] == []
    assert truth["categories"] == content["categories"]
    assert truth["images"] == [{"id": 1, "width": 5, "height": 4}]


def test_same_annotations_as_in_the_file(synthetic_data: SyntheticData) -> None:
    truth = ground_truth(read_coco(synthetic_data.annotations))
    expected = {entry["id"]: entry for entry in synthetic_data.content()["annotations"]}
    assert len(expected) == len(truth["annotations"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for entry in truth["annotations"]:
        original = expected[entry["id"]]
        for key in ("image_id", "category_id", "bbox", "area", "iscrowd"):
            assert entry[key] == original[key], key
        size = sizes[entry["image_id"]]
        np.testing.assert_array_equal(
            pixels(entry["segmentation"], *size), pixels(original["segmentation"], *size)
        )


def test_missing_boxes_and_areas_are_none(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    content = synthetic_data.content()
    del content["annotations"][0]["bbox"], content["annotations"][1]["area"]
    content["annotations"][2]["area"] = "large"
    content["annotations"][3]["area"] = 10**400
    path = tmp_path / "missing.json"
    path.write_text(json.dumps(content))
    truth = {entry["id"]: entry for entry in ground_truth(read_coco(path))["annotations"]}
    ids = [entry["id"] for entry in content["annotations"]]
    assert truth[ids[0]]["bbox"] is None
    assert [truth[ids[row]]["area"] for row in (1, 2, 3)] == [None, None, None]


def test_faulty_parts_and_instances_are_dropped(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    content = synthetic_data.content()
    polygon = next(e for e in content["annotations"] if isinstance(e["segmentation"], list))
    good = [list(map(float, part)) for part in polygon["segmentation"]]
    polygon["segmentation"] = [*good, [1.0, 2.0, 3.0, 4.0]]  # a part of two points
    faulty = content["annotations"][-1]
    faulty["segmentation"] = [[900, 900, 905, 900, 905, 905]]
    path = tmp_path / "faulty.json"
    path.write_text(json.dumps(content))
    truth = {entry["id"]: entry for entry in ground_truth(read_coco(path))["annotations"]}
    assert truth[polygon["id"]]["segmentation"] == good
    assert faulty["id"] not in truth


def test_classes_are_matched_by_name(synthetic_data: SyntheticData) -> None:
    data = read_coco(synthetic_data.annotations)  # disc 3, box 7, star 20
    match = match_classes(("box", "moon", "disc"), data)
    assert match.category_ids == (7, None, 3)
    assert match.matched_ids == [7, 3]
    assert (match.only_model, match.only_data) == (("moon",), ("star",))
    assert len(match.warnings) == 2
    with pytest.raises(ValueError, match=r"moon.*disc, box, star"):
        match_classes(("moon",), data)
