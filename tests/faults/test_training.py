"""Faults of a training run: damaged checkpoints and logs, NaN, a second process, a clock."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from short_training import WARNINGS, content_of, make_options

from meinst.locks import lock_folder
from meinst.training.options import TrainOptions

if TYPE_CHECKING:
    from conftest import SyntheticData

pytest.importorskip("lightning")

pytestmark = WARNINGS


@pytest.fixture
def options(finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path) -> TrainOptions:
    """Options that resume a copy of the finished run."""
    shutil.copytree(finished_run, tmp_path / "run")
    made = make_options(synthetic_data, tmp_path / "run")
    return replace(made, resume=True, recipe=None)


def train(options: TrainOptions) -> None:
    from meinst.training.train import train as run

    run(options)


def update_of(path: Path) -> int:
    update: int = torch.load(path, weights_only=True)["global_step"]
    return update


@pytest.mark.parametrize("damage", ["half", "missing", "NaN"])
def test_run_continues_from_the_best_checkpoint_if_the_last_is_damaged(
    options: TrainOptions, finished_run: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    last, best = options.last_checkpoint, options.best_checkpoint
    if damage == "half":
        last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    elif damage == "missing":
        last.unlink()
    else:
        checkpoint = torch.load(last, weights_only=True)
        checkpoint["state_dict"]["model.head.codes.bias"].fill_(math.nan)
        torch.save(checkpoint, last)
    (last.parent / ".meinst.abc").write_bytes(b"of a killed process")
    with pytest.raises(ValueError, match=r"contains an earlier run; continue it with --resume"):
        train(replace(options, resume=False))
    train(options)
    update = update_of(best)
    assert f"continuing from {best} of update {update} instead" in caplog.text
    assert str(last) in caplog.text
    assert content_of(options.output) == content_of(finished_run)
    assert not list(options.output.rglob(".meinst*"))


def test_without_a_usable_checkpoint_both_are_named(options: TrainOptions) -> None:
    options.last_checkpoint.write_bytes(b"")
    options.best_checkpoint.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"last\.ckpt: not .*best\.ckpt: not .*another --output"):
        train(options)


def test_last_checkpoint_replaces_a_damaged_best_one(
    options: TrainOptions, caplog: pytest.LogCaptureFixture
) -> None:
    options.best_checkpoint.write_bytes(b"half")
    (options.output / "best.safetensors").unlink()
    train(options)
    assert caplog.text.count("best.safetensors is made from") == 1
    assert f"{options.best_checkpoint}: not a complete checkpoint" in caplog.text
    last, best = (load_file(options.output / f"{name}.safetensors") for name in ("last", "best"))
    for name, tensor in last.items():
        assert torch.equal(best[name], tensor), name


def test_report_that_fails_costs_a_warning(
    options: TrainOptions,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import meinst.training.train as module

    logs = options.output / "logs"
    shutil.copytree(logs / "version_0", logs / "version_0_backup")
    rows = logs / "version_0" / "metrics.csv"
    rows.write_bytes(rows.read_bytes()[:-9])
    names = ("curves.png", "overlays.jpg", "report.html")
    for name in names:
        (options.output / name).unlink()
    options = replace(options, report=True)
    train(options)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert all((options.output / name).is_file() for name in names)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError("too\nlarge")

    monkeypatch.setattr(module, "draw_sheet", fail)
    monkeypatch.setattr(module, "read_logs", fail)
    monkeypatch.setattr(module, "diagnose", fail)
    (options.output / "best.safetensors").unlink()
    train(options)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned == [
        f"{options.output / name} was not drawn (MemoryError: too large)" for name in names
    ]
    assert content_of(options.output) == content_of(finished_run)


def test_nan_weights_keep_the_last_good_checkpoint(
    synthetic_data: SyntheticData,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from meinst.training.callbacks import LastCheckpoint

    options = make_options(synthetic_data, tmp_path / "run")
    end_of_batch = LastCheckpoint.on_train_batch_end

    def poison(callback: LastCheckpoint, trainer: Any, *others: Any) -> None:
        if trainer.global_step == 6:
            trainer.lightning_module.model.head.codes.bias.data[0] = math.nan
        end_of_batch(callback, trainer, *others)

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_batch_end", poison)
        with pytest.raises(FloatingPointError, match=r"codes\.bias\) by update 6.*--resume"):
            train(options)
    assert update_of(options.last_checkpoint) == 4  # saved with its validation
    train(replace(options, resume=True, recipe=None))
    assert content_of(options.output) == content_of(finished_run)


def test_two_runs_do_not_share_a_folder(options: TrainOptions, finished_run: Path) -> None:
    with (
        lock_folder(options.output),
        pytest.raises(BlockingIOError, match=f"{options.output}: another process"),
    ):
        train(options)
    assert content_of(options.output) == content_of(finished_run)


@pytest.fixture
def jumping_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time of day jumps by a year, back and forth, with every look at it."""
    offsets = [0.0]
    now = time.time

    def jump() -> float:
        offsets.append(-offsets[-1] or 3e7)
        return now() + offsets[-1]

    monkeypatch.setattr(time, "time", jump)
    yield
    assert len(offsets) > 2  # it was looked at


@pytest.mark.usefixtures("jumping_clock")
def test_neither_the_clock_nor_the_temporary_folder_matters(
    synthetic_data: SyntheticData,
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    options = make_options(synthetic_data, tmp_path / "run")
    train(options)
    assert content_of(options.output) == content_of(finished_run)
