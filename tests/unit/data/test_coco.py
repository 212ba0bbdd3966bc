from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from meinst.data.coco import AnnotationError, CocoData, Finding, read_coco
from meinst.data.shapes import Bitmap

SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 7.0, 2.0, 7.0]  # in an image of 20 x 10 pixels
BOX = [2.0, 3.0, 6.0, 4.0]


def rle(compressed: bool, height: int = 10, width: int = 20) -> dict[str, Any]:
    """A mask of rows 3 to 6 in columns 2 to 7."""
    counts = [2 * height + 3]
    counts += [4, height - 4] * 5 + [4]
    counts += [height * width - sum(counts)]
    plain = {"size": [height, width], "counts": counts}
    if not compressed:
        return plain
    packed = coco_mask.frPyObjects(plain, height, width)
    return {"size": [height, width], "counts": packed["counts"].decode()}


def document(*annotations: dict[str, Any]) -> dict[str, Any]:
    """Two images, three categories out of order, and the given annotations."""
    common = {"image_id": 5, "category_id": 9, "bbox": BOX, "segmentation": [SQUARE], "iscrowd": 0}
    return {
        "images": [
            {"id": 5, "file_name": "a.png", "width": 20, "height": 10},
            {"id": 3, "file_name": "sub/b.png", "width": 8, "height": 8},
        ],
        "categories": [
            {"id": 9, "name": "cat"},
            {"id": 2, "name": "ant"},
            {"id": 4, "name": "bee"},
        ],
        "annotations": [{**common, "id": 100 + i, **a} for i, a in enumerate(annotations)],
    }


def read(tmp_path: Path, content: Any, images: Path | None = None) -> CocoData:
    path = tmp_path / "annotations.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_coco(path, images)


def faults_of(tmp_path: Path, content: Any, images: Path | None = None) -> AnnotationError:
    with pytest.raises(AnnotationError) as caught:
        read(tmp_path, content, images)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "annotations.json"))
    assert "\n" not in message
    return caught.value


def test_no_annotations(tmp_path: Path) -> None:
    data = read(tmp_path, document())
    assert len(data) == 2
    assert [record.id for record in data.images] == [5, 3]
    assert data.class_names == ("ant", "bee", "cat")
    assert data.category_ids == (2, 4, 9)
    for instances in data.instances:
        assert len(instances) == 0
        assert instances.boxes.shape == (0, 4)
    assert str(data.report) == ""


def test_polygons_and_both_forms_of_rle(tmp_path: Path) -> None:
    content = document(
        {},
        {"segmentation": rle(True), "category_id": 2},
        {"segmentation": rle(False), "iscrowd": 1},
        {"segmentation": [[0, 0, 4, 0, 4, 4]], "bbox": [0, 0, 4, 4], "image_id": 3},
    )
    data = read(tmp_path, content)
    first, second = data.instances
    np.testing.assert_array_equal(first.boxes, [[2, 3, 8, 7]] * 3)
    assert first.boxes.dtype == np.float64
    assert first.labels.tolist() == [2, 0, 2]
    assert first.crowd.tolist() == [False, False, True]
    np.testing.assert_array_equal(first.shapes[0][0], SQUARE)
    for shape in first.shapes[1:]:
        assert isinstance(shape, Bitmap)
        assert shape.offset == (2, 3)
        np.testing.assert_array_equal(shape.array(), np.ones((4, 6)))
    assert len(second) == 1
    assert data.annotations == tmp_path / "annotations.json"
    assert data.images[0].path is None
    assert data.report.dropped == data.report.repaired == ()


