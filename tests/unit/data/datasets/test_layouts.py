"""Every layout is recognised, and gives the same training batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from meinst.data.coco import CocoData
from meinst.data.datasets import parts
from meinst.data.datasets.dataset import open_dataset
from meinst.data.datasets.parts import DatasetError
from meinst.data.training_dataset import TrainingDataset
from meinst.data.transforms import AugmentOptions, ResizeOptions

ALL = layouts.TWO_CLASSES | layouts.ONE_CLASS
LIVELY = AugmentOptions(scale_jitter=(0.7, 1.5), crop_size=64, vertical_flip=0.5, brightness=0.3)


def batches(data: CocoData) -> list[tuple[np.ndarray, ...]]:
    """Images, boxes, class names and masks of two epochs."""
    dataset = TrainingDataset(data, ResizeOptions(96, 128), LIVELY, 28, seed=3)
    found = []
    for number in range(2 * len(data)):
        pixels, target = dataset[number]
        names = np.array([data.class_names[label] for label in target.labels])
        found.append((pixels.numpy(), target.boxes.numpy(), names, target.masks.numpy()))
    return found


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[np.ndarray, ...]]]:
    """Batches of COCO's layout."""
    root = tmp_path_factory.mktemp("coco")
    layouts.write_coco(root)
    dataset = open_dataset(root)
    return {part: batches(dataset.read(part)) for part in dataset.parts}


@pytest.mark.parametrize("name", ALL)
def test_layout_gives_the_same_batches_bit_for_bit(
    name: str, reference: dict[str, list[tuple[np.ndarray, ...]]], tmp_path: Path
) -> None:
    layout, write = ALL[name]
    write(tmp_path)
    dataset = open_dataset(tmp_path)
    assert dataset.layout == layout
    assert list(dataset.parts) == ["train", "val"]
    assert str(dataset).startswith(f"{tmp_path}: {layout}, parts: train (")
    for part, expected in reference.items():
        data = dataset.read(part)
        if name == "panoptic":
            assert [finding.count for finding in data.report.noted] == [len(data)]  # grass
        else:
            assert str(data.report) == ""
        assert len(expected) == 2 * len(data) > 0
        for ours, theirs in zip(batches(data), expected, strict=True):
            order = np.lexsort(ours[1].T), np.lexsort(theirs[1].T)
            assert np.array_equal(ours[0], theirs[0])
            for place in (1, 2, 3):
                if place == 2 and name in layouts.ONE_CLASS:
                    assert set(ours[2]) == {"object"}
                    continue
                assert np.array_equal(ours[place][order[0]], theirs[place][order[1]])


def test_folder_of_none_names_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(DatasetError, match=r"none of the known layouts\. Looked for COCO JSON: "):
        open_dataset(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data set .*absent does not exist"):
        open_dataset(tmp_path / "absent")


def test_nearest_layout_is_named(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(DatasetError, match=r"nearest match is YOLO: labels/\*\.txt, but no data"):
        open_dataset(tmp_path)


def test_two_layouts_at_once_are_named(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    layouts.write_coco(tmp_path)
    reason = (
        r"2 layouts at once: COCO JSON \(annotations/.*\) and YOLO \(images/train, images/val\)"
    )
    with pytest.raises(DatasetError, match=reason):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path / "data.yaml").layout == "YOLO"
    file = tmp_path / "annotations" / "instances_val2017.json"
    assert len(open_dataset(file).read("all")) == 1


def test_part_that_does_not_exist(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    with pytest.raises(DatasetError, match="has no part test; it has train, val"):
        open_dataset(tmp_path).read("test")


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["train", "val"], "val"), (["train", "test"], "test"), (["all"], "all")],
)
def test_evaluation_part(names: list[str], expected: str, tmp_path: Path) -> None:
    layouts.write_labelme(tmp_path)
    dataset = open_dataset(tmp_path)
    part = dataset.parts["val"]
    chosen = type(dataset)(tmp_path, dataset.layout, dict.fromkeys(names, part))
    assert chosen.evaluation_part() == expected
    with pytest.raises(DatasetError, match="only the part train"):
        type(dataset)(tmp_path, dataset.layout, {"train": part}).evaluation_part()


def test_undivided_sets_have_one_part(tmp_path: Path) -> None:
    layouts.write_labelme(tmp_path)
    for path in [*(tmp_path / "train").iterdir(), *(tmp_path / "val").iterdir()]:
        path.rename(tmp_path / path.name)
    for folder in ("train", "val"):
        (tmp_path / folder).rmdir()
    dataset = open_dataset(tmp_path)
    assert list(dataset.parts) == ["all"]
    assert len(dataset.read("all")) == 4


def _edit_yaml(root: Path, **changes: object) -> None:
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def _edit_label(root: Path, text: str) -> None:
    (root / "labels" / "train" / "a.txt").write_text(text)


