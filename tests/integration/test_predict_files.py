"""Prediction on image files: overlays and COCO results."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SyntheticData
from PIL import Image
from pycocotools.coco import COCO

import meinst.inference.results as results_module
from meinst.data.images import find_images
from meinst.detector.meinst import MEInst
from meinst.detector.passes import TileOptions
from meinst.inference.predict import ImageResult, PredictionSummary, predict_files
from meinst.inference.results import overlay_names, without_overlays


def outcomes_of(model: MEInst, sources: list[Path], output: Path) -> list[ImageResult]:
    """The outcome of each image."""
    outcomes: list[ImageResult] = []
    summary = predict_files(model, sources, output, on_image=outcomes.append)
    failed = sum(outcome.error is not None for outcome in outcomes)
    assert (summary.images, summary.failed) == (len(outcomes), failed)
    return outcomes


def test_no_images(tiny_model: MEInst, tmp_path: Path) -> None:
    assert predict_files(tiny_model, [], tmp_path / "out") == PredictionSummary(0, 0, 0)
    assert list((tmp_path / "out").iterdir()) == []


def test_overlays_and_results(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    sources = [synthetic_data.images / name for name in ("two.png", "tall.jpg", "empty.png")]
    outcomes: list[Any] = []
    selection = tiny_model.selection.override(score_threshold=0.71, max_detections=9)
    summary = predict_files(
        tiny_model, sources, tmp_path, selection=selection, on_image=outcomes.append
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("empty.jpg", "images.json", "predictions.json", "tall.jpg", "two.jpg")
    ]
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert summary == PredictionSummary(3, 0, len(results))
    expected = []
    for image_id, source in enumerate(sources, 1):
        found = tiny_model.predict(source, score_threshold=0.71, max_detections=9)
        expected += found.to_coco(image_id)
        assert 0 < len(found) <= 9
        assert outcomes[image_id - 1].counts == {
            name: found.labels.tolist().count(label)
            for label, name in enumerate(tiny_model.class_names)
            if label in found.labels.tolist()
        }
        with Image.open(source) as image, Image.open(tmp_path / f"{source.stem}.jpg") as overlay:
            assert overlay.size == image.size
            difference = np.asarray(overlay, float) - np.asarray(image, float)
            assert np.abs(difference).mean() > 1  # something is drawn
    assert results == expected
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(tmp_path / "images.json")).loadRes(str(tmp_path / "predictions.json"))
    assert len(loaded.anns) == len(expected)
    assert loaded.imgs[2] == {
        "id": 2,
        "file_name": str(sources[1]),
        "width": 90,
        "height": 150,
        "overlay": "tall.jpg",
    }
    assert [category["name"] for category in loaded.cats.values()] == ["box", "disc"]


def test_overlay_names_are_unique(tmp_path: Path) -> None:
    sources = [Path(name) for name in ("a/x.png", "b/x.png", "b/X.tif", "x_2.bmp", "y.tar.gz")]
    names = overlay_names(sources, tmp_path)
    assert names == ["x.jpg", "x_2.jpg", "X_3.jpg", "x_2_2.jpg", "y.tar.jpg"]


def test_sources_in_the_output_folder_survive(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    source = tmp_path / "tall.jpg"
    shutil.copy(synthetic_data.images / "tall.jpg", source)
    before = source.read_bytes()
    (outcome,) = outcomes_of(tiny_model, [source], tmp_path / "." / "")
    assert outcome.overlay == tmp_path / "tall_2.jpg"
    assert source.read_bytes() == before


def test_unreadable_image_is_left_out(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    out = tmp_path / "out"
    sources = [synthetic_data.images / "two.png", broken, synthetic_data.images / "small.png"]
    outcomes = outcomes_of(tiny_model, sources, out)
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert "empty (0 bytes)" in str(outcomes[1].error)
    assert outcomes[1].overlay is None
    images = json.loads((out / "images.json").read_text())["images"]
    assert [image["id"] for image in images] == [1, 3]
    ids = {result["image_id"] for result in json.loads((out / "predictions.json").read_text())}
    assert ids == {1, 3}
    assert sorted(path.name for path in out.iterdir()) == [
        *("images.json", "predictions.json", "small.jpg", "two.jpg")
    ]


def test_earlier_results_survive_when_all_images_fail(tiny_model: MEInst, tmp_path: Path) -> None:
    images, earlier = tmp_path / "images.json", tmp_path / "predictions.json"
    images.write_text('{"images": []}')
    earlier.write_text("[1]")
    outcomes = outcomes_of(tiny_model, [tmp_path / "missing.png"], tmp_path)
    assert "does not exist" in str(outcomes[0].error)
    assert earlier.read_text() == "[1]"
    assert sorted(tmp_path.iterdir()) == [images, earlier]


def test_only_files_of_an_earlier_run_are_overwritten(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    mine = tmp_path / "two.jpg"
    mine.write_bytes(b"holiday")
    source = synthetic_data.images / "two.png"
    for _ in range(2):  # the second run replaces the files of the first
        (outcome,) = outcomes_of(tiny_model, [source], tmp_path)
        assert outcome.overlay == tmp_path / "two_2.jpg"
    assert mine.read_bytes() == b"holiday"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("images.json", "predictions.json", "two.jpg", "two_2.jpg")
    ]


@pytest.mark.parametrize("name", ["images.json", "predictions.json"])
@pytest.mark.parametrize("content", ["[]", '{"images": [{"id": 1}]}', "no JSON"])
def test_other_json_files_of_these_names_are_not_overwritten(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path, name: str, content: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FileExistsError, match="choose another --output"):
        predict_files(tiny_model, [synthetic_data.images / "two.png"], tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]


def test_interrupted_run_keeps_finished_results(
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def stop(result: Any) -> None:
        if result.source.name == "tall.jpg":
            raise KeyboardInterrupt

    sources = [synthetic_data.images / name for name in ("two.png", "tall.jpg", "small.png")]
    with pytest.raises(KeyboardInterrupt):
        predict_files(tiny_model, sources, tmp_path, on_image=stop)
    assert "2 images are done; continue with --resume" in caplog.text
    images = json.loads((tmp_path / "images.json").read_text())["images"]
    assert [image["overlay"] for image in images] == ["two.jpg", "tall.jpg"]
    results = json.loads((tmp_path / "predictions.json").read_text())
    assert {result["image_id"] for result in results} == {1, 2}


def test_overlay_that_cannot_be_written_fails_only_its_image(
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = results_module.write_atomically

    def fail_once(path: Path, content: bytes) -> None:
        if path.name == "two.jpg":
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(path))
        write(path, content)

    monkeypatch.setattr(results_module, "write_atomically", fail_once)
    sources = [synthetic_data.images / name for name in ("two.png", "small.png")]
    outcomes = outcomes_of(tiny_model, sources, tmp_path)
    assert "File name too long" in str(outcomes[0].error)
    ids = {r["image_id"] for r in json.loads((tmp_path / "predictions.json").read_text())}
    assert ids == {2}  # an image without an overlay has no results


def test_faulty_arguments_are_reported_before_any_work(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    sources = [synthetic_data.images / "two.png"]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match=r"below.*cannot be written"):
        predict_files(tiny_model, sources, file / "below")


def test_overlays_of_an_earlier_run_are_not_segmented(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(synthetic_data.images / "two.png", pictures)
    mine = pictures / "mine.jpg"
    mine.write_bytes(b"not written by a run")
    for _ in range(2):
        sources = without_overlays(find_images([pictures]), pictures)
        assert sources == [mine, pictures / "two.png"]
        predict_files(tiny_model, sources[1:], pictures)
        assert (pictures / "two.jpg").is_file()
    assert without_overlays(sources, tmp_path) == sources
    # The same holds for earlier runs and for runs that were killed before they wrote their lists.
    shutil.copy(synthetic_data.images / "large.png", pictures)
    predict_files(tiny_model, [pictures / "large.png"], pictures)
    own = [pictures / "large.png", mine, pictures / "two.png"]
    assert without_overlays(find_images([pictures]), pictures) == own
    for name in ("images.json", "predictions.json"):
        (pictures / name).unlink()
    assert without_overlays(find_images([pictures]), pictures) == own
    assert overlay_names(own, pictures) == ["large.jpg", "mine_2.jpg", "two.jpg"]


def test_many_equal_stems_take_linear_time(tmp_path: Path) -> None:
    (tmp_path / "a_3.jpg").touch()
    sources = [Path(f"folder{n}/{'Aa'[n % 2]}.png") for n in range(5)]
    assert overlay_names(sources, tmp_path) == ["A.jpg", "a_2.jpg", "A_4.jpg", "a_5.jpg", "A_6.jpg"]
    sources = [Path(f"folder{n}/image.png") for n in range(20_000)]
    start = time.process_time()  # CPU time, since other processes may be running
    assert overlay_names(sources, tmp_path)[-1] == "image_20000.jpg"
    assert time.process_time() - start < 5  # it would take minutes if each search started at 2


def test_images_too_large_for_jpeg_get_a_smaller_overlay(
    tiny_model: MEInst, tmp_path: Path
) -> None:
    Image.new("RGB", (65_600, 2)).save(tmp_path / "scan.png")
    output, whole = tmp_path / "out", TileOptions("off")
    assert not predict_files(tiny_model, [tmp_path / "scan.png"], output, tiles=whole).failed
    with Image.open(tmp_path / "out" / "scan.jpg") as overlay:
        assert overlay.width == 65_500
    (image,) = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert (image["width"], image["height"]) == (65_600, 2)


def test_long_file_names(tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path) -> None:
    source = tmp_path / f"{'n' * 251}.png"
    shutil.copy(synthetic_data.images / "two.png", source)
    (outcome,) = outcomes_of(tiny_model, [source], tmp_path / "out")
    assert outcome.error is None