def test_image_files_must_exist(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    with pytest.raises(FileNotFoundError, match=r"images does not exist"):
        read(tmp_path, document(), folder)
    folder.mkdir()
    error = faults_of(tmp_path, document(), folder)
    assert f"image files missing in {folder}: 2 (file a.png, sub/b.png)" in str(error)
    (folder / "sub").mkdir()
    Image.new("L", (20, 10)).save(folder / "a.png")
    Image.new("L", (8, 8)).save(folder / "sub" / "b.png")
    data = read(tmp_path, document(), folder)
    assert data.images[0].path == folder / "a.png"
    assert data.images[1].path == folder / "sub" / "b.png"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bbox": [2, 3, 0, 4]}, "box of no area"),
        ({"bbox": [2, 3, 4, -4]}, "box of no area"),
        ({"bbox": [30, 3, 4, 4]}, "box outside the image"),
        ({"bbox": [-9, 3, 4, 4]}, "box outside the image"),
        ({"bbox": [2, 3, 4]}, "box that is not four finite numbers"),
        ({"bbox": [2, 3, float("nan"), 4]}, "box that is not four finite numbers"),
        ({"bbox": "2 3 4 4"}, "box that is not four finite numbers"),
        ({"bbox": [15, 3, 4, 4]}, "mask outside its box"),
        ({"segmentation": None}, "no mask"),
        ({"segmentation": []}, "no mask"),
        ({"segmentation": "none"}, "no mask"),
        ({"segmentation": [[1, 1, 5, 5]]}, "polygon of fewer than three points"),
        ({"segmentation": [[1, 1, 5, 5, 3, 1, 2]]}, "polygon of fewer than three points"),
        ({"segmentation": [[]]}, "polygon of fewer than three points"),
        ({"segmentation": [[2, 3, 4, 5, 6, 7]]}, "mask of no area"),
        (
            {"segmentation": [[*SQUARE[:-1], float("inf")]]},
            "polygon that is not a list of finite numbers",
        ),
        ({"segmentation": [[*SQUARE[:-1], "x"]]}, "polygon that is not a list of finite numbers"),
        (
            {"segmentation": [[[2, 3], [8, 3], [8, 7]]]},
            "polygon that is not a list of finite numbers",
        ),
        ({"segmentation": SQUARE}, "polygon that is not a list of finite numbers"),
        ({"segmentation": rle(True, 20, 10)}, "RLE of another size than its image"),
        ({"segmentation": {"counts": [200]}}, "RLE of another size than its image"),
        (
            {"segmentation": {"size": [10.0, 20], "counts": [50, 10, 140]}},
            "RLE whose size is not integers",
        ),
        ({"segmentation": {"size": [10, 20], "counts": [200]}}, "mask of no area"),
        (
            {"segmentation": {"size": [10, 20], "counts": [23, 178]}},
            "broken RLE: the counts do not fill the image",
        ),
        (
            {"segmentation": {"size": [10, 20], "counts": [1.5, 198.5]}},
            "broken RLE: the counts are not integers",
        ),
        (
            {"segmentation": {"size": [10, 20], "counts": [2**70]}},
            "broken RLE: the counts are not integers",
        ),
        ({"segmentation": {"size": [10, 20]}}, "broken RLE: the counts are not integers"),
        (
            {"segmentation": {"size": [10, 20], "counts": "o"}},
            "broken RLE: the string is not valid",
        ),
        ({"category_id": 77}, "unknown category id"),
        ({"image_id": 77}, "unknown image id"),
    ],
)
def test_faulty_instances_are_dropped(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    data = read(tmp_path, document({}, change, {}))
    assert len(data.instances[0]) == 2
    assert data.report.dropped == (Finding(reason, 1, (101,)),)
    assert data.report.repaired == ()


def test_report_counts_and_gives_examples(tmp_path: Path) -> None:
    bad = {"bbox": [2, 3, 0, 4]}
    data = read(tmp_path, document(*[bad] * 8, {"segmentation": []}, *[{}] * 10))
    assert str(data.report).splitlines() == [
        "dropped: 8 x box of no area (annotation 100, 101, 102, 103, 104, ...)",
        "dropped: 1 x no mask (annotation 108)",
    ]


def test_repaired_instances(tmp_path: Path) -> None:
    content = document(
        {"bbox": [-5, 3, 10, 90]},  # to 0, 3, 5, 10
        {"bbox": [2, 3, 18.5, 4]},  # half a pixel too long: rounding, not reported
        {"segmentation": [SQUARE, [1, 1, 2, 2]]},
        {"segmentation": rle(True)},
        {},
    )
    del content["annotations"][3]["bbox"]
    content["annotations"][4]["bbox"] = None
    data = read(tmp_path, content)
    expected = [[0, 3, 5, 10], [2, 3, 20, 7], [2, 3, 8, 7], [2, 3, 8, 7], [2, 3, 8, 7]]
    np.testing.assert_array_equal(data.instances[0].boxes, expected)
    assert len(data.instances[0].shapes[2]) == 1
    assert data.report.dropped == ()
    assert set(data.report.repaired) == {
        Finding("box clipped to the image", 1, (100,)),
        Finding("polygon part of fewer than three points ignored", 1, (102,)),
        Finding("missing box taken from the mask", 2, (103, 104)),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value at line 1, column 1"),
        ('{"images": [],\n "annotations": [}', "at line 2, column 18"),
        ("[" * 100_000, "not JSON"),
        ("[]", "contains a JSON list, not an object"),
        ("{}", "images is missing; annotations is missing; categories is missing"),
        ('{"images": {}, "annotations": [], "categories": []}', "images is not a list"),
    ],
)
def test_files_that_are_not_annotations_are_rejected(
    tmp_path: Path, text: str, message: str
) -> None:
    assert message in str(faults_of(tmp_path, text))