def _edit_labelme(root: Path, **changes: object) -> None:
    path = root / "train" / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "yolo",
        lambda r: _edit_label(r, "2 0.1 0.1 0.2 0.2 0.1 0.2"),
        r"a\.txt, line 1: class 2 has no name",
    ),
    (
        "yolo",
        lambda r: _edit_label(r, "\n0 0.1 x 0.2"),
        r"a\.txt, line 2: .* words that are not numbers",
    ),
    (
        "yolo",
        lambda r: _edit_label(r, "0 0.1 0.1 0.2"),
        r"line 1: .* not a class and three or more",
    ),
    ("yolo", lambda r: _edit_label(r, "0 10 10 20 10 20 30"), "line 1: .* not divided by"),
    (
        "yolo",
        lambda r: (r / "labels/train/z.txt").write_text(""),
        r"1 label files without an image .*z\.txt",
    ),
    ("yolo", lambda r: shutil.rmtree(r / "labels"), "none of its 3 images has a label file"),
    ("yolo", lambda r: _edit_yaml(r, nc=3), "nc is 3, but there are 2 names"),
    ("yolo", lambda r: _edit_yaml(r, names={0: "a", 2: "b"}), "keys of names are 0, 2, not 0 to 1"),
    ("yolo", lambda r: _edit_yaml(r, names=["a", "a"]), "the class name 'a' is given twice"),
    (
        "yolo",
        lambda r: _edit_yaml(r, train="images/absent"),
        r"data\.yaml: images/absent does not exist",
    ),
    (
        "yolo",
        lambda r: _edit_yaml(r, train="x" * 3000),
        r"data\.yaml: x+ \.\.\. x+.* correct the path",
    ),
    ("cvat yolo", lambda r: (r / "images/train/a.png").unlink(), "1 of its images do not exist"),
    ("labelme", lambda r: (r / "train/a.png").unlink(), r"1 label files whose image .*a\.json"),
    (
        "labelme",
        lambda r: _edit_labelme(r, imageWidth=None),
        "imageWidth and imageHeight are None and",
    ),
    (
        "labelme",
        lambda r: _edit_labelme(r, shapes=[{"label": "a"}]),
        "shape 1 has no label, no points",
    ),
    (
        "labelme",
        lambda r: _edit_labelme(r, shapes=[{"label": "a", "points": [], "group_id": [1]}]),
        "shape 1 has no label, no points or no valid group_id",
    ),
    ("labelme", lambda r: (r / "train/a.json").write_text('{"shapes": ['), r"a\.json is not JSON"),
    (
        "label images",
        lambda r: (r / "train/images/a.png").unlink(),
        "1 label images without an image",
    ),
    (
        "label images",
        lambda r: (r / "train/masks/a.png").unlink(),
        "1 images without a label image",
    ),
    (
        "voc",
        lambda r: (r / "VOCdevkit/VOC2012/JPEGImages/a.png").unlink(),
        "1 images of labels are missing",
    ),
    (
        "voc",
        lambda r: (r / "VOCdevkit/VOC2012/SegmentationObject/a.png").unlink(),
        r"a\.png does not exist",
    ),
    (
        "cvat voc",
        lambda r: (r / "labelmap.txt").write_text("cat:250,50,83::"),
        "no class has the colour",
    ),
    ("sbd", lambda r: (r / "inst/a.mat").write_bytes(b"no"), r"a\.mat cannot be read"),
    (
        "panoptic",
        lambda r: (r / "annotations/panoptic_train2017/a.png").unlink(),
        r"a\.png does not exist",
    ),
    ("coco", lambda r: shutil.rmtree(r / "train2017"), "none of its images such as"),
]


