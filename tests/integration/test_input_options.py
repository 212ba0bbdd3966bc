"""Images of more than 8 bits, from commands to results; training and prediction agree."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import SyntheticData
from PIL import Image

import meinst.export.export as export_module
from meinst.cli.main import main
from meinst.data.coco import read_coco
from meinst.data.images import load_image, to_rgb
from meinst.data.training_dataset import TrainingDataset
from meinst.data.transforms import AugmentOptions, ResizeOptions
from meinst.detector.meinst import MEInst
from meinst.images.intensity import InputOptions
from meinst.inference.evaluate import evaluate
from meinst.inference.predict import ImageResult, predict_files
from meinst.models.checkpoint import list_models, load_model, read_info, save_model
from meinst.models.exported import ExportedMEInst
from meinst.models.recipe import Recipe, load_recipe


def deep_copy(data: SyntheticData, folder: Path, factor: int = 16, offset: int = 2000) -> Path:
    """The images of a data set as TIFF of 16 bits, and its annotations."""
    content = data.content()
    for image in content["images"]:
        values = load_image(data.images / image["file_name"]).astype(np.uint16)
        image["file_name"] = f"{Path(image['file_name']).stem}.tif"
        folder.mkdir(exist_ok=True)
        deep = values * np.uint16(factor) + np.uint16(offset)
        tifffile.imwrite(folder / image["file_name"], deep, photometric="rgb")
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(content))
    return annotations


def test_predict_reports_and_records_what_was_done(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "images"
    deep_copy(synthetic_data, folder)
    shutil.copy(synthetic_data.images / "two.png", folder / "eight.png")
    frames = [Image.new("L", (80, 60), value) for value in (0, 200)]
    frames[0].save(folder / "stack.tif", save_all=True, append_images=frames[1:])
    options = ["--model", str(tiny_model_file), "--output", str(tmp_path / "out"), "--device=cpu"]
    assert main(["predict", str(folder), *options]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # one for each kind
    assert lines[0].startswith("note: 6 images of type uint16: percentiles 0.1 and 99.9")
    assert lines[1].startswith("warning: 1 image with several pages")
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    recorded = {Path(image["file_name"]).name: image.get("intensity") for image in images}
    assert recorded.pop("eight.png") is None
    assert recorded.pop("stack.tif") is None
    assert len(recorded) == 6
    for entry in recorded.values():
        assert entry["rule"] == "percentile"
        assert 2000 <= entry["low"] < 2100
        assert entry["high"] > 3000

    assert main(["predict", str(folder / "two.tif"), *options, "--intensity", "2000:6080"]) == 0
    assert "2000 to 6080 scaled to 0 to 255" in capsys.readouterr().err
    (image,) = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert (image["intensity"]["low"], image["intensity"]["high"]) == (2000, 6080)
    assert main(["predict", str(folder / "two.tif"), *options, "--intensity=-500:9e3"]) == 0
    assert "-500 to 9e3 scaled to 0 to 255" in capsys.readouterr().err
    # 2000 to 6080 is 16 times 0 to 255, so the overlay shows the 8-bit image.
    original = load_image(synthetic_data.images / "two.png").astype(int)
    np.testing.assert_array_equal(
        to_rgb(tifffile.imread(folder / "two.tif"), intensity="2000:6080"), original
    )

    assert main(["predict", str(folder), *options, "--intensity", "bright"]) == 2
    assert "intensity must be percentile, full or LOW:HIGH" in capsys.readouterr().err


def test_what_is_left_out_of_a_folder_shows_in_the_exit_code(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(synthetic_data.images / "two.png", folder)
    (folder / "notes.txt").touch()
    options = ["--model", str(tiny_model_file), "--output", str(tmp_path / "out"), "--device=cpu"]
    assert main(["predict", str(folder), *options]) == 0
    assert capsys.readouterr().err == ""
    (folder / "movie.mp4").touch()
    assert main(["predict", str(folder), *options]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("warning: 1 file that cannot be read was left out (1 .mp4)")
    assert "1 of 1 images" in captured.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", ""], "an argument is empty"),
        (["predict", "x.png", "--output", ""], "--output is empty"),
        (["predict", "x.png", "--output="], "--output is empty"),
        (["export", "nuclei", "--int8", "--calibration-images", " "], "--calibration-images is"),
        (["evaluate", "--model", "nuclei", "--images", ""], "--images is empty"),
        (["train", "--train-images", ""], "--train-images is empty"),
        (["codec", "fit", ""], "an argument is empty"),
    ],
)
def test_empty_arguments_are_not_the_current_folder(
    arguments: list[str],
    message: str,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(synthetic_data.images / "two.png", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEINST_TRACEBACK", raising=False)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.png"]


def test_evaluate_uses_and_reports_the_rule(
    synthetic_data: SyntheticData, tiny_model: MEInst, tmp_path: Path
) -> None:
    annotations = deep_copy(synthetic_data, tmp_path / "deep")
    shallow = evaluate(tiny_model, read_coco(synthetic_data.annotations, synthetic_data.images))
    assert shallow.notes == ()
    model = MEInst(
        tiny_model.class_names,
        tiny_model.codec,
        tiny_model.options,
        tiny_model.resize_options,
        tiny_model.selection,
        InputOptions("2000:6080"),
    ).eval()
    model.load_state_dict(tiny_model.state_dict())
    deep = evaluate(model, read_coco(annotations, tmp_path / "deep"))
    assert (deep.bbox, deep.segm, deep.failures) == (shallow.bbox, shallow.segm, ())
    (line,) = deep.notes
    assert line.startswith("note: 6 images of type uint16: 2000 to 6080 scaled to 0 to 255")
    assert deep.to_dict()["notes"] == [line]


def test_evaluate_takes_the_rule_as_an_option(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    annotations = deep_copy(synthetic_data, tmp_path / "deep")
    arguments = ["--images", str(tmp_path / "deep"), "--annotations", str(annotations)]
    arguments += ["--model", str(tiny_model_file), "--device", "cpu", "--intensity", "full"]
    assert main(["evaluate", *arguments]) == 0
    assert "the smallest and greatest value of each image scaled" in capsys.readouterr().err


def test_training_reads_images_as_prediction_does(
    synthetic_data: SyntheticData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = deep_copy(synthetic_data, tmp_path / "deep")
    samples = []
    with caplog.at_level("INFO", logger="meinst"):
        for images, file, rule in (
            (synthetic_data.images, synthetic_data.annotations, "percentile"),
            (tmp_path / "deep", annotations, "2000:6080"),
            (tmp_path / "deep", annotations, "full"),
        ):
            dataset = TrainingDataset(
                read_coco(file, images),
                ResizeOptions(64, 96),
                AugmentOptions(),
                14,
                seed=0,
                input_options=InputOptions(rule),
            )
            samples.append([dataset[number][0] for number in range(6)])
    logged = [record.message for record in caplog.records]
    turned = TrainingDataset(
        read_coco(annotations, tmp_path / "deep"),
        ResizeOptions(64, 96),
        AugmentOptions(),
        14,
        seed=0,
        input_options=InputOptions("2000:6080", (2, 1, 0)),
    )
    for number, (expected, same, other) in enumerate(zip(*samples, strict=True)):
        assert (turned[number][0] == expected.flip(0)).all()
        assert (expected == same).all()
        assert not (expected == other).all()
    assert len(logged) == 2  # once for each data set of more than 8 bits
    assert "input.intensity = 2000:6080" in logged[0]


def test_rule_is_part_of_recipes_and_model_files(tiny_model: MEInst, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("base: nuclei\ninput: {intensity: '0:4095'}\n")
    recipe = load_recipe(path)
    assert recipe.input == InputOptions("0:4095")
    path.write_text("base: nuclei\ninput: {channels: [2, 0, 0]}\n")
    assert load_recipe(path).input == InputOptions(channels=(2, 0, 0))
    for wrong in ("[1, 2]", "[-1]", "[1.5]", "[a]"):
        path.write_text(f"input: {{channels: {wrong}}}")
        with pytest.raises(ValueError, match="channels"):
            load_recipe(path)
    path.write_text("input: {intensity: bright}")
    with pytest.raises(ValueError, match="intensity must be percentile"):
        load_recipe(path)
    assert load_recipe("nuclei").input == InputOptions("percentile")
    for name in list_models():  # files from before this option
        assert read_info(name).recipe.input == InputOptions("percentile")
    model = MEInst(
        tiny_model.class_names,
        tiny_model.codec,
        tiny_model.options,
        tiny_model.resize_options,
        tiny_model.selection,
        InputOptions("full", (3, 0, 1)),
    )
    save_model(model, tmp_path / "full.safetensors")
    loaded = load_model(tmp_path / "full.safetensors")
    assert loaded.input_options == InputOptions("full", (3, 0, 1))
    exported = ExportedMEInst(
        model.class_names, model.codec, replace(recipe, model=model.options), lambda _: []
    )
    assert exported.input_options == InputOptions("0:4095")
    assert Recipe().input == InputOptions()


def test_export_passes_the_rule_and_counts_what_is_left_out(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[tuple[Any, Any]] = []

    def export_model(model: MEInst, *_: Any, calibration: Any, **__: Any) -> Any:
        calls.append((model.input_options, calibration))
        return export_module.ExportReport(tmp_path, export_module.Differences(0, 0, 0), None, None)

    monkeypatch.setattr(export_module, "export_model", export_model)
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(synthetic_data.images / "two.png", folder)
    (folder / "slide.czi").touch()
    arguments = ["export", str(tiny_model_file), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--intensity", "full", "--channels", "1"]) == 0
    assert calls == [(InputOptions("full", (1,)), None)]
    assert main([*arguments, "--int8", "--calibration-images", str(folder)]) == 1
    assert calls[1] == (InputOptions("percentile"), [folder / "two.png"])
    assert "1 .czi" in capsys.readouterr().err


def test_python_users_are_warned(tiny_model: MEInst, tmp_path: Path) -> None:
    frames = [Image.new("L", (80, 60), value) for value in (0, 200, 100)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match="only the first of 3 pages") as caught:
        tiny_model.predict(tmp_path / "a.tif")
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=r"shrunk 20\.8 times"):
        tiny_model.predict(np.zeros((2000, 1000, 3), np.uint8), tile="off")
    outcomes: list[ImageResult] = []
    predict_files(tiny_model, [tmp_path / "a.tif"], tmp_path / "out", on_image=outcomes.append)
    assert [outcome.notes.extent.frames for outcome in outcomes] == [3]


def test_large_images_are_reported_once(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (1000, 2000)).save(tmp_path / name)
    options = ["--model", str(tiny_model_file), "--output", str(tmp_path / "out"), "--device=cpu"]
    assert main(["predict", str(tmp_path), *options, "--tile", "off"]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 2 images shrunk so much for the network")
    assert f"{tmp_path / 'a.png'}, 20.8 times" in line
    assert "--tile with a number" in line
