"""A training run, from annotation files to a model file that ``meinst predict`` takes."""

from __future__ import annotations

import json
import logging
import pickle
import signal
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from meinst.data.batch import TrainingDraws
from meinst.data.coco import CocoData, read_coco
from meinst.detector.meinst import MEInst
from meinst.engine.callbacks import BestCheckpoint, LastCheckpoint, ResumableBar, make_ema
from meinst.engine.checkpoint import save_model
from meinst.engine.config import Recipe, TrainOptions, plain_values
from meinst.engine.evaluate import some_names
from meinst.engine.predict import check_folder
from meinst.engine.report import draw_curves, draw_sheet, read_logs
from meinst.engine.start import check_start, find_recipe, make_model, with_codec_of
from meinst.engine.trainee import MONITORED, Draws, Trainee, tune_selection
from meinst.files import write_atomically

log = logging.getLogger("meinst")


def train(options: TrainOptions) -> Path:
    """Train a model.

    The output folder then holds ``best.safetensors`` and ``last.safetensors``, ``recipe.yaml``,
    ``codec.npz``, ``curves.png``, ``overlays.jpg``, ``metrics.json``, the logs and the
    checkpoints.

    Args:
        options: see :class:`TrainOptions`.

    Returns:
        The path of ``best.safetensors``.

    Raises:
        FileNotFoundError: if a file, recipe or model is not there.
        ValueError: if annotations, recipe or model are faulty, or a new run would overwrite
            an old one.
        RuntimeError: if there are no ImageNet weights to start from.
    """
    check_start(options)
    recipe = find_recipe(options)
    world = options.devices * options.num_nodes
    per_device = options.images_per_device or max(recipe.batch_size // world, 1)
    accumulate, remainder = divmod(recipe.batch_size, per_device * world)
    if remainder or not accumulate:
        raise ValueError(
            f"batch_size {recipe.batch_size} is no multiple of {world} devices times "
            f"{per_device} images_per_device: change one of them."
        )

    check_folder(options.output)
    train_data = read_coco(options.train_annotations, options.train_images)
    val_data = read_coco(options.val_annotations, options.val_images)
    if len(val_data.images) < world:
        raise ValueError(
            f"{val_data.annotations}: {len(val_data.images)} images for {world} processes, each of "
            "which needs one to validate on: give more images or fewer --devices."
        )
    for data in (train_data, val_data):
        if str(data.report):
            log.warning("%s:\n%s", data.annotations, data.report)
    last = options.output / "checkpoints" / "last.ckpt"
    seed = options.seed
    if options.resume:
        saved = _read_checkpoint(last)
        seed = saved["seed"]
        before = saved.get("accumulate", accumulate)
        if before != accumulate:  # batches are counted, and validations are due by their number
            raise ValueError(
                f"{options.output}: this run made an update of {before} batches on each device, "
                f"not of {accumulate}: resume it with the --images-per-device and --devices that "
                "it began with."
            )
        names = list(train_data.class_names)
        if saved.get("class_names", names) != names:
            raise ValueError(
                f"{train_data.annotations}: its classes ({some_names(names)}) are not, in this "
                f"order, those of the run to resume ({some_names(saved['class_names'])}): give the "
                "annotations that it began with, or begin anew by --init in another --output."
            )
    L.seed_everything(seed, workers=True, verbose=False)
    model = make_model(options, recipe, train_data)
    recipe = with_codec_of(model, recipe, options)
    model.backbone.freeze(recipe.optimizer.frozen_stages)

    draws = TrainingDraws(
        train_data,
        recipe.image_size,
        recipe.augment,
        model.codec.mask_size,
        seed=seed,
        skip_empty=recipe.skip_empty,
    )
    data_module = Draws(
        draws,
        recipe.schedule.iterations * recipe.batch_size,
        len(val_data.images),
        per_device,
        accumulate,
        options.workers,
    )
    trainee = Trainee(model, recipe, val_data, seed)
    for line in trainee.validation.classes.warnings:
        log.warning("%s: %s", val_data.annotations, line)
    # Lightning's notes on the machine and its products are no news of this run.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    validate_every = min(recipe.schedule.validate_every, recipe.schedule.iterations)
    saving = LastCheckpoint(last, options.checkpoint_every, validate_every)
    try:
        trainer = _make_trainer(options, recipe, accumulate, saving)
    except MisconfigurationException as error:  # not a RuntimeError, but as much the user's matter
        raise ValueError(
            f"--accelerator {options.accelerator} with --devices {options.devices}: {error}"
        ) from error
    _write_start(options, recipe, model)
    # Frozen batch norms are meant; so is resuming between epochs: draws are numbered, see Draws.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec")  # Lightning's own
    try:
        ckpt_path = last if options.resume else None
        trainer.fit(trainee, data_module, ckpt_path=ckpt_path, weights_only=True)
    except SystemExit as stop:  # Lightning's answer to SIGTERM and to Ctrl-C
        hint = f"stopped at update {trainer.global_step}, " + _way_on(saving.saved)
        if trainer.received_sigterm:
            log.warning(hint)
            raise SystemExit(128 + signal.SIGTERM) from stop
        raise KeyboardInterrupt(hint) from stop
    return _finish(options, recipe, trainee, trainer, val_data)


@rank_zero_only
def _write_start(options: TrainOptions, recipe: Recipe, model: MEInst) -> None:
    content = yaml.safe_dump(plain_values(recipe), sort_keys=False)
    write_atomically(options.output / "recipe.yaml", content.encode())
    if not options.resume:  # else it was read there
        model.codec.save(options.output / "codec.npz")


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path}: not a whole checkpoint ({' '.join(str(error).split())[:80]}); put back a "
            "whole one, for example the best.ckpt beside it."
        ) from error
    return checkpoint


