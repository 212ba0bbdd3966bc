"""``meinst codec evaluate`` and ``meinst codec compare`` on drawn annotations."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import DrawnData
from drawn_masks import run

from meinst.cli import codec_compare, codec_evaluate
from meinst.codecs import DCTCodec, PCACodec
from meinst.engine.codec_fit import count_masks


@pytest.fixture
def codec(tmp_path: Path) -> Path:
    path = tmp_path / "codec.npz"
    DCTCodec(16, 14).save(path)
    return path


def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str, package: str | None = None) -> Any:
        return None if name == "matplotlib" else importlib.util.find_spec(name, package)

    for module in (codec_evaluate, codec_compare):
        monkeypatch.setattr(module, "find_spec", find)


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: meinst codec {command}" in shown
    assert f"examples:\n  meinst codec {command}" in shown


def test_evaluate_shows_numbers(
    codec: Path, drawn_data: DrawnData, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("evaluate", codec, drawn_data.annotations) == 0
    shown = capsys.readouterr()
    assert shown.err.strip() == ""
    assert "dct codec, K = 16, S = 14: 64 bytes an instance" in shown.out
    rows = re.findall(r"│ (all|small|medium|large|disc|box) +│ +(\d+) │", shown.out)
    counts = {name: int(count) for name, count in rows}
    assert counts["all"] == counts["disc"] + counts["box"] == 9
    assert counts["small"] + counts["medium"] + counts["large"] == 9
    assert "star" not in shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["codec.npz"]


def test_evaluate_writes_a_report(
    codec: Path, drawn_data: DrawnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder, copied = tmp_path / "new" / "report", tmp_path / "copied.json"
    copied.write_bytes(drawn_data.annotations.read_bytes())
    files = (drawn_data.annotations, copied)
    assert run("evaluate", codec, *files, "--output", folder) == 0
    assert capsys.readouterr().err.strip() == ""
    assert {path.name for path in folder.iterdir()} == {
        "metrics.json",
        "instances.csv",
        "report.html",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["annotations"] == [str(path) for path in files]
    assert metrics["overall"]["instances"] == 18
    assert 0.8 < metrics["overall"]["mean_iou"] < 1
    with (folder / "instances.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 18


def test_evaluate_does_not_overwrite_a_training_s_metrics(
    codec: Path, drawn_data: DrawnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text('{"update": 8}')
    assert run("evaluate", codec, drawn_data.annotations, "--output", tmp_path) == 2
    assert "metrics.json: not of `meinst codec evaluate`" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").read_text() == '{"update": 8}'


def test_evaluate_without_matplotlib(
    codec: Path,
    drawn_data: DrawnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_matplotlib(monkeypatch)
    folder = tmp_path / "report"
    assert run("evaluate", codec, drawn_data.annotations, "--output", folder) == 0
    told = capsys.readouterr().err.strip()
    assert told == "for the page with pictures: pip install 'meinst[train]'"
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "instances.csv"}


def test_evaluate_tells_what_it_leaves_out(
    drawn_data: DrawnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = drawn_data.content()
    del content["categories"][2]  # of which there is none, and a codec of classes would say so
    known = tmp_path / "known.json"
    known.write_text(json.dumps(content))
    sums = count_masks([known], [14], per_class=True).moments[14]
    codec = PCACodec(1, 14, class_names=("disc", "box")).fit_moments(sums)
    codec.save(tmp_path / "classes.npz")
    content["categories"][1]["name"] = "cube"
    content["annotations"][0]["bbox"] = [1, 1, 0, 0]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert run("evaluate", tmp_path / "classes.npz", path) == 0
    first, second = filter(None, capsys.readouterr().err.splitlines())
    assert first == f"warning: {path}: left out: 1 x box of no area (annotation 1)"
    assert second == "warning: not measured, the codec does not know them: cube"


def test_compare_goes_on_after_a_setting_that_cannot_be_fitted(
    drawn_data: DrawnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = drawn_data.content()
    few["annotations"] = few["annotations"][:6]
    fit = tmp_path / "few.json"
    fit.write_text(json.dumps(few))
    folder = tmp_path / "sweep"
    options = ("--fit", fit, "--kinds", "dct", "autoencoder", "--components", 30)
    sizes = ("--mask-sizes", 14, "--output", folder)
    assert run("compare", drawn_data.annotations, *options, *sizes) == 1
    assert "warning: autoencoder, K = 30, S = 14: " in capsys.readouterr().err
    with (folder / "compare.csv").open(newline="") as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["dct"]
    options = ("--fit", fit, "--kinds", "autoencoder", "--components", 30)
    assert run("compare", drawn_data.annotations, *options, *sizes) == 2
    assert "error: no setting could be fitted" in capsys.readouterr().err


def test_compare_writes_tables_and_a_plot(
    drawn_data: DrawnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "sweep"
    options = ("--components", 2, 300, "--mask-sizes", 20, 28, "--output", folder)
    assert run("compare", drawn_data.annotations, "--fit", drawn_data.annotations, *options) == 0
    shown = capsys.readouterr()
    warnings = shown.err.splitlines()
    assert len(warnings) == 2  # for both mask sizes
    assert all(re.match(r"warning: The 9 masks span \d directions", line) for line in warnings)
    assert {path.name for path in folder.iterdir()} == {
        "compare.csv",
        "compare.md",
        "compare.png",
    }
    with (folder / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = [(row["kind"], row["n_components"], row["mask_size"]) for row in rows]
    assert found == [
        (kind, count, size)
        for kind, counts in (("pca", "2 300"), ("dct", "2 300"), ("grid", "1 289"))
        for size in ("20", "28")
        for count in counts.split()
    ]
    best = (folder / "compare.md").read_text().splitlines()[2]
    # 300 numbers are 1200 bytes, so only the short codes of 2 numbers and 1 are named.
    assert re.match(r"Best AP ceiling below 1000 bytes an instance: (pca|dct), K = 2", best)
    assert best in shown.out


def test_compare_without_matplotlib(
    drawn_data: DrawnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_matplotlib(monkeypatch)
    options = ("--kinds", "dct", "--components", 9, "--mask-sizes", 14, "--output", tmp_path / "o")
    assert run("compare", drawn_data.annotations, *options) == 0
    assert capsys.readouterr().err == "for plots: pip install 'meinst[train]'\n"
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"compare.csv", "compare.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "required"),
        (["evaluate", "CODEC"], "required: annotations; see `meinst codec evaluate --help`"),
        (["evaluate", "CODEC", "/none.json"], "/none.json does not exist"),
        (["evaluate", "/none.npz", "JSON"], "/none.npz"),
        (["evaluate", "JSON", "JSON"], "is no usable mask codec file"),
        (["evaluate", "CODEC", "EMPTY"], "no instance is left to measure a codec on"),
        (["evaluate", "CODEC", "JSON", "--output", "CODEC/x"], "cannot be written"),
        (["compare", "JSON"], "required"),
        (["compare", "JSON", "--output", "OUT", "--kinds", "cdt"], "no codec kind 'cdt'"),
        (["compare", "JSON", "--output", "OUT", "--mask-sizes", "14"], "a mask size of 14"),
        (["compare", "EMPTY", "--output", "OUT"], "no instance is left to measure a codec on"),
        (["compare", "JSON", "--output", "OUT", "--fit", "/none.json"], "does not exist"),
    ],
)
def test_known_errors_are_one_line(
    arguments: list[str],
    message: str,
    codec: Path,
    drawn_data: DrawnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MEINST_TRACEBACK", raising=False)
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(drawn_data.content() | {"annotations": []}))
    places = {"CODEC": codec, "JSON": drawn_data.annotations, "EMPTY": empty}
    places["OUT"] = tmp_path / "out"
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    told = shown.err.strip()
    assert shown.out == ""
    assert told.startswith("error: ")
    assert "\n" not in told
    assert message in told


@pytest.mark.parametrize("command", ["fit", "merge", "evaluate", "compare", "show"])
def test_a_file_given_twice_is_refused(
    command: str,
    codec: Path,
    drawn_data: DrawnData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = drawn_data.annotations.parent
    twice = [drawn_data.annotations, folder / ".." / folder.name / drawn_data.annotations.name]
    first = [codec] if command in ("evaluate", "show") else []
    output = tmp_path / "out.png"
    assert run(command, *first, *twice, "--output", output) == 2
    assert "are one file, which would count twice" in capsys.readouterr().err
    assert not output.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["absent.json", "--kind", "grid", "--components", "49"], "absent.json does not exist"),
        (["absent.json", "--workers", "0"], "workers must be at least 1, got 0"),
        (["absent.json", "--min-size", "-5"], "min_size must be at least 0, got -5"),
    ],
)
def test_fit_refuses_what_cannot_be(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", *options, "--output", tmp_path / "codec.npz") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