def test_invalid_bytes_and_missing_files_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_bytes(b'{"images": "\xff\xfe\xfa"}')
    with pytest.raises(AnnotationError, match="not JSON"):
        read_coco(path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_coco(tmp_path / "none.json")


def test_all_faults_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    content = document(*[{} for _ in range(9)])
    images, annotations, categories = (
        content[name] for name in ("images", "annotations", "categories")
    )
    images.append({"id": 5, "file_name": "c.png", "width": 1, "height": 1})
    images.append({"id": "6", "file_name": "d.png", "width": 1, "height": 1})
    images.append({"id": 7, "file_name": "e.png", "width": 0, "height": 1})
    images.append({"id": 8, "width": True, "height": 1})
    images.append("f.png")
    annotations[1]["id"] = annotations[2]["id"] = annotations[0]["id"]
    del annotations[3]["category_id"], annotations[4]["category_id"]
    categories += [
        {"id": 2, "name": "cat"},
        {"id": -1, "name": "ignore"},
        {"id": 2**63, "name": "x"},
    ]
    expected = {
        "entries of images whose 'id' is not an integer: 1 (position 3)",
        "entries of images whose 'width' is not an integer: 1 (position 5)",
        "entries of images that are not objects: 1 (position 6)",
        "entries of annotations without 'category_id': 2 (position 3, 4)",
        "images without width or height: 1 (image 7)",
        "duplicate ids in images: 1 (id 5)",
        "duplicate ids in annotations: 1 (id 100)",
        "duplicate ids in categories: 1 (id 2)",
        "negative ids in categories: 1 (id -1)",
        "ids above 64 bits in categories: 1 (id 9223372036854775808)",
        "duplicate names in categories: 1 (name cat)",
    }
    before = copy.deepcopy(content)
    error = faults_of(tmp_path, content)
    assert content == before
    assert set(error.faults) == expected
    assert len(error.faults) == len(expected)
    assert all(fault in str(error) for fault in error.faults)


def test_file_names_are_needed_only_with_an_image_folder(tmp_path: Path) -> None:
    content = document({})
    del content["images"][0]["file_name"]
    assert len(read(tmp_path, content).images) == 2
    (tmp_path / "images").mkdir()
    faults = faults_of(tmp_path, content, tmp_path / "images").faults
    assert "entries of images without 'file_name': 1 (position 0)" in faults


def test_empty_lists_are_rejected(tmp_path: Path) -> None:
    content = {"images": [], "annotations": [], "categories": []}
    assert faults_of(tmp_path, content).faults == ("images is empty", "categories is empty")


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_file_with_mostly_unknown_ids_is_rejected(tmp_path: Path, key: str) -> None:
    half = document(*[{key: 77}] * 4, *[{}] * 4)
    assert read(tmp_path, half).report.dropped[0].count == 4
    most = document(*[{key: 77}] * 5, *[{}] * 4)
    (fault,) = faults_of(tmp_path, most).faults
    expected = f"annotations (of 9) with an unknown {key}: 5 (annotation 100, 101"
    assert fault.startswith(expected)
