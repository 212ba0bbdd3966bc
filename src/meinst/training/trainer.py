"""Lightning's trainer, set up for a run or for measuring a few steps of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from meinst.models.recipe import Recipe
from meinst.training.callbacks import (
    BestCheckpoint,
    LastCheckpoint,
    LastUpdate,
    Patience,
    ResumableBar,
    make_ema,
)
from meinst.training.checkpoints import AtomicCheckpointIO
from meinst.training.lightning_module import MONITORED
from meinst.training.options import TrainOptions


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence notes of Lightning that do not concern this run, for as long as it lasts."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Frozen batch norms are intended.
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start")
            warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
            # Samples are numbered, so a run can be resumed anywhere; see DataModule.
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
            warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec")
            yield
    finally:
        logger.setLevel(level)


def make_trainer(
    options: TrainOptions, recipe: Recipe, accumulate: int, max_updates: int, *more: L.Callback
) -> L.Trainer:
    """The trainer of a run.

    Args:
        options: output, devices and patience.
        recipe: optimizer and schedule.
        accumulate: batches per update.
        max_updates: the schedule's number of updates, or what it may be revised to.
        more: further callbacks, before those that save.

    Raises:
        ValueError: if there is no such device.
    """
    schedule, last = recipe.schedule, options.last_checkpoint
    validate_every = min(schedule.validate_every, schedule.iterations)
    callbacks: list[Any] = [
        *more,
        LastUpdate(),
        BestCheckpoint(last.parent, MONITORED),
        LearningRateMonitor("step"),
        ResumableBar(refresh_rate=5),
        # After BestCheckpoint, whose best score is part of the state.
        LastCheckpoint(last, options.checkpoint_every, validate_every),
    ]
    if options.patience is not None:
        callbacks.insert(0, Patience(MONITORED, options.patience))
    if recipe.optimizer.ema_decay:
        callbacks.insert(0, make_ema(recipe.optimizer.ema_decay))
    return _trainer(
        options,
        recipe,
        accumulate=accumulate,
        max_steps=max_updates,
        val_check_interval=validate_every * accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=min(20, schedule.iterations),
        callbacks=callbacks,
        logger=[
            CSVLogger(options.output, name="logs"),
            TensorBoardLogger(options.output, name="tensorboard"),
        ],
        plugins=AtomicCheckpointIO(),
    )


def make_silent_trainer(
    options: TrainOptions, recipe: Recipe, accumulate: int, *callbacks: L.Callback
) -> L.Trainer:
    """A trainer with the same steps, which neither validates nor writes anything."""
    averaging = [make_ema(recipe.optimizer.ema_decay)] if recipe.optimizer.ema_decay else []
    return _trainer(
        options,
        recipe,
        accumulate=accumulate,
        max_steps=recipe.schedule.iterations,
        limit_val_batches=0,
        callbacks=[*averaging, *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )


def _trainer(
    options: TrainOptions, recipe: Recipe, *, accumulate: int, **arguments: Any
) -> L.Trainer:
    """What all trainers have in common: devices, precision, clipping.

    Raises:
        ValueError: if there is no such device.
    """
    try:
        return L.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            precision=options.precision or _best_precision(options.accelerator),  # type: ignore[arg-type]
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=recipe.optimizer.clip_norm or None,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **arguments,
        )
    except MisconfigurationException as error:  # an error of the user, but not a ValueError
        raise ValueError(
            f"--accelerator {options.accelerator} with --devices {options.devices}: {error}"
        ) from error


def _best_precision(accelerator: str) -> str:
    """Mixed precision where the device computes bfloat16 in hardware."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu:
        mixed = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        mixed = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if mixed else "32-true"
