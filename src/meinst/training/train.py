"""A training run, from annotation files to a model file for ``meinst predict``."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.utilities import rank_zero_only

from meinst.data.coco import CocoData
from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.diagnosis.diagnose import diagnose
from meinst.diagnosis.html import REPORT, write_report
from meinst.files import check_folder, remove_leftovers, write_atomically
from meinst.locks import lock_folder
from meinst.models.checkpoint import save_model
from meinst.models.recipe import Recipe
from meinst.options import first_few, options_to_dict
from meinst.training.checkpoints import (
    checkpoint_to_resume,
    read_checkpoint,
    read_with_fallback,
)
from meinst.training.data_module import DataModule, make_dataset, split_batch
from meinst.training.initialize import check_start, find_recipe, make_model, with_codec_of
from meinst.training.input_data import log_sizes, read_data
from meinst.training.lightning_module import THRESHOLD, LitMEInst
from meinst.training.options import TrainOptions
from meinst.training.planner import plan_run
from meinst.training.plots import draw_curves, draw_sheet, read_logs
from meinst.training.trainer import make_trainer, quiet_lightning

MOST_IMAGES = 500
"""Of more validation images, the report measures a sample of this size."""

log = logging.getLogger("meinst")


def train(options: TrainOptions) -> Path:
    """Train a model.

    Afterwards the output folder contains ``best.safetensors`` and ``last.safetensors``,
    ``recipe.yaml``, ``codec.npz``, ``curves.png``, ``overlays.jpg``, ``report.html``,
    ``report.json``, ``metrics.json``, logs and checkpoints; with ``options.minutes`` also
    ``plan.json``.

    Args:
        options: data, output and start of the run.

    Returns:
        The path of ``best.safetensors``, or with ``plan_only`` that of ``recipe.yaml``.

    Raises:
        BlockingIOError: if another process writes to the output.
        FileNotFoundError: if a file, recipe or model does not exist.
        FloatingPointError: if the loss or the weights are no longer finite.
        ValueError: if annotations, recipe or model are faulty, or a new run would overwrite
            another.
        RuntimeError: if there are no ImageNet weights to start from.
    """
    started = time.monotonic()
    check_start(options)
    recipe = find_recipe(options)
    split_batch(options, recipe)
    check_folder(options.output)
    with _own_output(options):
        return _train(options, recipe, started)


def _train(options: TrainOptions, recipe: Recipe, started: float) -> Path:
    train_data, val_data = read_data(options, recipe)
    planned = None
    if options.minutes is not None and not options.resume:
        planned = plan_run(options, recipe, train_data, val_data, started)
        log.info("%s", planned)
        options, recipe = planned.options, planned.plan.recipe
        log_sizes((train_data, val_data), recipe)
        if options.plan_only:
            planned.write(recipe)
            return _planned_only(options)
    per_device, accumulate = split_batch(options, recipe)
    seed, checkpoint = options.seed, None
    if options.resume:
        checkpoint, saved = checkpoint_to_resume(options)
        seed = _check_resumed(options, saved, accumulate, train_data)

    L.seed_everything(seed, workers=True, verbose=False)
    model = make_model(options, recipe, train_data)
    recipe = with_codec_of(model, recipe, options)
    model.backbone.freeze(recipe.optimizer.frozen_stages)
    dataset = make_dataset(train_data, recipe, model.codec.mask_size, seed)
    updates = planned.max_updates if planned else recipe.schedule.iterations
    data_module = DataModule(
        dataset, updates * recipe.batch_size, len(val_data), per_device, accumulate, options.workers
    )
    module = LitMEInst(model, recipe, val_data, seed)
    for line in module.validation.classes.warnings:
        log.warning("%s: %s", val_data.annotations, line)
    with quiet_lightning():
        limits = [planned.time_limit()] if planned else []
        trainer = make_trainer(options, recipe, accumulate, updates, *limits)
        _write_start(options, recipe, model)
        if planned:
            planned.write(recipe)
        _fit(trainer, module, data_module, options, checkpoint)
    best = _finish(options, module, trainer)
    if planned:
        minutes = (time.monotonic() - started) / 60
        log.info("took %.1f of %g minutes", minutes, options.minutes)
    return best


def _planned_only(options: TrainOptions) -> Path:
    """Say how to train with the plan that was written; returns its recipe's path."""
    path = options.output / "recipe.yaml"
    start = f" --init {options.init}" if options.init else ""
    log.info("nothing was trained; give --recipe %s%s to train with this plan", path, start)
    return path


@contextmanager
def _own_output(options: TrainOptions) -> Iterator[None]:
    """Lock the output folder, in the first process of a run."""
    node = os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or "0"
    first: int | None = rank_zero_only(lambda: int(node))()  # None in other processes of a machine
    if first != 0:
        yield
        return
    with lock_folder(options.output):
        remove_leftovers(options.last_checkpoint.parent)
        yield


