"""``meinst codec evaluate`` and ``meinst codec compare`` on synthetic annotations."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import SyntheticData
from synthetic_masks import run

from meinst.cli import codec_compare, codec_evaluate
from meinst.codec_tools.count import count_masks
from meinst.codecs import DCTCodec, PCACodec


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


def test_evaluate_prints_scores(
    codec: Path, synthetic_data: SyntheticData, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("evaluate", codec, synthetic_data.annotations) == 0
    shown = capsys.readouterr()
    assert [line[:5] for line in shown.err.splitlines()] == ["note:"]
    assert "dct codec, K = 16, S = 14: 64 bytes per instance" in shown.out
    rows = re.findall(r"│ (all|small|medium|large|disc|box) +│ +(\d+) │", shown.out)
    counts = {name: int(count) for name, count in rows}
    assert counts["all"] == counts["disc"] + counts["box"] == 9
    assert counts["small"] + counts["medium"] + counts["large"] == 9
    assert "star" not in shown.out
    assert [path.name for path in tmp_path.iterdir()] == ["codec.npz"]


def test_evaluate_writes_a_report(
    codec: Path, synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder, copied = tmp_path / "new" / "report", tmp_path / "copied.json"
    copied.write_bytes(synthetic_data.annotations.read_bytes())
    files = (synthetic_data.annotations, copied)
    assert run("evaluate", codec, *files, "--output", folder) == 0
    assert [line[:5] for line in capsys.readouterr().err.splitlines()] == ["note:"] * 2
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


def test_evaluate_does_not_overwrite_metrics_of_a_training(
    codec: Path, synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text('{"update": 8}')
    assert run("evaluate", codec, synthetic_data.annotations, "--output", tmp_path) == 2
    assert "metrics.json was not written by" in capsys.readouterr().err
    assert (tmp_path / "metrics.json").read_text() == '{"update": 8}'


def test_evaluate_without_matplotlib(
    codec: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_matplotlib(monkeypatch)
    folder = tmp_path / "report"
    assert run("evaluate", codec, synthetic_data.annotations, "--output", folder) == 0
    assert "report.html was not written; it needs matplotlib" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "instances.csv"}


def test_evaluate_prints_what_it_leaves_out(
    synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = synthetic_data.content()
    del content["categories"][2]  # it has no instances, about which a codec per class would warn
    known = tmp_path / "known.json"
    known.write_text(json.dumps(content))
    sums = count_masks([known], [14], per_class=True).moments[14]
    codec = PCACodec(1, 14, class_names=("disc", "box")).fit_moments(sums)
    codec.save(tmp_path / "classes.npz")
    content["categories"][1]["name"] = "cube"
    content["annotations"][0]["segmentation"] = []
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    capsys.readouterr()
    assert run("evaluate", tmp_path / "classes.npz", path) == 0
    first, crowd, second = filter(None, capsys.readouterr().err.splitlines())
    assert first == f"warning: {path}: dropped: 1 x no mask (annotation 1)"
    assert crowd == f"note: {path}: 1 x crowd region, not used as an instance (annotation 5)"
    assert second.startswith("warning: not measured")
    assert second.endswith(": cube")


def test_compare_continues_after_a_failed_fit(
    synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = synthetic_data.content()
    few["annotations"] = few["annotations"][:6]
    fit = tmp_path / "few.json"
    fit.write_text(json.dumps(few))
    folder = tmp_path / "sweep"
    options = ("--fit", fit, "--kinds", "dct", "autoencoder", "--n-components", 30)
    sizes = ("--mask-sizes", 14, "--output", folder)
    assert run("compare", synthetic_data.annotations, *options, *sizes) == 1
    assert "warning: autoencoder, K = 30, S = 14: " in capsys.readouterr().err
    with (folder / "compare.csv").open(newline="") as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["dct"]
    options = ("--fit", fit, "--kinds", "autoencoder", "--n-components", 30)
    assert run("compare", synthetic_data.annotations, *options, *sizes) == 2
    assert "error: none of the codecs could be fitted" in capsys.readouterr().err


def test_compare_writes_tables_and_a_plot(
    synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "sweep"
    options = ("--n-components", 2, 300, "--mask-sizes", 20, 28, "--output", folder)
    assert (
        run("compare", synthetic_data.annotations, "--fit", synthetic_data.annotations, *options)
        == 0
    )
    shown = capsys.readouterr()
    note, *warnings = shown.err.splitlines()
    assert note.startswith("note: ")
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
    # 300 numbers are 1200 bytes, so only codes of 1 or 2 numbers qualify.
    assert re.match(r"Best AP ceiling below 1000 bytes per instance: (pca|dct), K = 2", best)
    assert best in shown.out


def test_compare_without_matplotlib(
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    without_matplotlib(monkeypatch)
    options = (
        "--kinds",
        "dct",
        "--n-components",
        9,
        "--mask-sizes",
        14,
        "--output",
        tmp_path / "o",
    )
    assert run("compare", synthetic_data.annotations, *options) == 0
    assert "compare.png was not drawn; it needs matplotlib" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"compare.csv", "compare.md"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate"], "missing arguments: CODEC, ANNOTATIONS"),
        (
            ["evaluate", "CODEC"],
            "missing arguments: ANNOTATIONS; see `meinst codec evaluate --help`",
        ),
        (["evaluate", "CODEC", "/none.json"], "/none.json does not exist"),
        (["evaluate", "/none.npz", "JSON"], "/none.npz"),
        (["evaluate", "JSON", "JSON"], "is not a valid mask codec file"),
        (["evaluate", "CODEC", "EMPTY"], "no instances to measure"),
        (["evaluate", "CODEC", "JSON", "--output", "CODEC/x"], "cannot be written"),
        (["compare", "JSON"], "missing arguments: --output"),
        (
            ["compare", "JSON", "--output", "OUT", "--kinds", "cdt"],
            "pca, dct, grid, autoencoder, got 'cdt'",
        ),
        (["compare", "JSON", "--output", "OUT", "--mask-sizes", "14"], "a mask size of 14"),
        (
            ["compare", "JSON", "--output", "OUT", "--kinds"],
            "--kinds: expected at least one argument",
        ),
        (["compare", "EMPTY", "--output", "OUT"], "no instances to measure"),
        (["compare", "JSON", "--output", "OUT", "--fit", "/none.json"], "does not exist"),
    ],
)
def test_known_errors_are_one_line(
    arguments: list[str],
    message: str,
    codec: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MEINST_TRACEBACK", raising=False)
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps(synthetic_data.content() | {"annotations": []}))
    places = {"CODEC": codec, "JSON": synthetic_data.annotations, "EMPTY": empty}
    places["OUT"] = tmp_path / "out"
    for name, place in places.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    *notes, error = shown.err.splitlines()
    assert shown.out == ""
    assert all(note.startswith("note: ") for note in notes)
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("command", ["fit", "merge", "evaluate", "compare", "show"])
def test_rejects_a_file_given_twice(
    command: str,
    codec: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = synthetic_data.annotations.parent
    twice = [
        synthetic_data.annotations,
        folder / ".." / folder.name / synthetic_data.annotations.name,
    ]
    first = [codec] if command in ("evaluate", "show") else []
    output = tmp_path / "out.png"
    assert run(command, *first, *twice, "--output", output) == 2
    assert "are the same file, which would count twice" in capsys.readouterr().err
    assert not output.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["absent.json", "--kind", "grid", "--n-components", "49"], "absent.json does not exist"),
        (["absent.json", "--workers", "0"], "workers must be at least 1, got 0"),
        (["absent.json", "--min-size", "-5"], "min_size must be at least 0, got -5"),
    ],
)
def test_fit_rejects_impossible_input(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("fit", *options, "--output", tmp_path / "codec.npz") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
