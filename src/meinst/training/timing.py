"""Measure how fast this machine trains and validates with a recipe."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch

from meinst.data.coco import CocoData
from meinst.inference.evaluate import evaluation_results
from meinst.models.recipe import Recipe, ScheduleOptions
from meinst.training.data_module import DataModule, make_dataset, split_batch
from meinst.training.initialize import make_model
from meinst.training.lightning_module import LitMEInst
from meinst.training.options import TrainOptions
from meinst.training.plan import Timing
from meinst.training.trainer import make_silent_trainer, quiet_lightning

_SKIPPED = 2  # updates before the speed is constant: processes start, kernels are prepared
_MEASURED = 4  # updates at least
_MAX_UPDATES = 1000
_IMAGES = 6  # validation images, of which the first is not measured


def measure(
    options: TrainOptions,
    recipe: Recipe,
    train_data: CocoData,
    val_data: CocoData,
    seconds: float,
) -> Timing:
    """Train for some seconds, with the run's own data and processes, and predict a few images.

    The trained weights are dropped.

    Args:
        options: start, devices and processes of the run.
        recipe: the recipe to measure.
        train_data: the training images.
        val_data: the validation images.
        seconds: time for training steps; at least six are taken.

    Raises:
        ValueError: as :func:`meinst.training.initialize.make_model` and Lightning's trainer.
    """
    schedule = ScheduleOptions(iterations=_MAX_UPDATES, warmup_iterations=_MAX_UPDATES)
    recipe = replace(recipe, schedule=schedule)
    per_device, accumulate = split_batch(options, recipe)
    before = _peak_memory()
    clock = _Clock(seconds)
    with _silent(), quiet_lightning():
        model = make_model(options, recipe, train_data)
        model.backbone.freeze(recipe.optimizer.frozen_stages)
        dataset = make_dataset(train_data, recipe, model.codec.mask_size, options.seed)
        samples = _MAX_UPDATES * recipe.batch_size
        data = DataModule(dataset, samples, 0, per_device, accumulate, options.workers)
        module = LitMEInst(model, recipe, val_data, options.seed)
        trainer = make_silent_trainer(options, recipe, accumulate, clock)
        trainer.fit(module, data)
        device = trainer.strategy.root_device
        limit = _memory_limit(device)
        validation = _measure_validation(module, device, val_data)
    return Timing(recipe, clock.step, validation, _peak_memory(device), before, limit)


class _Clock(L.Callback):
    """Ends a training after some seconds of constant speed.

    Args:
        seconds: from the first counted update on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.times: list[float] = []  # when updates ended

    @property
    def step(self) -> float:
        """Seconds per update."""
        counted = self.times[_SKIPPED - 1 :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Note the time of an update; stop if the time is over."""
        if trainer.global_step == len(self.times):
            return  # only a part of an update
        self.times.append(time.monotonic())
        if len(self.times) >= _SKIPPED + _MEASURED:
            trainer.should_stop = self.times[-1] - self.times[_SKIPPED - 1] >= self.seconds


def _measure_validation(module: LitMEInst, device: torch.device, data: CocoData) -> float:
    """Seconds per validation image, from images evenly spread over the data."""
    model = module.model.to(device).eval()
    chosen = np.linspace(0, len(data) - 1, min(_IMAGES, len(data))).round().astype(int)
    records = [data.images[i] for i in chosen]
    limit = model.selection.max_detections
    results = evaluation_results(model, records, module.validation.classes, limit)
    times = [time.monotonic(), *(time.monotonic() for _ in results)]
    counted = times[1:] if len(times) > 2 else times
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def _peak_memory(device: torch.device | None = None) -> int:
    """Largest memory of the process so far, in bytes; of the GPU if it is used, 0 if unknown."""
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _memory_limit(device: torch.device) -> int:
    """Memory of the GPU, or else of the machine, in bytes; 0 if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 0


@contextmanager
def _silent() -> Iterator[None]:
    """Silence this project's notes, which the run itself will log."""
    logger = logging.getLogger("meinst")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
