"""Training data that teach nothing, or are not what they seem, are reported before training."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from short_training import RECIPE, WARNINGS, make_options, with_values

if TYPE_CHECKING:
    from conftest import SyntheticData

pytest.importorskip("lightning", reason="lightning is in the extra 'train'")
from meinst.data.images import ImageError
from meinst.training.input_data import read_data
from meinst.training.train import train

pytestmark = WARNINGS

Change = Callable[[dict[str, Any]], object]


def written(data: SyntheticData, path: Path, change: Change) -> Path:
    content = data.content()
    for entry in content["annotations"]:
        change(entry)
    path.write_text(json.dumps(content))
    return path


def shares(entry: dict[str, Any]) -> None:
    entry["segmentation"] = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]


def flat(entry: dict[str, Any]) -> None:
    entry["segmentation"] = [[1, 1, 5, 5, 9, 9]]


CASES: dict[str, tuple[Change, str]] = {
    "no masks": (lambda e: e.update(segmentation=[]), "10 x no mask"),
    "crowds": (lambda e: e.update(iscrowd=1), "10 x crowd region .* --crowd-as-instances"),
    "quoted crowds": (lambda e: e.update(iscrowd="0"), "10 x iscrowd that is not 0 or 1"),
    "shares": (shares, "normalised coordinates"),
    "flat": (flat, "10 x mask with zero area"),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_learn_is_an_error_before_training(
    name: str, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    change, reason = CASES[name]
    faulty = written(synthetic_data, tmp_path / "faulty.json", change)
    options = replace(make_options(synthetic_data, tmp_path / "out"), train_annotations=faulty)
    with pytest.raises(ValueError, match=rf"faulty\.json.*{reason}"):
        train(options)
    assert not (tmp_path / "out" / "checkpoints").exists()


def test_file_without_annotations_is_an_error(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(synthetic_data.content() | {"annotations": []}))
    options = replace(make_options(synthetic_data, tmp_path / "out"), train_annotations=empty)
    with pytest.raises(ValueError, match="list of annotations is empty"):
        train(options)


def test_objects_below_a_pixel_are_an_error(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    tiny = with_values({"resize.shorter_side": 1, "resize.longer_side": 1})
    options = make_options(synthetic_data, tmp_path / "out", tiny)
    with pytest.raises(ValueError, match=r"all 9 objects are smaller than a pixel.*shorter_side"):
        read_data(options, tiny)


def test_content_of_the_data_is_logged(
    synthetic_data: SyntheticData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = with_values({"selection.max_detections": 1, "resize.shorter_side": 32})
    recipe = replace(recipe, resize=replace(recipe.resize, longer_side=40))
    with caplog.at_level(logging.INFO, "meinst"):
        read_data(make_options(synthetic_data, tmp_path / "out", recipe), recipe)
    text = caplog.text
    assert "images: 6 of 64 x 64 to 220 x 200 pixels, 1 without objects" in text
    assert "objects: 9 (5 disc, 4 box, 0 star)" in text
    assert "not used: crowd regions 1, faulty annotations 0" in text
    assert "smaller than the finest stride (8 pixels)" in text
    assert "images with more objects than max_detections = 1: 4; raise it" in text


def test_brush_masks_can_be_used(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    crowds = written(synthetic_data, tmp_path / "crowds.json", lambda e: e.update(iscrowd=1))
    options = make_options(synthetic_data, tmp_path / "out")
    options = replace(options, train_annotations=crowds, crowd_as_instances=True)
    data, _ = read_data(options, RECIPE)
    assert sum(len(instances) for instances in data.instances) == 10
    assert not any(instances.crowd.any() for instances in data.instances)


def test_boxes_without_masks_can_be_used(
    synthetic_data: SyntheticData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = iter(range(100))

    def some(entry: dict[str, Any]) -> None:
        if next(numbers) % 2:
            entry["segmentation"] = []

    partly = written(synthetic_data, tmp_path / "partly.json", some)
    options = make_options(synthetic_data, tmp_path / "out")
    options = replace(options, train_annotations=partly, boxes_alone=True)
    with caplog.at_level(logging.INFO, "meinst"):
        data, _ = read_data(options, RECIPE)
    assert [int((~each.has_mask).sum()) for each in data.instances] != [0] * len(data)
    assert sum(len(instances) for instances in data.instances) == 10
    assert "5 x box without a mask, used for class and box" in caplog.text
    best = train(options)
    assert best.is_file()
    without = replace(options, output=tmp_path / "dropped", boxes_alone=False)
    data, _ = read_data(without, RECIPE)
    assert sum(len(instances) for instances in data.instances) == 5


def test_boxes_alone_teach_no_masks(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    boxes = written(synthetic_data, tmp_path / "boxes.json", lambda e: e.update(segmentation=[]))
    options = make_options(synthetic_data, tmp_path / "out")
    options = replace(options, train_annotations=boxes, boxes_alone=True)
    with pytest.raises(ValueError, match="none of the 9 objects has a mask, only boxes"):
        read_data(options, RECIPE)


def test_unusable_image_files_are_listed_once_before_training(
    synthetic_data: SyntheticData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = tmp_path / "images"
    shutil.copytree(synthetic_data.images, images)
    (images / "two.png").write_bytes(b"no image")
    (images / "small.png").write_bytes(b"")
    options = replace(make_options(synthetic_data, tmp_path / "out"), train_images=images)
    with caplog.at_level(logging.WARNING, "meinst"):
        read_data(options, RECIPE)
    (message,) = (r.getMessage() for r in caplog.records if "cannot be used" in r.getMessage())
    assert "2 of 6 images cannot be used: " in message
    assert "two.png is not an image" in message
    assert "small.png is empty" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_break_during_training_are_one_error(
    workers: int,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    images = tmp_path / "images"
    shutil.copytree(synthetic_data.images, images)
    for path in images.iterdir():  # whole headers, but hardly any pixels
        path.write_bytes(path.read_bytes()[:700])
    options = make_options(synthetic_data, tmp_path / "out")
    options = replace(options, train_images=images, workers=workers)
    with caplog.at_level(logging.WARNING, "meinst"), pytest.raises(ImageError) as caught:
        train(options)
    message = str(caught.value)
    assert "20 training images in a row cannot be read; the last error: " in message
    assert "is damaged or truncated" in message
    assert "Traceback" not in message
    assert "\n" not in message
    skipped = [record for record in caplog.records if "skipped" in record.getMessage()]
    assert len(skipped) == (6 if workers == 0 else 0)  # workers print their own


def test_mostly_unusable_image_files_are_an_error(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for image in synthetic_data.content()["images"]:
        Image.new("L", (30, 50)).save(images / image["file_name"])
    options = replace(make_options(synthetic_data, tmp_path / "out"), val_images=images)
    with pytest.raises(
        ValueError, match=r"6 of 6 images cannot be used: .*30 x 50 pixels.*128 x 96"
    ):
        train(options)
    assert not (tmp_path / "out" / "checkpoints").exists()
