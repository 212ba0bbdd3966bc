"""`meinst train --minutes` and `--patience`: planned runs, their end and their repetition."""

from __future__ import annotations

import csv
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from short_training import WARNINGS, make_options, with_values

from meinst.models.recipe import load_recipe
from meinst.training.options import TrainOptions

if TYPE_CHECKING:
    from conftest import SyntheticData

pytest.importorskip("lightning")

pytestmark = WARNINGS


def planned_options(
    data: SyntheticData, finished_run: Path, output: Path, minutes: float
) -> TrainOptions:
    """A run that starts from the small model of another run, and gets its recipe from the plan."""
    options = replace(make_options(data, output, None), random_backbone=False)
    return replace(options, init=str(finished_run / "best.safetensors"), minutes=minutes)


@pytest.fixture
def short_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan for small networks, whose reports and updates take little time."""
    from meinst.training import plan

    monkeypatch.setattr(plan, "FINISH_SECONDS", 1.0)
    monkeypatch.setattr(plan, "MIN_UPDATES", 3)


def updates_of(folder: Path) -> int:
    return int(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"])


def validated(folder: Path) -> list[int]:
    """Updates after which a run was validated."""
    with next(folder.glob("logs/**/metrics.csv")).open() as file:
        return [int(row["step"]) + 1 for row in csv.DictReader(file) if row["val/segm_AP"]]


@pytest.mark.usefixtures("short_end")
def test_planned_run_ends_in_time_and_its_recipe_repeats_it(
    finished_run: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from meinst.training.train import train

    caplog.set_level("INFO", "meinst")
    first, second = tmp_path / "first", tmp_path / "second"
    options = planned_options(synthetic_data, finished_run, first, 0.25)
    started = time.monotonic()
    train(options)
    # 15 s; the tolerance is wide, because a busy machine may stop for seconds.
    assert 12 <= time.monotonic() - started <= 22
    assert "plan for 0.25 minutes" in caplog.text
    assert "classes known: disc, box, star" in caplog.text
    assert caplog.text.count("images: 6 of 64 x 64") == 2  # after the plan, with its input size
    assert caplog.text.index("images: 6 of 64 x 64") > caplog.text.index("plan for")
    assert " of 0.25 minutes" in caplog.text

    plan, recipe = json.loads((first / "plan.json").read_text()), load_recipe(first / "recipe.yaml")
    assert plan["minutes"] == 0.25
    assert [choice["name"] for choice in plan["choices"]][:2] == ["start", "input"]
    assert len(plan["text"]) == len(plan["choices"]) == 9
    assert plan["updates"] == recipe.schedule.iterations == updates_of(first)
    assert plan["data"]["images"] == 6
    assert validated(first)[-1] == updates_of(first)

    train(replace(options, output=second, minutes=None, recipe=recipe))
    assert load_recipe(second / "recipe.yaml") == recipe
    repeated = load_file(second / "last.safetensors")
    for name, tensor in load_file(first / "last.safetensors").items():
        assert torch.equal(repeated[name], tensor), name


@pytest.mark.usefixtures("short_end")
def test_resumed_run_follows_its_plan(
    finished_run: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from meinst.training.callbacks import LastCheckpoint
    from meinst.training.train import train

    save = LastCheckpoint._save

    def save_and_fail(callback: LastCheckpoint, trainer: object) -> None:
        save(callback, trainer)  # type: ignore[arg-type]
        raise RuntimeError("stopped")

    options = planned_options(synthetic_data, finished_run, tmp_path / "out", 0.2)
    monkeypatch.setattr(LastCheckpoint, "_save", save_and_fail)
    with pytest.raises(RuntimeError, match="stopped"):
        train(options)
    monkeypatch.setattr(LastCheckpoint, "_save", save)
    plan = (options.output / "plan.json").read_text()
    recipe = load_recipe(options.output / "recipe.yaml")
    assert updates_of(options.output) == 2 < recipe.schedule.iterations
    train(replace(options, resume=True))
    assert updates_of(options.output) == recipe.schedule.iterations
    assert load_recipe(options.output / "recipe.yaml") == recipe
    assert (options.output / "plan.json").read_text() == plan


@pytest.mark.usefixtures("short_end")
def test_of_a_given_recipe_only_the_schedule_is_planned(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    options = replace(make_options(synthetic_data, tmp_path / "out"), minutes=0.25)
    train(options)
    used, given = load_recipe(tmp_path / "out" / "recipe.yaml"), options.recipe
    assert given is not None
    assert used.schedule.iterations == updates_of(tmp_path / "out") != given.schedule.iterations
    assert replace(used, schedule=given.schedule, codec=given.codec) == given


def test_a_plan_alone_can_be_written_and_trained_later(
    finished_run: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from meinst.training.train import train

    caplog.set_level("INFO", "meinst")
    output = tmp_path / "out"
    options = planned_options(synthetic_data, finished_run, output, 0.5)
    path = train(replace(options, plan_only=True))
    assert path == output / "recipe.yaml"
    assert {each.name for each in output.iterdir()} == {"recipe.yaml", "plan.json"}
    assert f"--recipe {path} --init {options.init}" in caplog.text
    recipe = load_recipe(path)
    assert recipe.schedule.iterations == json.loads((output / "plan.json").read_text())["updates"]
    short = replace(recipe, schedule=replace(recipe.schedule, iterations=2, validate_every=2))
    train(replace(options, minutes=None, recipe=short))
    assert updates_of(output) == 2


def test_time_that_is_too_short_is_rejected(
    finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    options = planned_options(synthetic_data, finished_run, tmp_path / "out", 0.02)
    with pytest.raises(ValueError, match=r"--minutes 0\.02 is too short: .*at least --minutes 0\."):
        train(options)
    assert not list((tmp_path / "out").iterdir())


def test_last_update_is_validated(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    from meinst.training.train import train

    recipe = with_values({"schedule.iterations": 6, "schedule.validate_every": 4})
    options = make_options(synthetic_data, tmp_path / "out", recipe)
    train(options)
    assert validated(options.output) == [4, 6]
    assert updates_of(options.output) == 6


def test_patience_ends_a_run_that_does_not_improve(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    # Without learning, all validations are equal.
    values = {"schedule.iterations": 12, "schedule.validate_every": 2, "optimizer.lr": 0.0}
    recipe = with_values(values)
    options = make_options(synthetic_data, tmp_path / "out", recipe)
    train(replace(options, patience=2))
    assert validated(options.output) == [2, 4, 6]
    assert updates_of(options.output) == 6
    train(replace(options, patience=2, resume=True))
    assert updates_of(options.output) == 6
    train(replace(options, patience=3, resume=True))
    assert updates_of(options.output) == 8
