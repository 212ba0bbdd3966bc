"""Keep a run to its time, by changing the number of its updates while it lasts."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L

from meinst.models.recipe import Recipe
from meinst.training.lightning_module import LitMEInst
from meinst.training.plan import Plan
from meinst.training.schedule import revise

_WINDOW = 0.2  # share of the time over which the speed is averaged
_PAUSE = 0.03  # share of the time between two revisions
_TOLERANCE = 0.02  # share of the time by which the end may be missed

log = logging.getLogger("meinst")


def updates_until(
    update: int, seconds: float, step: float, validation: float, validate_every: int
) -> int:
    """Number of updates of a run that may last some more seconds; at least one more.

    Args:
        update: updates so far.
        seconds: time left until the end of the last validation.
        step: seconds per update.
        validation: seconds per validation; the last update is always followed by one.
        validate_every: updates between the other validations.
    """
    with_validations = step + validation / validate_every
    return update + max(1, int((seconds - validation) / with_validations))


class TimeLimit(L.Callback):
    """Revises the schedule whenever the run would miss its end.

    The revised schedule becomes part of the recipe, so that a run with this recipe is the same.

    Args:
        plan: the plan.
        started: when the run began, in seconds of :func:`time.monotonic`.
        seconds: its time.
        max_updates: largest number of updates.
        on_revision: called with the recipe after each revision.
        clock: the time; tests replace it.
    """

    def __init__(
        self,
        plan: Plan,
        started: float,
        seconds: float,
        max_updates: int,
        on_revision: Callable[[Recipe], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.end = started + seconds
        self.seconds = seconds
        self.max_updates = max_updates
        self.on_revision = on_revision
        self.clock = clock
        self.plan = plan
        self.validation: float | None = None  # seconds, once there was one
        self.mark = clock()  # end of the last update or validation
        self.trained = 0.0  # seconds of all updates
        self.checked = 0.0  # seconds of updates at the last revision
        self.history: deque[tuple[float, int]] = deque([(0.0, 0)])  # (seconds, update)

    def on_train_start(self, *_: Any) -> None:
        """Count from here on."""
        self.mark = self.clock()

    def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
        """Count the time since the last update as training."""
        self._count(trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over how long a validation lasts, and revise the schedule."""
        now = self.clock()
        self.validation, self.mark = now - self.mark, now
        self._check(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *others: Any
    ) -> None:
        """Revise the schedule if some time has passed since the last revision."""
        *_, batch_index = others
        if (batch_index + 1) % trainer.accumulate_grad_batches:
            return
        self._count(trainer.global_step)
        if self.trained - self.checked >= _PAUSE * self.seconds:
            self._check(trainer, pl_module)

    def _count(self, update: int) -> None:
        now = self.clock()
        self.trained += now - self.mark
        self.mark = now
        self.history.append((self.trained, update))
        while len(self.history) > 2 and (
            self.trained - self.history[1][0] >= _WINDOW * self.seconds
        ):
            self.history.popleft()

    def _check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Revise the schedule if the run would end too early or too late."""
        assert isinstance(module, LitMEInst)
        schedule, update = module.recipe.schedule, trainer.global_step
        before, since = self.history[0]
        if update == since or update >= schedule.iterations:
            return
        step = (self.trained - before) / (update - since)
        # What was not measured yet is slower than planned if the updates are.
        slower = max(1.0, step / self.plan.seconds_per_update)
        expected = self.plan.validation_seconds
        validation = expected * slower if self.validation is None else self.validation
        finish = (self.plan.finish_seconds - expected) * slower + validation
        left = self.end - self.clock() - finish
        updates = updates_until(update, left, step, validation, schedule.validate_every)
        updates = min(updates, self.max_updates)
        self.checked = self.trained
        if abs(updates - schedule.iterations) * step < _TOLERANCE * self.seconds:
            return
        log.info(
            "update %d: %.2g s per update; the run will have %d updates instead of %d",
            *(update, step, updates, schedule.iterations),
        )
        module.recipe = replace(module.recipe, schedule=revise(schedule, update, updates))
        self.on_revision(module.recipe)