def _check_resumed(
    options: TrainOptions, saved: Mapping[str, Any], accumulate: int, data: CocoData
) -> int:
    """The seed of the run to resume.

    Raises:
        ValueError: if batches or classes differ from those of the run.
    """
    before = saved.get("accumulate", accumulate)
    if before != accumulate:  # batches are counted, and validations depend on their number
        raise ValueError(
            f"{options.output}: this run accumulated {before} batches per update on each device, "
            f"not {accumulate}; resume it with the --images-per-device and --devices that it "
            "started with."
        )
    names = list(data.class_names)
    if saved.get("class_names", names) != names:
        raise ValueError(
            f"{data.annotations}: its classes ({first_few(names)}) differ in names or order from "
            f"those of the run to resume ({first_few(saved['class_names'])}); use the annotations "
            "that it started with, or start a new run with --init in another --output."
        )
    seed: int = saved["seed"]
    return seed


@rank_zero_only
def _write_start(options: TrainOptions, recipe: Recipe, model: MEInst) -> None:
    content = yaml.safe_dump(options_to_dict(recipe), sort_keys=False)
    write_atomically(options.output / "recipe.yaml", content.encode())
    if not options.resume:  # otherwise it was read from there
        model.codec.save(options.output / "codec.npz")


def _fit(
    trainer: L.Trainer,
    module: LitMEInst,
    data_module: DataModule,
    options: TrainOptions,
    checkpoint: Path | None,
) -> None:
    """Run Lightning's loop, from a checkpoint if any; report where a stopped run can continue."""
    try:
        trainer.fit(module, data_module, ckpt_path=checkpoint, weights_only=True)
    except SystemExit as stop:  # raised by Lightning on SIGTERM and Ctrl-C
        try:  # the file, since the interruption may have come just after it was written
            saved = read_checkpoint(options.last_checkpoint)["global_step"]
            remedy = f"saved at update {saved}; continue with --resume"
        except ValueError:
            remedy = "nothing was saved yet; start again"
        message = f"stopped at update {trainer.global_step}, {remedy}"
        if trainer.received_sigterm:
            log.warning(message)
            raise SystemExit(128 + signal.SIGTERM) from stop
        raise KeyboardInterrupt(message) from stop
    except Exception as error:
        raise _without_traceback(error) from error


def _without_traceback(error: Exception) -> Exception:
    """An error of a process that prepares images, as it was there.

    torch puts the traceback into the message; its last line is ``module.ErrorType: message``.
    """
    text = str(error).rstrip()
    if "Original Traceback" not in text:
        return error
    _, _, message = text.rpartition("\n")[2].partition(": ")
    return type(error)(message or text)


def tune_selection(selection: SelectOptions, metrics: Mapping[str, float | None]) -> SelectOptions:
    """Set the score threshold to the one that maximised F1, unless the recipe sets one.

    Args:
        selection: the recipe's.
        metrics: the metrics of a validation; may lack a threshold if nothing was correct.
    """
    if selection.score_threshold is not None or not metrics.get(THRESHOLD):
        return selection
    return replace(selection, score_threshold=metrics[THRESHOLD])


def _finish(options: TrainOptions, module: LitMEInst, trainer: L.Trainer) -> Path:
    """Convert the last and the best checkpoint to model files, then draw the reports."""
    best_path = options.output / "best.safetensors"
    if not trainer.is_global_zero:
        return best_path
    model, recipe = module.model.cpu().eval(), module.recipe
    prefix = "model."
    paths = (options.last_checkpoint, options.best_checkpoint)
    for path, other in (paths, paths[::-1]):
        target = options.output / f"{path.stem}.safetensors"
        _, checkpoint = read_with_fallback(path, other, f"{target.name} is made from")
        state = checkpoint["state_dict"]  # the moving average, where there is one
        model.load_state_dict(
            {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        )
        metrics = checkpoint["metrics"]
        model.selection = tune_selection(recipe.selection, metrics)
        save_model(model, target, recipe, metrics=metrics)
    content = json.dumps({"update": checkpoint["global_step"], **metrics}, indent=2)
    write_atomically(options.output / "metrics.json", content.encode())
    curves, sheet = options.output / "curves.png", options.output / "overlays.jpg"
    _report(curves, lambda: draw_curves(read_logs(options.output / "logs"), curves))
    _report(sheet, lambda: draw_sheet(model, module.validation.data, sheet))
    if options.report:
        device = trainer.strategy.root_device
        _report(options.output / REPORT, lambda: _diagnose(model.to(device), module, options))
    log.info("model: %s", best_path)
    return best_path


def _diagnose(model: MEInst, module: LitMEInst, options: TrainOptions) -> None:
    """Report why the best model loses AP; of many validation images a sample is measured."""
    data = module.validation.data
    count = min(len(data), MOST_IMAGES)
    log.info("measuring the best model on %d validation images for %s", count, REPORT)
    diagnosis = diagnose(model.fuse(), data, max_images=MOST_IMAGES, seed=options.seed)
    write_report(diagnosis, options.output, title=f"{options.output.name}/best.safetensors")


def _report(path: Path, draw: Callable[[], None]) -> None:
    """Draw a report; if that fails, the run has its models all the same."""
    try:
        draw()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("%s was not drawn (%s)", path, reason)
