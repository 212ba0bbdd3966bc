"""``meinst evaluate --report`` and its parts: a page with pictures, and the figures as JSON."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SyntheticData, make_tiny_model
from html_reader import Reader
from PIL import Image

import meinst
from meinst.cli.main import main
from meinst.data.coco import CocoData, read_coco
from meinst.detector.meinst import MEInst
from meinst.diagnosis.diagnose import Diagnosis, ap_ceiling, diagnose
from meinst.diagnosis.html import write_report
from meinst.diagnosis.kinds import ERRORS

NASTY = "<b>disc</b> & \"co\" 'x' $y_1$"


def rename(synthetic_data: SyntheticData, path: Path, names: dict[str, str]) -> CocoData:
    """The synthetic data with other names of categories."""
    content = synthetic_data.content()
    for category in content["categories"]:
        category["name"] = names.get(category["name"], category["name"])
    path.write_text(json.dumps(content))
    return read_coco(path, synthetic_data.images)


@pytest.fixture(scope="module")
def nasty(synthetic_data: SyntheticData, tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    """Of a random model; the name of the discs is HTML."""
    data = rename(synthetic_data, tmp_path_factory.mktemp("data") / "a.json", {"disc": NASTY})
    return diagnose(make_tiny_model(("box", NASTY)), data)


@pytest.fixture(scope="module")
def path(nasty: Diagnosis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(nasty, tmp_path_factory.mktemp("out") / "new", title="<tiny>")


@pytest.fixture(scope="module")
def page(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def test_page_has_no_external_resources(path: Path, page: Reader) -> None:
    text = re.sub(r"base64,[^']*'", "'", path.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch|XMLHttp|\bimport\b", text, re.I)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    places = [attributes["src"] or "" for attributes in page.all("img")]
    assert len(places) > 5 + 2
    assert all(re.match("data:image/(png|jpeg);base64,", place) for place in places)


def test_pictures_are_valid(page: Reader) -> None:
    sizes = []
    for attributes in page.all("img"):
        assert attributes["alt"]
        kind, _, encoded = (attributes["src"] or "").partition(",")
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as picture:
            picture.load()
            assert (picture.format or "").lower() in kind
            sizes.append(picture.size)
            if "width" in attributes:
                assert picture.size == (int(attributes["width"]), int(attributes["height"]))
    assert (520, 473) in sizes  # large.png, 220 x 200 pixels


def test_names_are_escaped(path: Path, page: Reader) -> None:
    assert "<b>disc" not in path.read_text(encoding="utf-8")
    assert "<tiny>" in page.texts
    assert any(NASTY in row for table in page.tables for row in table)


def test_table_and_json_hold_the_same_figures(path: Path, page: Reader, nasty: Diagnosis) -> None:
    figures = json.loads((path.parent / "report.json").read_text())
    assert figures == {"model": "<tiny>", **json.loads(json.dumps(nasty.to_dict()))}
    rows = [row for row in page.tables[0] if row[0] in {kind.title for kind in ERRORS}]
    for row, error in zip(rows, figures["errors"], strict=True):
        assert row[:3] == [error["kind"], str(error["detections"]), str(error["objects"])]
        assert row[4:6] == [f"{error['dap']:.3f}", f"{error['dap50']:.3f}"]
    cells = figures["confusion"]["cells"]  # rows 0 and 1 are classes, 2 is background
    assert figures["confusion"]["names"] == [NASTY, "box", "background"]
    assert sum(count for row, _, count in cells if row < 2) == figures["metrics"]["instances"] == 9


def test_metrics_are_those_of_evaluate(tiny_model: MEInst, synthetic_data: SyntheticData) -> None:
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    diagnosis = meinst.diagnose(tiny_model, data, max_detections=90)
    assert diagnosis.metrics == meinst.evaluate(tiny_model, data, max_detections=90)
    assert diagnosis.metrics.segm.ap
    lost = sum(error.lost or 0 for error in diagnosis.errors)
    assert lost == pytest.approx(1)
    assert diagnosis.seed is None
    assert diagnosis.outlines.refined_ceiling is None


def test_refined_masks_have_a_ceiling_of_their_own(synthetic_data: SyntheticData) -> None:
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    outlines = diagnose(make_tiny_model(refine_channels=4), data).outlines
    assert outlines.refined_ceiling is not None
    assert outlines.refined_ceiling.ap > outlines.codec_ceiling.ap > 0
    assert outlines.ceiling is outlines.refined_ceiling


def test_ceiling_is_of_the_measured_classes_only(
    tiny_model: MEInst, synthetic_data: SyntheticData
) -> None:
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    assert list(ap_ceiling(tiny_model.codec, data, ["disc"]).per_class) == ["disc"]


def silent_model() -> MEInst:
    """A model that detects nothing at all."""
    model = make_tiny_model()
    with torch.no_grad():
        model.head.logits.bias.fill_(-100.0)
    return model


def test_no_detections(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    diagnosis = diagnose(silent_model(), data)
    assert diagnosis.metrics.detections == 0
    missed = diagnosis.errors[-1]
    assert (missed.kind, missed.objects, missed.share, missed.lost) == ("missed", 9, 1.0, 1.0)
    assert missed.dap == pytest.approx(1)
    assert diagnosis.calibration.error is None
    assert diagnosis.outlines.mean_iou is None
    page = Reader(write_report(diagnosis, tmp_path).read_text())
    assert "None of at least the working score." in " ".join(page.texts)


def test_a_single_class(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    data = rename(synthetic_data, tmp_path / "one.json", {"box": "ring", "star": "box"})
    page = Reader(write_report(diagnose(make_tiny_model(("disc",)), data), tmp_path).read_text())
    assert "By class" not in page.texts
    assert any("not measured: categories" in text for text in page.texts)


def test_many_classes(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    content = synthetic_data.content()
    names = ["disc", "box", *(f"thing {n}" for n in range(78))]
    content["categories"] = [{"id": k, "name": name} for k, name in enumerate(names, start=3)]
    for entry in content["annotations"]:
        entry["category_id"] = 3 if entry["category_id"] == 3 else 4
    annotations = tmp_path / "many.json"
    annotations.write_text(json.dumps(content))
    model = make_tiny_model(tuple(names))
    diagnosis = diagnose(model, read_coco(annotations, synthetic_data.images))
    assert diagnosis.confusion.shape == (81, 81)
    page = Reader(write_report(diagnosis, tmp_path).read_text())
    assert len(page.tables[2]) > 10  # classes without objects that were detected are listed too


def test_pictures_that_cannot_be_read_are_left_out(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(synthetic_data.images, images)
    for name in ("two.png", "large.png", "crowd.png", "small.png", "tall.jpg"):
        (images / name).write_bytes(b"nothing")
    diagnosis = diagnose(tiny_model, read_coco(synthetic_data.annotations, images))
    page = Reader(write_report(diagnosis, tmp_path / "out").read_text())
    assert any("5 images could not be read" in text for text in page.texts)
    drawn = {attributes["alt"] for attributes in page.all("img")}
    assert not any("large.png" in (alt or "") for alt in drawn)


def test_sample_is_reported(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    diagnosis = diagnose(tiny_model, data, max_images=4, seed=3)
    assert (diagnosis.metrics.images, diagnosis.total_images, diagnosis.seed) == (4, 6, 3)
    page = Reader(write_report(diagnosis, tmp_path).read_text())
    assert any("4 of 6 images, chosen at random by the seed 3" in text for text in page.texts)
    whole = diagnose(tiny_model, data, max_images=6, seed=3)
    assert (whole.metrics.images, whole.seed) == (6, None)
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        diagnose(tiny_model, data, max_images=0)


def command(synthetic_data: SyntheticData, model: Path, *more: str | Path) -> list[str]:
    images = ["--images", str(synthetic_data.images)]
    annotations = ["--annotations", str(synthetic_data.annotations)]
    options = ["--model", str(model), *images, *annotations, "--device", "cpu"]
    return ["evaluate", *options, *map(str, more)]


def test_command(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures, report = tmp_path / "figures.json", tmp_path / "report"
    more = ("--report", report, "--output", figures)
    assert main(command(synthetic_data, tiny_model_file, *more)) == 0
    assert "AP, IoU 0.50 to 0.95" in capsys.readouterr().out
    assert sorted(path.name for path in report.iterdir()) == ["report.html", "report.json"]
    written: dict[str, Any] = json.loads((report / "report.json").read_text())
    metrics = json.loads(figures.read_text())
    assert metrics.pop("model") == written["model"] == str(tiny_model_file)
    assert written["metrics"] == metrics


def test_report_that_cannot_be_written_costs_no_figures(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr("meinst.diagnosis.html.write_report", fail)
    figures = tmp_path / "figures.json"
    more = ("--report", tmp_path / "report", "--output", figures)
    assert main(command(synthetic_data, tiny_model_file, *more)) == 2
    printed = capsys.readouterr()
    assert "AP, IoU 0.50 to 0.95" in printed.out
    assert "No space left" in printed.err
    assert json.loads(figures.read_text())["images"] == 6


def test_command_without_plots_stops_before_the_evaluation(
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    missing = tmp_path / "no-model.safetensors"
    assert main(command(synthetic_data, missing, "--report", tmp_path / "report")) == 2
    error = capsys.readouterr().err
    assert "needs matplotlib for its plots: pip install 'meinst[train]'" in error
    assert error.count("\n") == 1


def test_report_folder_that_is_a_file_is_one_line(
    synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    missing = tmp_path / "no-model.safetensors"
    assert main(command(synthetic_data, missing, "--report", taken)) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r".*taken cannot be written to \(.*\); choose another --report\.\n", error)
