"""Kills, full disks, read-only folders and second processes, as users meet them."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import SyntheticData
from processes import started

from meinst.cli.main import main
from meinst.locks import lock_file

SCRIPT = Path(__file__).parents[2] / "scripts" / "faults.py"


def content_of(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones included."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pictures(synthetic_data: SyntheticData, tmp_path: Path) -> Path:
    """A folder of 20 pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(20):
        shutil.copy(synthetic_data.images / "small.png", folder / f"{index:03}.png")
    return folder


def predict(pictures: Path, model: Path, output: Path) -> list[str]:
    options = ["--model", str(model), "--output", str(output), "--device", "cpu"]
    return ["predict", str(pictures), *options, "--max-detections", "20"]


def test_two_processes_and_a_kill(
    pictures: Path, tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second process is rejected, and after a kill the run continues where it was."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(predict(pictures, tiny_model_file, whole)) == 0
    command = predict(pictures, tiny_model_file, out)
    with started([sys.executable, "-m", "meinst", *command], stdout=subprocess.PIPE) as process:
        assert b"000.png" in process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        capsys.readouterr()
        assert main([*command, "--resume"]) == 2
        error = capsys.readouterr().err
        assert f"error: {out}: another process of meinst (process {process.pid})" in error
    assert process.returncode == -signal.SIGKILL
    (out / ".meinst.abc").write_bytes(b"half an overlay")
    assert main(command) == 2
    assert f"error: {out} contains an unfinished run" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out.count(".png: ") < 20
    assert content_of(out) == content_of(whole)


@pytest.mark.parametrize(
    ("formats", "limit"),
    [("overlay,coco", "predictions.json"), ("overlay,csv", "measurements.csv")]
    + [("overlay,parquet", 60_000)] * (find_spec("pyarrow") is not None),
)
def test_full_disk(
    formats: str, limit: str | int, pictures: Path, tiny_model_file: Path, tmp_path: Path
) -> None:
    """Files cannot grow beyond a limit, which the file of all images reaches after some images."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    save = ["--save", formats]
    assert main([*predict(pictures, tiny_model_file, whole), *save]) == 0
    if isinstance(limit, str):
        limit = (whole / limit).stat().st_size // 2
    command = [*predict(pictures, tiny_model_file, out), *save]
    full = subprocess.run(
        [sys.executable, "-m", "meinst", *command],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert full.returncode == 2
    done = full.stdout.count(".png: ")
    assert 2 < done < 18
    message = f"File too large; {done} of 20 images are done; free some space and continue with"
    assert full.stderr.splitlines() == [f"error: {out}: {message} --resume."]
    assert main([*command, "--resume"]) == 0
    assert content_of(out) == content_of(whole)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder that nobody can write to")
@pytest.mark.parametrize("command", ["predict", "train", "codec fit", "export", "evaluate"])
def test_read_only_folder(
    command: str,
    pictures: Path,
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MEINST_TRACEBACK", raising=False)
    images, annotations = str(synthetic_data.images), str(synthetic_data.annotations)
    data = ["--train-images", images, "--train-annotations", annotations]
    data += ["--val-images", images, "--val-annotations", annotations]
    measured = ["--model", str(tiny_model_file), "--images", images, "--annotations", annotations]
    arguments = {
        "predict": predict(pictures, tiny_model_file, Path("/proc/out")),
        "train": ["train", *data, "--output", "/proc/out"],
        "codec fit": ["codec", "fit", annotations, "--output", "/proc/codec.npz"],
        "export": ["export", str(tiny_model_file), "--output", "/proc/out"],
        "evaluate": ["evaluate", *measured, "--output", "/proc/metrics.json"],
    }
    if command == "train":
        pytest.importorskip("lightning")
    assert main(arguments[command]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: /proc")
    assert "cannot be written to (No such file or directory); choose another --output" in errors[0]


def test_two_fits_do_not_write_one_codec(
    synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "codec.npz"
    fit = ["codec", "fit", str(synthetic_data.annotations), "--n-components", "2"]
    with lock_file(output):
        assert main([*fit, "--output", str(output)]) == 2
    assert f"error: {output}: another process of meinst" in capsys.readouterr().err
    (tmp_path / ".meinst.abc").write_bytes(b"of a killed process")
    assert main([*fit, "--output", str(output)]) == 0
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_killed_commands_lose_nothing() -> None:
    """A few of the trials of ``scripts/faults.py``."""
    for package in ("lightning", "pyarrow", "roifile", "zarr"):
        pytest.importorskip(package)
    command = [sys.executable, str(SCRIPT), "--kills", "1"]
    done = subprocess.run(
        [*command, "--commands", "predict", "formats", "codec fit"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[-3:]]
    names = ("predict", "formats", "codec")
    assert [(row[0], row[-1]) for row in rows] == [(name, "0") for name in names]
