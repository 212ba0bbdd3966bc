"""Data sets of any layout through the public commands."""

from __future__ import annotations

import json
import os
from pathlib import Path

import layouts
import numpy as np
import pytest
from conftest import make_tiny_model
from short_training import RECIPE

import meinst
from meinst.cli.main import main
from meinst.data.datasets.dataset import check_same_classes
from meinst.data.datasets.parts import DatasetError
from meinst.models.checkpoint import save_model
from meinst.training.input_data import read_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set in YOLO's layout."""
    root = tmp_path_factory.mktemp("yolo")
    layouts.write_yolo(root)
    return root


def test_train_and_evaluate_a_folder(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    tiny = {
        "--recipe.schedule.iterations": 2,
        "--recipe.schedule.validate_every": 2,
        "--recipe.batch_size": 2,
        "--recipe.resize.shorter_side": 64,
        "--recipe.resize.longer_side": 64,
        "--recipe.augment.crop_size": 64,
        "--recipe.codec.n_components": 1,
        "--workers": 0,
    }
    options = [str(word) for item in tiny.items() for word in item]
    assert main(["train", str(folder), "--output", str(run), "--random-backbone", *options]) == 0
    assert f"{folder}: YOLO, parts: train (" in caplog.text
    model = meinst.load(run / "best.safetensors")
    assert model.class_names == layouts.CLASSES
    figures = tmp_path / "figures.json"
    command = ["evaluate", str(folder), "--model", str(run / "best.safetensors")]
    assert main([*command, "--output", str(figures)]) == 0
    assert json.loads(figures.read_text())["images"] == 1
    assert main([*command, "--part", "train", "--output", str(figures)]) == 0
    assert json.loads(figures.read_text())["images"] == 3


def test_codec_fit_of_a_folder_equals_that_of_its_coco_file(folder: Path, tmp_path: Path) -> None:
    coco = tmp_path / "coco"
    layouts.write_coco(coco)
    sizes = ["--n-components", "1", "--mask-size", "14"]
    for source, name in ((folder, "a"), (coco / "annotations/instances_train2017.json", "b")):
        target = tmp_path / f"{name}.npz"
        assert main(["codec", "fit", str(source), "--output", str(target), *sizes]) == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("flag", [[], ["--part", "test"]])
def test_evaluate_from_the_command_line_rejects(
    flag: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model.safetensors"
    save_model(make_tiny_model(), model)
    data = [str(folder)] if flag else [str(folder), "--images", str(folder)]
    assert main(["evaluate", *data, "--model", str(model), *flag]) == 2
    reason = "has no part test; it has train, val" if flag else "give the data once"
    assert reason in capsys.readouterr().err


def undivided(root: Path) -> Path:
    """labelme files of eight pictures without parts, one of them twice."""
    layouts.write_labelme(root)
    for path in [*(root / "train").iterdir(), *(root / "val").iterdir()]:
        path.rename(root / path.name)
    for name in "abcd":
        content = json.loads((root / f"{name}.json").read_text())
        content["imagePath"] = f"{name}2.png"
        layouts.write_json(root / f"{name}2.json", content)
        (root / f"{name}2.png").write_bytes((root / f"{name}.png").read_bytes() + os.urandom(4))
    for name in ("a.png", "a2.png"):
        (root / name).write_bytes((root / "a.png").read_bytes())
    return root


def test_training_divides_what_has_no_validation_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = undivided(tmp_path / "data")
    output = tmp_path / "run"
    output.mkdir()
    options = meinst.TrainOptions(data=data, output=output)
    with caplog.at_level("INFO", logger="meinst"):
        train, val = read_data(options, RECIPE)
    assert (len(train), len(val)) == (6, 2)
    written = json.loads((output / "split.json").read_text())
    assert written["val"] == [str(record.path) for record in val.images]
    assert "no validation part: 2 of 8 images drawn for it" in caplog.text
    assert Path(written["data"]) == data
    names = {Path(name).stem for name in written["val"]}
    assert len(names & {"a", "a2"}) != 1  # doubles stay together


def test_parts_that_do_not_fit_together_are_rejected(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][1]["name"] = "wolf"
    path.write_text(json.dumps(content))
    dataset = meinst.open_dataset(tmp_path)
    with pytest.raises(DatasetError, match="only one of them has dog, wolf"):
        check_same_classes(dataset.read("train"), dataset.read("val"))
    content["categories"][1]["name"] = "dog"
    path.write_text(json.dumps(content))
    train, val = dataset.read("train"), dataset.read("val")
    check_same_classes(train, val)
    keep = [np.flatnonzero(each.labels == 0) for each in train.instances]
    without = type(train)(
        train.annotations,
        train.images,
        tuple(each.select(rows) for each, rows in zip(train.instances, keep, strict=True)),
        train.fields,
        train.class_names,
        train.category_ids,
        train.report,
    )
    with pytest.raises(DatasetError, match="no objects of dog, which the validation part"):
        check_same_classes(without, val)


def test_data_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.html"
    assert main(["data", "check", str(folder), "--output", str(report)]) == 0
    assert "train: 3 images of" in capsys.readouterr().out
    assert report.read_text().startswith("<!doctype html>")
    for to in ("coco", "yolo", "labelme", "label-images"):
        target = tmp_path / to
        assert main(["data", "convert", str(folder), str(target), "--to", to]) == 0
        output = capsys.readouterr()
        assert f"{target}: 4 images (train 3, val 1)" in output.out
        assert ("label-images cannot represent classes" in output.err) == (to == "label-images")
        assert [len(meinst.open_dataset(target).read(part)) for part in ("train", "val")] == [3, 1]
    target = tmp_path / "split"
    assert main(["data", "split", str(folder), str(target), "--val", "0.25", "--test", "0.25"]) == 0
    assert f"{target}: 4 images (train 2, val 1, test 1)" in capsys.readouterr().out
    target = tmp_path / "sample"
    assert main(["data", "sample", str(folder), str(target), "--images", "3"]) == 0
    assert f"{target}: 3 images (train 2, val 1)" in capsys.readouterr().out
    assert main(["data", "convert", str(folder), str(target), "--to", "coco"]) == 2
    assert "is not empty; choose another folder" in capsys.readouterr().err
    assert main(["data", "split", str(folder), str(tmp_path / "x"), "--val", "0"]) == 2
    assert "must leave a tenth for training" in capsys.readouterr().err


def test_data_check_fails_on_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.write_yolo(tmp_path)
    (tmp_path / "images/train/a.png").write_bytes(b"no image")
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "1 images of train cannot be used" in capsys.readouterr().out
