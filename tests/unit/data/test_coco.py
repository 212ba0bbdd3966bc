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
        ({"segmentation": None}, "no mask"),
        ({"segmentation": []}, "no mask"),
        ({"segmentation": "none"}, "no mask"),
        ({"segmentation": [[1, 1, 5, 5]]}, "polygon with fewer than three points"),
        (
            {"segmentation": [[1, 1, 5, 5, 3, 1, 2]]},
            "polygon with an odd number of coordinates",
        ),
        ({"segmentation": [[]]}, "polygon with fewer than three points"),
        ({"segmentation": [[2, 3, 4, 5, 6, 7]]}, "mask with zero area"),
        (
            {"segmentation": [[*SQUARE[:-1], float("inf")]]},
            "polygon that is not a list of finite numbers",
        ),
        ({"segmentation": [[*SQUARE[:-1], "x"]]}, "polygon that is not a list of finite numbers"),
        (
            {"segmentation": [[[2, 3], [8, 3], [8, "7"]]]},
            "polygon that is not a list of finite numbers",
        ),
        ({"segmentation": [[1e9, 0, 1e9, 9, 0, 9]]}, "polygon far outside the image"),
        ({"segmentation": [[25, 3, 28, 3, 28, 7]]}, "mask outside the image"),
        ({"iscrowd": "0"}, "iscrowd that is not 0 or 1"),
        ({"iscrowd": "false"}, "iscrowd that is not 0 or 1"),
        ({"iscrowd": [0]}, "iscrowd that is not 0 or 1"),
        ({"iscrowd": 1.0}, "iscrowd that is not 0 or 1"),
        ({"iscrowd": 2}, "iscrowd that is not 0 or 1"),
        ({"segmentation": rle(True, 20, 10)}, "RLE whose size differs from its image"),
        ({"segmentation": {"counts": [200]}}, "RLE whose size differs from its image"),
        (
            {"segmentation": {"size": [10.0, 20], "counts": [50, 10, 140]}},
            "RLE whose size is not two integers",
        ),
        ({"segmentation": {"size": [10, 20], "counts": [200]}}, "mask with zero area"),
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
    bad = {"segmentation": [[1, 1, 5, 5]]}
    triangles = [{"segmentation": [[x, 3, 8, 3, 8, 7]]} for x in range(7)]
    crowd = {"iscrowd": 1, "category_id": 2}
    data = read(
        tmp_path,
        document(*[bad] * 8, {"segmentation": []}, {"bbox": None}, *triangles, crowd),
    )
    assert str(data.report).splitlines() == [
        "dropped: 8 x polygon with fewer than three points "
        "(annotation 100, 101, 102, 103, 104, ...)",
        "dropped: 1 x no mask (annotation 108)",
        "repaired: 1 x missing box, taken from the mask (annotation 109)",
        "note: 1 x crowd region, not used as an instance (annotation 117)",
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
        Finding("polygon part with fewer than three points, ignored", 1, (102,)),
        Finding("missing box, taken from the mask", 2, (103, 104)),
    }


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([2, 3, 0, 4], "box with zero area"),
        ([2, 3, 4, -4], "box with zero area"),
        ([0, 0, 0, 0], "box with zero area"),
        ([30, 3, 4, 4], "box outside the image"),
        ([-9, 3, 4, 4], "box outside the image"),
        ([2, 3, 4], "box that is not four finite numbers"),
        ([], "box that is not four finite numbers"),
        ([2, 3, float("nan"), 4], "box that is not four finite numbers"),
        ([2, 3, 1e400, 4], "box that is not four finite numbers"),
        ("2 3 4 4", "box that is not four finite numbers"),
        ([15, 3, 4, 4], "box that does not overlap its mask"),
    ],
)
def test_unusable_box_is_taken_from_the_mask(tmp_path: Path, box: Any, reason: str) -> None:
    data = read(tmp_path, document({}, {"bbox": box}, {"category_id": 2}, {"category_id": 4}))
    np.testing.assert_array_equal(data.instances[0].boxes, [[2, 3, 8, 7]] * 4)
    np.testing.assert_array_equal(data.fields[0].boxes[1], [np.nan] * 4)  # evaluators compute it
    assert data.report.dropped == ()
    assert data.report.repaired == (Finding(f"{reason}, taken from the mask", 1, (101,)),)


