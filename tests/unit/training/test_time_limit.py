"""The time limit, on a simulated machine: a clock that updates and validations advance."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lightning")

from meinst.models.recipe import Recipe, ScheduleOptions
from meinst.training.lightning_module import LitMEInst
from meinst.training.plan import Plan
from meinst.training.time_limit import TimeLimit, updates_until


def test_updates_until_the_end() -> None:
    # 910 s for updates of 1 s, of which every 20th is followed by a validation of 10 s, and a last
    # validation: 900 / 1.5 more.
    assert updates_until(40, 910, 1.0, 10, 20) == 640
    assert updates_until(40, -5, 1.0, 10, 20) == 41


def simulate(
    step: Callable[[int], float],
    validation: float = 4.0,
    *,
    expected: float = 4.0,
    finish: float = 8.0,
    planned: int = 480,
    every: int = 96,
) -> tuple[float, Recipe, list[Recipe]]:
    """Run 600 s planned with 1 s per update: the end, the last recipe and all revisions."""
    now = 0.0
    revisions: list[Recipe] = []
    schedule = ScheduleOptions(iterations=planned, validate_every=every)
    module = LitMEInst.__new__(LitMEInst)
    module.__dict__["recipe"] = Recipe(schedule=schedule)
    plan = Plan(module.recipe, (), 1.0, expected, 8.0 + expected)
    limit = TimeLimit(plan, 0.0, 600.0, 4 * planned, revisions.append, clock=lambda: now)
    trainer: Any = SimpleNamespace(global_step=0, accumulate_grad_batches=1)
    now = 60.0  # reading and measuring
    limit.on_train_start()
    while trainer.global_step < module.recipe.schedule.iterations:
        now += step(trainer.global_step)
        trainer.global_step += 1
        limit.on_train_batch_end(trainer, module, None, None, trainer.global_step - 1)
        done = trainer.global_step == module.recipe.schedule.iterations
        if done or trainer.global_step % every == 0:
            limit.on_validation_start(trainer)
            now += validation
            limit.on_validation_end(trainer, module)
    return now + finish + validation, module.recipe, revisions


def test_run_as_fast_as_planned_is_not_revised() -> None:
    # 60 + 500 + 5 * 4 + 12 = 592 s
    end, recipe, revisions = simulate(lambda _: 1.0, planned=500, every=100)
    assert (end, revisions) == (592, [])
    assert recipe.schedule.iterations == 500


@pytest.mark.parametrize("speed", [0.4, 0.8, 1.3, 2.5])
def test_run_of_another_speed_ends_in_time(speed: float) -> None:
    end, recipe, revisions = simulate(lambda _: speed)
    assert 0.95 * 600 <= end <= 1.02 * 600
    assert revisions[-1] == recipe


def test_run_that_becomes_slow_ends_in_time() -> None:
    end, recipe, _ = simulate(lambda update: 1.0 if update < 240 else 2.0)
    assert 0.95 * 600 <= end <= 1.04 * 600
    assert recipe.schedule.iterations < 480


def test_run_that_becomes_fast_ends_in_time() -> None:
    end, recipe, _ = simulate(lambda update: 1.0 if update < 240 else 0.5)
    assert 0.95 * 600 <= end <= 1.02 * 600
    assert recipe.schedule.iterations > 480


def test_validations_are_measured_too() -> None:
    end, recipe, _ = simulate(lambda _: 1.0, validation=30)
    assert 0.93 * 600 <= end <= 1.03 * 600
    assert recipe.schedule.iterations < 480


def test_machine_that_is_slower_than_measured_validates_more_slowly_too() -> None:
    # One validation, at the end: planned with 30 s, it takes 75 s if updates take 2.5 s.
    end, _, _ = simulate(lambda _: 2.5, 75.0, expected=30.0, finish=20.0, planned=400, every=400)
    assert 0.95 * 600 <= end <= 1.02 * 600


def test_number_of_updates_is_limited() -> None:
    end, recipe, _ = simulate(lambda _: 0.01)
    assert recipe.schedule.iterations == 4 * 480
    assert end < 600


def test_parts_of_an_update_are_not_counted() -> None:
    now = 0.0
    recipe = Recipe(schedule=ScheduleOptions(iterations=10))
    plan = Plan(recipe, (), 1.0, 0.0, 0.0)
    limit = TimeLimit(plan, 0.0, 100.0, 40, lambda _: None, clock=lambda: now)
    trainer: Any = SimpleNamespace(global_step=0, accumulate_grad_batches=2)
    now = 5.0
    limit.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert limit.trained == 0
