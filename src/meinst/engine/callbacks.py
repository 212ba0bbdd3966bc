"""What accompanies a run: the moving average, the checkpoints, the progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    Checkpoint,
    ModelCheckpoint,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.utilities.exceptions import SIGTERMException


class ResumableBar(TQDMProgressBar):
    """Lightning's progress bar, with the end and the pace of a resumed run as well."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin where the run does; Lightning sets the end when an epoch begins, at 0."""
        super().on_train_start(trainer, pl_module)
        bar = self.train_progress_bar
        bar.reset(total=int(trainer.num_training_batches))
        bar.initial = trainer.global_step * trainer.accumulate_grad_batches


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``best.ckpt``, of the validation with the highest score so far.

    Lightning forgets that score if the folder was moved or copied: the next validation, however
    bad, would replace the file. Here the score goes with the folder.

    Args:
        folder: of the checkpoints.
        monitor: the score's name.
    """

    def __init__(self, folder: Path, monitor: str) -> None:
        super().__init__(
            folder, filename="best", monitor=monitor, mode="max", enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the score, and the file of that name where the run is now."""

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else path

        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        known = {here(path): score for path, score in state_dict["best_k_models"].items()}
        moved = {name: here(state_dict[name]) for name in paths}
        super().load_state_dict(
            {**state_dict, **moved, "best_k_models": known, "dirpath": self.dirpath}
        )


class LastCheckpoint(Checkpoint):
    """Saves the state that ``--resume`` goes on from, atomically, over the one before.

    Every ``every`` updates, after each validation, and when the run is asked to end by SIGTERM.
    Where a validation follows an update, what it finds belongs to the state: killed before its
    end, the run goes on from the state before, and validates again. Between the batches that an
    update accumulates nothing is saved: their gradients are no part of the state.

    Args:
        path: the file.
        every: updates between two savings.
        validate_every: updates between two validations.
    """

    def __init__(self, path: Path, every: int, validate_every: int) -> None:
        self.path = path
        self.every = every
        self.validate_every = validate_every
        self.saved = 0  # update of the last saving; 0 for none
        self.whole = False  # whether the last batch ended an update

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        """A resumed run has been saved where it begins."""
        self.saved = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *others: Any) -> None:
        """Save after an update, unless a validation is about to follow."""
        *_, batch_index = others
        self.whole = (batch_index + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step
        if self.whole and step % self.every == 0 and step % self.validate_every:
            self._save(trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Save with what the validation found."""
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, _: Any, exception: BaseException) -> None:
        """Save what SIGTERM interrupts; Lightning has then ended the batch."""
        asked = isinstance(exception, SIGTERMException)
        if asked and self.whole and trainer.global_step % self.validate_every:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self.saved = trainer.global_step


def make_ema(decay: float) -> WeightAveraging:
    """Moving average of the weights: validated, saved as best, and what a run ends with.

    The ``n``-th update keeps ``min(decay, (1 + n) / (10 + n))`` of the average: a constant decay
    would hold on to the random weights of the beginning for thousands of updates.
    """

    @torch.no_grad()
    def average(averages: Any, weights: Any, count: Any) -> None:
        kept = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averages), list(weights), 1 - kept)

    # Buffers never change in training: batch norms keep their statistics, the codec is fitted.
    return WeightAveraging(use_buffers=False, multi_avg_fn=average)