@pytest.mark.parametrize(("name", "spoil", "reason"), FAULTS)
def test_faults_are_named(
    name: str, spoil: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    ALL[name][1](tmp_path)
    spoil(tmp_path)
    with pytest.raises(DatasetError, match=reason) as caught:
        open_dataset(tmp_path).read("train")
    assert "\n" not in str(caught.value)


def test_large_label_images_of_another_size_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_LARGE", 100)
    for number, (write, label) in enumerate(
        (
            (layouts.write_cellpose, "train/a_masks.tif"),
            (layouts.write_voc, "VOCdevkit/VOC2012/SegmentationObject/a.png"),
            (layouts.write_panoptic, "annotations/panoptic_train2017/a.png"),
        )
    ):
        root = tmp_path / str(number)
        root.mkdir()
        write(root)
        open_dataset(root).read("train")
        with Image.open(root / label) as image:
            image.resize((90, 50)).save(root / label)
        (root / label).write_bytes((root / label).read_bytes()[:-20])  # decoding would fail
        with pytest.raises(DatasetError, match=f"{label} has 90 x 50 pixels, its image "):
            open_dataset(root).read("train")


@pytest.mark.parametrize("kind", ["float", "rgb", "negative", "pages", "jpeg"])
def test_label_images_of_other_kinds_are_rejected(kind: str, tmp_path: Path) -> None:
    layouts.write_cellpose(tmp_path)
    path = tmp_path / "train" / "a_masks.tif"
    values = layouts.numbered("a", [1, 2, 3])
    reasons = {
        "float": "holds float32 values",
        "rgb": "has 3 channels",
        "negative": "has the value -1",
        "pages": "has 2 pages",
        "jpeg": "is a JPEG file",
    }
    if kind == "rgb":
        Image.fromarray(np.stack([values] * 3, -1).astype(np.uint8)).save(path)
    elif kind == "pages":
        page = Image.fromarray(values.astype(np.uint16))
        page.save(path, save_all=True, append_images=[page])
    elif kind == "jpeg":
        Image.fromarray(values.astype(np.uint8)).save(path, "JPEG")
    else:
        kinds = {"float": np.float32, "negative": np.int32}
        Image.fromarray((values - (kind == "negative")).astype(kinds[kind])).save(path)
    with pytest.raises(DatasetError, match=rf"a_masks\.tif {reasons[kind]}"):
        open_dataset(tmp_path).read("train")


def test_boxes_without_outlines_are_reported_as_having_no_mask(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    _edit_label(tmp_path, "0 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2 0.9")
    report = open_dataset(tmp_path).read("train").report
    assert [str(finding) for finding in report.dropped] == [
        "2 x no mask (object a.txt: 1, a.txt: 2)"
    ]
    assert [str(finding) for finding in report.noted] == [
        "1 x label file with boxes, which have no outline (file a.txt)"
    ]


def test_images_without_label_file_have_no_objects(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").unlink()
    data = open_dataset(tmp_path).read("train")
    assert [len(each) for each in data.instances] == [3, 0, 3]
    assert "1 x image without a label file" in str(data.report.noted[0])


def test_unreadable_images_are_noted(tmp_path: Path) -> None:
    layouts.write_yolo(tmp_path)
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    data = open_dataset(tmp_path).read("train")
    assert [len(each) for each in data.instances] == [3, 0, 3]
    assert str(data.report) == (
        "note: 1 x image that cannot be read, its labels are not used (file b.png)"
    )


def test_labelme_shapes(tmp_path: Path) -> None:
    layouts.write_labelme(tmp_path)
    patch = np.ones((4, 3), np.uint8) * 255
    patch[0, 0] = 0
    _edit_labelme(
        tmp_path,
        imagePath="x" * 3000,  # the file beside it is used
        shapes=[
            {"label": "a", "shape_type": "rectangle", "points": [[2, 3], [10, 9]]},
            {"label": "a", "shape_type": "circle", "points": [[30, 30], [40, 30]]},
            {
                "label": "b",
                "shape_type": "mask",
                "points": [[5, 6], [7, 9]],
                "mask": layouts.png(patch),
            },
            {"label": "b", "shape_type": "line", "points": [[5, 6], [7, 9]]},
            {"label": "b", "group_id": 1, "points": [[50, 2], [60, 2], [60, 9]]},
            {"label": "b", "group_id": 1, "points": [[70, 2], [80, 2], [80, 9]]},
        ],
    )
    data = open_dataset(tmp_path).read("train")
    assert data.class_names == ("a", "b", "cat", "dog")
    first = data.instances[0]
    assert first.boxes.tolist() == [
        [2, 3, 10, 9],
        [20, 20, 40, 40],
        [5, 6, 8, 10],
        [50, 2, 80, 9],
    ]
    mask = first.shapes[2]
    assert mask.array().tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]]  # type: ignore[union-attr]
    assert len(first.shapes[3]) == 2  # type: ignore[arg-type]
    text = str(data.report)
    assert "dropped: 1 x no mask (object a.json: 4)" in text
    for note in ("with rectangles", "with circles", "type line", "same group_id"):
        assert note in text


def test_panoptic_crowds_and_unknown_segments(tmp_path: Path) -> None:
    layouts.write_panoptic(tmp_path)
    path = tmp_path / "annotations" / "panoptic_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    data = open_dataset(tmp_path).read("train")
    assert data.instances[0].crowd.sum() == 1
    content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="segment 70001 or its class is not in"):
        open_dataset(tmp_path).read("train")


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_label_images_of_any_depth(bits: int, tmp_path: Path) -> None:
    layouts.write_label_images(tmp_path, bits)
    data = open_dataset(tmp_path).read("train")
    assert [len(each) for each in data.instances] == [3, 3, 3]
    assert torch.tensor(data.instances[0].boxes).sum() > 0


@pytest.mark.parametrize("file", ["labelmap.txt", "ImageSets/Segmentation/train.txt"])
def test_lists_that_are_not_text_are_named(tmp_path: Path, file: str) -> None:
    layouts.TWO_CLASSES["cvat voc"][1](tmp_path)
    (tmp_path / file).write_bytes(b"cat\xdb\xff:1,2,3::")
    with pytest.raises(DatasetError, match=r"\.txt is not text \(UTF-8\)"):
        open_dataset(tmp_path).read("train")