@pytest.mark.parametrize(
    ("box", "format_name"),
    [
        ([2, 3, 8, 7], "appear to be x1 y1 x2 y2"),
        ([5, 5, 6, 4], "appear to be the centre, width and height"),
        ([0.1, 0.3, 0.3, 0.4], "appear to be normalised by the image size"),
        ([0.1, 0.3, 0.4, 0.7], "appear to be x1 y1 x2 y2, normalised"),
        ([0.25, 0.5, 0.3, 0.4], "appear to be in YOLO format"),
        ([2, 6.5, 6, 3.5], "do not fit the masks"),
    ],
)
def test_boxes_of_another_format_are_taken_from_the_masks(
    tmp_path: Path, box: list[float], format_name: str
) -> None:
    data = read(tmp_path, document(*[{"bbox": box, "category_id": k} for k in (2, 4, 9)]))
    np.testing.assert_array_equal(data.instances[0].boxes, [[2, 3, 8, 7]] * 3)
    (finding,) = data.report.repaired
    assert finding.count == 3
    assert format_name in finding.reason


def test_one_odd_box_does_not_change_the_format_of_the_others(tmp_path: Path) -> None:
    loose = [1, 2, 8, 6]
    rows = [{"bbox": loose, "category_id": k} for k in (2, 4, 9)]
    data = read(tmp_path, document(*rows, {"bbox": [2, 3, 1, 1]}))
    np.testing.assert_array_equal(data.instances[0].boxes, [[1, 2, 9, 8]] * 3 + [[2, 3, 3, 4]])
    assert data.report.repaired == ()


SQUARE_RUNS = [23, 4, 6, 4, 6, 4, 6, 4, 6, 4, 6, 4, 123]  # rows 3 to 6 in columns 2 to 7


@pytest.mark.parametrize(
    ("mask", "form"),
    [
        (SQUARE, "polygon that is not nested in a list"),
        ([[2, 3], [8, 3], [8, 7], [2, 7]], "polygon given as a list of points"),
        ([[[2, 3], [8, 3], [8, 7], [2, 7]]], "polygon given as a list of points"),
        ([[[2, 3]], [[8, 3]], [[8, 7]], [[2, 7]]], "polygon given as a list of points"),  # OpenCV
        ([[[[2, 3]], [[8, 3]], [[8, 7]], [[2, 7]]]], "polygon given as a list of points"),
        (SQUARE_RUNS, "run lengths in place of polygons"),
        ([SQUARE_RUNS], "run lengths in place of polygons"),
    ],
)
def test_masks_of_other_forms_are_recognised(tmp_path: Path, mask: Any, form: str) -> None:
    data = read(tmp_path, document({"segmentation": mask}, {"category_id": 2}))
    assert data.report.dropped == ()
    assert data.report.repaired == (Finding(f"{form}, accepted", 1, (100,)),)
    masks = data.instances[0].masks(8)
    np.testing.assert_array_equal(masks[0], masks[1])
    np.testing.assert_array_equal(data.instances[0].boxes[0], [2, 3, 8, 7])


@pytest.mark.parametrize("area", [-1, 0, 1e300, 10 * 24 + 17])
def test_area_that_contradicts_the_mask_is_left_out(tmp_path: Path, area: float) -> None:
    data = read(tmp_path, document({"area": area}, {"area": 30, "category_id": 2}))
    np.testing.assert_array_equal(data.fields[0].areas, [np.nan, 30])
    reason = "area that contradicts the mask, computed from the mask"
    assert data.report.repaired == (Finding(reason, 1, (100,)),)


def test_crowds_are_counted_and_can_be_used(tmp_path: Path) -> None:
    content = document({"iscrowd": 1}, {"iscrowd": True, "category_id": 2}, {"category_id": 4})
    data = read(tmp_path, content)
    assert data.instances[0].crowd.tolist() == [True, True, False]
    assert data.report.noted == (Finding("crowd region, not used as an instance", 2, (100, 101)),)
    used = read_coco(data.annotations, crowd_as_instances=True)
    assert not used.instances[0].crowd.any()
    assert used.report.noted == (Finding("crowd region, used as an instance", 2, (100, 101)),)


