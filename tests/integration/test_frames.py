"""`meinst predict --frames --channels`: stacks and series through all formats, and resumed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from stacks import STACK, T, Z, write_imagej, write_ome
from test_predict_formats import content_of, stop_after

import meinst
from meinst import Detections, TileOptions
from meinst.cli.main import main
from meinst.data.images import to_rgb
from meinst.detector.meinst import MEInst
from meinst.images.intensity import InputOptions
from meinst.inference.predict import predict_files

pytest.importorskip("pyarrow")

FORMATS = "overlay,coco,parquet,geojson,labels,yolo,labelme,csv"


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    return write_imagej(tmp_path / "stack.tif", STACK, "TZCYX", resolution=(2, 2))


def test_each_frame_is_an_image(tiny_model_file: Path, stack: Path, tmp_path: Path) -> None:
    model = meinst.load(str(tiny_model_file)).fuse()
    single = tmp_path / "single.tif"
    tifffile.imwrite(single, STACK[1, 2, 1])
    out = tmp_path / "out"
    arguments = [str(stack), str(single), "--model", str(tiny_model_file), "--device", "cpu"]
    arguments += ["--output", str(out), "--save", FORMATS]
    assert main(["predict", *arguments, "--frames", "all", "--channels", "1"]) == 1  # of single
    images = json.loads((out / "images.json").read_text())["images"]
    assert [(each["frame"], each["t"], each["z"]) for each in images] == [
        (n, *divmod(n, Z)) for n in range(T * Z)
    ]
    assert {each["file_name"] for each in images} == {str(stack)}
    results = json.loads((out / "predictions.json").read_text())
    with (out / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results) > 0
    with Detections.from_parquet(out / "detections.parquet") as stored:
        for number, image in enumerate(images):
            t, z = divmod(number, Z)
            found = stored[image["id"]]
            expected = model.predict(to_rgb(STACK[t, z, 1]))
            assert found.to_coco(1) == expected.to_coco(1)
            name = f"stack_{number:04d}"
            assert (out / f"{name}.jpg").is_file()
            labels = tifffile.imread(out / "labels" / f"{name}.tif")
            assert np.array_equal(labels > 0, found.masks().numpy().any(0))
            pixels = np.asarray(Image.open(out / "yolo" / "images" / f"{name}.png"))
            np.testing.assert_array_equal(pixels, to_rgb(STACK[t, z, 1]))
            labelme = json.loads((out / "labelme" / f"{name}.json").read_text())
            np.testing.assert_array_equal(
                Image.open(out / "labelme" / labelme["imagePath"]), pixels
            )
            masks = found.masks().numpy()
            mine = [row for row in rows if row["image_id"] == str(image["id"])]
            for row, mask in zip(mine, masks, strict=True):  # both channels, as stored
                if not mask.any():
                    continue
                for channel in range(2):
                    mean = STACK[t, z, channel][mask].mean()
                    assert float(row[f"mean_{channel + 1}"]) == pytest.approx(mean, rel=1e-4)


def test_chosen_frames(
    tiny_model_file: Path, stack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    animation = tmp_path / "a.gif"
    images = [Image.new("L", (80, 60), value) for value in (0, 100, 200, 250)]
    images[0].save(animation, save_all=True, append_images=images[1:])
    common = ["--model", str(tiny_model_file), "--device", "cpu"]

    def predict(frames: str, *sources: Path) -> tuple[int, list[int]]:
        out = tmp_path / f"out-{frames.replace(':', '-')}"
        options = [*common, "--output", str(out), "--frames", frames]
        code = main(["predict", *map(str, sources), *options])
        entries = json.loads((out / "images.json").read_text())["images"]
        return code, [entry["frame"] for entry in entries]

    assert predict("2:9", stack, animation) == (0, [2, 3, 4, 5, 2, 3])
    assert "several channels; only the first of each was used" in capsys.readouterr().err
    assert predict("4", stack, animation) == (1, [4])
    assert "a.gif has 4 frames, numbered 0 to 3, so there is no frame 4" in capsys.readouterr().err
    assert main(["predict", str(stack), *common, "--frames", "3:1"]) == 2
    assert "frames must not be empty, got 3:1" in capsys.readouterr().err
    assert main(["predict", str(stack), *common, "--channels", "1,2"]) == 2
    assert "channels must be one number (grey) or three" in capsys.readouterr().err


def test_resumed_run_of_frames_ends_with_the_same_files(
    tiny_model: MEInst, stack: Path, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    summary = predict_files(tiny_model, [stack], whole, formats=FORMATS, frames="1:")
    assert summary.images == 5
    with pytest.raises(OSError, match="killed"):
        predict_files(
            tiny_model, [stack], out, formats=FORMATS, frames="1:", on_image=stop_after(3)
        )
    with pytest.raises(ValueError, match="list of images is"):
        predict_files(tiny_model, [stack], out, formats=FORMATS, frames="0:5", resume=True)
    predict_files(tiny_model, [stack], out, formats=FORMATS, frames="1:", resume=True)
    assert content_of(out) == content_of(whole)


def test_frames_in_windows(tiny_model: MEInst, tmp_path: Path) -> None:
    large = np.tile(STACK, (1, 1, 1, 8, 6))  # 384 x 384
    path = write_ome(tmp_path / "large.ome.tif", large, "TZCYX", photometric="minisblack")
    tiny_model.input_options = InputOptions(channels=(0, 1, 1))
    try:
        tiles = TileOptions(128)
        predict_files(
            tiny_model,
            [path],
            tmp_path / "out",
            formats="coco,csv",
            tiles=tiles,
            frames="3:5",
        )
        array = np.moveaxis(large[1, 1], 0, -1)
        expected = tiny_model.predict(array, tile=128)
    finally:
        tiny_model.input_options = InputOptions()
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["frame"] for image in images] == [3, 4]
    assert all(image["windows"] > 1 for image in images)
    assert len(images[0]["intensity"]["channels"]) == 3
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    second = [each for each in results if each["image_id"] == 2]
    assert second == expected.to_coco(2)
    with (tmp_path / "out" / "measurements.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["image_id"] == "2"]
    assert len(rows) == len(expected) > 20
    for row, mask in zip(rows, expected.masks().numpy(), strict=True):
        for channel in range(2):
            inside = large[1, 1, channel][mask]
            if inside.size:
                assert float(row[f"mean_{channel + 1}"]) == pytest.approx(inside.mean(), rel=1e-6)
                deviation = float(row[f"deviation_{channel + 1}"])
                assert deviation == pytest.approx(inside.std(), rel=1e-6)


def test_track_frames(tiny_model: MEInst, stack: Path) -> None:
    pytest.importorskip("trackers")
    found = list(tiny_model.track(meinst.read_frames(stack, "0:3")))
    assert len(found) == 3
    assert all(each.track_ids is not None for each in found)
