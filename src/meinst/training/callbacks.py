"""Callbacks of a training run: moving average, checkpoints, progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor


class ResumableBar(TQDMProgressBar):
    """Lightning's progress bar, with the correct total and speed in resumed runs too."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start at the current update; Lightning sets the total only at the start of an epoch."""
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.reset(total=_updates(pl_module) * trainer.accumulate_grad_batches)
        bar.initial = trainer.global_step * trainer.accumulate_grad_batches

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *a: Any) -> None:
        """Show the current number of updates, which a run with a time limit revises."""
        self.train_progress_bar.total = _updates(pl_module) * trainer.accumulate_grad_batches
        super().on_train_batch_end(trainer, pl_module, *a)


class LastUpdate(Callback):
    """Ends the run after the last update of its recipe's schedule, with a validation."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Ask Lightning to validate and stop; it would stop without a validation."""
        if trainer.global_step >= _updates(pl_module):
            trainer.should_stop = True


def _updates(module: L.LightningModule) -> int:
    """Number of updates of a run."""
    iterations: int = module.recipe.schedule.iterations  # type: ignore[union-attr,assignment]
    return iterations


class Patience(EarlyStopping):
    """Stops a run after some validations in a row without a higher score.

    Unlike Lightning's, it takes the number from the command when a run is resumed, and does not
    continue a run that it had stopped.

    Args:
        monitor: name of the score.
        patience: number of validations.
    """

    def __init__(self, monitor: str, patience: int) -> None:
        super().__init__(monitor, mode="max", patience=patience, check_finite=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score and the count, but not the limit."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once if the limit was already reached."""
        super().on_train_start(trainer, pl_module)
        trainer.should_stop |= self.wait_count >= self.patience


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, the latest checkpoint with the highest validation score so far.

    A validation without a score (NaN) is never the best, and of equal scores the latest counts:
    more training has not made the model worse. Lightning does neither. It also drops the best
    score when the folder was moved or copied, so that the next validation would replace the file
    even with a lower score. Here the score is kept.

    Args:
        folder: folder of the checkpoints.
        monitor: name of the score.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        super().__init__(
            folder, filename="best", monitor=monitor, mode="max", enable_version_counter=False
        )

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether a score is the best so far."""
        if current is None or current.isnan():
            return False
        best = self.best_k_models.get(self.kth_best_model_path)
        # All processes must agree.
        best_so_far = best is None or bool(current >= best)
        return bool(trainer.strategy.reduce_boolean_decision(best_so_far))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the score, and the path of the file in the current folder."""

        def in_folder(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        scores = {in_folder(path): score for path, score in state_dict["best_k_models"].items()}
        moved = {name: in_folder(state_dict[name]) for name in paths}
        super().load_state_dict(
            {**state_dict, **moved, "best_k_models": scores, "dirpath": self.dirpath}
        )


class LastCheckpoint(Checkpoint):
    """Writes the state for ``--resume``, replacing the previous one.

    It is written every ``every`` updates, after each validation, and on SIGTERM. The result of a
    validation is part of the state, so an update that is followed by a validation is saved after
    it; a run that is killed during the validation resumes from the previous state. Nothing is saved
    between the batches that an update accumulates, since gradients are not part of the state.

    Args:
        path: the file.
        every: number of updates between two saves.
        validate_every: number of updates between two validations.
    """

    def __init__(self, path: Path, every: int, validate_every: int) -> None:
        self.path = path
        self.every = every
        self.validate_every = validate_every
        self.complete = False  # whether the last batch completed an update

    def on_train_batch_end(self, trainer: L.Trainer, *others: Any) -> None:
        """Save after an update, unless a validation follows."""
        *_, batch_index = others
        self.complete = (batch_index + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step
        validated = step % self.validate_every == 0 or trainer.should_stop
        if self.complete and step % self.every == 0 and not validated:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save, including the result of the validation."""
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, _: Any, exception: BaseException) -> None:
        """Save on SIGTERM; Lightning raises its exception only after the batch is finished."""
        terminated = isinstance(exception, SIGTERMException)
        if terminated and self.complete and trainer.global_step % self.validate_every:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)


def make_ema(decay: float) -> WeightAveraging:
    """Exponential moving average of the weights, which is validated and saved as the model.

    Update ``n`` keeps the share ``min(decay, (1 + n) / (10 + n))`` of the average: with a constant
    decay, the random initial weights would remain in it for thousands of updates.
    """

    @torch.no_grad()
    def average(averages: Any, weights: Any, count: Any) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averages), list(weights), 1 - kept)

    # Buffers do not change in training: statistics of batch norms and the codec are fixed.
    return WeightAveraging(use_buffers=False, multi_avg_fn=average)