def test_repetitions_are_noted(tmp_path: Path) -> None:
    other = {"segmentation": [[2, 3, 8, 3, 8, 7]]}
    content = document({}, other, {}, {"category_id": 2}, {})
    content["images"].append({"id": 8, "file_name": "a.png", "width": 20, "height": 10})
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (images / name).touch()
    data = read(tmp_path, content, images)
    assert data.report.noted == (
        Finding("image file with several ids", 1, (str(images / "a.png"),), "file"),
        Finding("duplicate annotation", 2, (102, 104)),
    )
    assert len(data.instances[0]) == 5


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("images/photo 1.jpg", "photo 1.jpg"),
        ("images\\photo 1.jpg", "photo 1.jpg"),
        ("PHOTO 1.JPG", "photo 1.jpg"),
        ("photo%201.jpg", "photo 1.jpg"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("photo 1.jpeg", "photo 1.jpg"),
        ("deep/er.png", "sub/er.png"),
    ],
)
def test_missing_file_is_named_with_the_nearest_one(
    tmp_path: Path, name: str, present: str
) -> None:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    (images / present).touch()
    (images / "unrelated.gif").touch()
    content = document({})
    content["images"] = [content["images"][0] | {"file_name": name}]
    assert f"{name} (there is {present})" in str(faults_of(tmp_path, content, images))
    content["images"][0]["file_name"] = "xyz"
    assert "(file xyz)" in str(faults_of(tmp_path, content, images))


@pytest.mark.parametrize(
    "name", ["../b.png", "sub/../../b.png", "/etc/passwd", "C:\\b.png", "..\\b.png", "\\\\x\\b.png"]
)
def test_file_names_must_not_lead_outside(tmp_path: Path, name: str) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "b.png").touch()
    content = document({})
    content["images"] = [content["images"][0] | {"file_name": name}]
    faults = faults_of(tmp_path, content, images).faults
    assert faults[0].startswith("file names that lead out of the image folder")


def test_file_names_may_lead_outside_if_allowed(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "b.png").touch()
    content = document({})
    content["images"] = [content["images"][0] | {"file_name": "../b.png"}]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    (record,) = read_coco(path, images, allow_outside=True).images
    assert record.path == images / "../b.png"


def test_coordinates_in_shares_of_the_image_are_rejected(tmp_path: Path) -> None:
    shares = [0.1, 0.3, 0.4, 0.3, 1.0, 0.7]
    (fault,) = faults_of(tmp_path, document(*[{"segmentation": [shares]}] * 3)).faults
    assert "normalised coordinates (the largest is 1)" in fault


def test_images_beyond_31_bits_and_broken_names_are_rejected(tmp_path: Path) -> None:
    content = document({})
    content["images"][1] |= {"width": 2**16, "height": 2**15}
    content["categories"][0]["name"] = "\ud800"
    assert faults_of(tmp_path, content).faults == (
        "images of more than 2147483647 pixels: 1 (image 3)",
        "text that is not valid Unicode: 1 (name '\\ud800')",
    )


def test_hostile_masks_are_dropped_before_memory_is_taken(tmp_path: Path) -> None:
    side = 40_000
    zigzag = [value for x in range(300) for value in (x % 2 * side, x)]
    content = document(
        {"segmentation": {"size": [side, side], "counts": [0, side * side]}},
        {"segmentation": [zigzag]},
        {"segmentation": [[0, 0, 9, 0, 9, 9]]},
    )
    content["images"][0] |= {"width": side, "height": side}
    data = read(tmp_path, content)
    assert [finding.reason for finding in data.report.dropped] == [
        "mask whose box has more than 268435456 pixels",
        "polygon whose outline is too long",
    ]


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
    annotations[5]["category_id"] = 2
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


@pytest.mark.parametrize("has_objects", [True, False])
def test_an_unused_category_with_the_name_of_another_is_left_out(
    tmp_path: Path, has_objects: bool
) -> None:
    """Exports of Roboflow begin with a category that is named after the project."""
    content = document({})
    if not has_objects:
        content["annotations"] = []
    root = {"id": 0, "name": "cat", "supercategory": "none"}
    assert [entry["name"] for entry in content["categories"]].count("cat") == 1
    expected = read(tmp_path, content)
    content["categories"].insert(0, root)
    data = read(tmp_path, content)
    assert data.class_names == expected.class_names
    assert data.category_ids == expected.category_ids


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