def _way_on(saved: int) -> str:
    if not saved:
        return "before anything was saved: begin again, in another --output or this one"
    return f"saved at {saved}; go on from there with --resume"


def _make_trainer(
    options: TrainOptions, recipe: Recipe, accumulate: int, saving: LastCheckpoint
) -> L.Trainer:
    schedule = recipe.schedule
    callbacks: list[Any] = [
        BestCheckpoint(saving.path.parent, MONITORED),
        LearningRateMonitor("step"),
        ResumableBar(refresh_rate=5),
        saving,  # after BestCheckpoint, whose best score is part of the state
    ]
    if recipe.optimizer.ema_decay:
        callbacks.insert(0, make_ema(recipe.optimizer.ema_decay))
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        precision=options.precision or _best_precision(options.accelerator),  # type: ignore[arg-type]
        max_steps=schedule.iterations,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=recipe.optimizer.clip_norm or None,
        val_check_interval=saving.validate_every * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=min(20, schedule.iterations),
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=[
            CSVLogger(options.output, name="logs"),
            TensorBoardLogger(options.output, name="tensorboard"),
        ],
    )


def _best_precision(accelerator: str) -> str:
    """Mixed where the device computes bfloat16 in hardware."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    if on_gpu:
        mixed = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        mixed = torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if mixed else "32-true"


def _finish(
    options: TrainOptions,
    recipe: Recipe,
    trainee: Trainee,
    trainer: L.Trainer,
    val_data: CocoData,
) -> Path:
    """Turn the best and the last checkpoint into model files, and draw what there is to see."""
    best_path = options.output / "best.safetensors"
    if not trainer.is_global_zero:
        return best_path
    model = trainee.model.cpu().eval()
    prefix = "model."
    for name in ("last", "best"):
        checkpoint = _read_checkpoint(options.output / "checkpoints" / f"{name}.ckpt")
        state = checkpoint["state_dict"]  # the moving average, where there is one
        model.load_state_dict(
            {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        )
        metrics = checkpoint["metrics"]
        model.selection = tune_selection(recipe.selection, metrics)
        save_model(model, options.output / f"{name}.safetensors", recipe, metrics=metrics)
    content = json.dumps({"update": checkpoint["global_step"], **metrics}, indent=2)
    write_atomically(options.output / "metrics.json", content.encode())
    draw_curves(read_logs(options.output / "logs"), options.output / "curves.png")
    draw_sheet(model, val_data, options.output / "overlays.jpg")
    log.info("model: %s", best_path)
    return best_path
