"""A training run, from annotation files to a model file that ``meinst predict`` takes."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from meinst.codecs import Codec, PCACodec
from meinst.data.batch import TrainingDraws
from meinst.data.coco import CocoData, read_coco
from meinst.detector.backbone import load_imagenet_weights
from meinst.detector.meinst import MEInst
from meinst.engine.checkpoint import (
    build_model,
    load_model,
    read_info,
    save_model,
    write_atomically,
)
from meinst.engine.config import Recipe, TrainOptions, load_recipe, plain_values
from meinst.engine.fit import fit_codec
from meinst.engine.report import draw_curves, draw_sheet, read_logs
from meinst.engine.trainee import MONITORED, Draws, ResumableBar, Trainee, make_ema

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
    checkpoints = options.output / "checkpoints"
    last = checkpoints / "last.ckpt"
    _check_output(options, last)
    recipe = _find_recipe(options)
    world = options.devices * options.num_nodes
    per_device = options.images_per_device or max(recipe.batch_size // world, 1)
    accumulate, remainder = divmod(recipe.batch_size, per_device * world)
    if remainder or not accumulate:
        raise ValueError(
            f"batch_size {recipe.batch_size} is no multiple of {world} devices times "
            f"{per_device} images_per_device: change one of them."
        )

    train_data = read_coco(options.train_annotations, options.train_images)
    val_data = read_coco(options.val_annotations, options.val_images)
    for data in (train_data, val_data):
        if data.report.dropped:
            log.warning("%s", data.report)
    L.seed_everything(options.seed, workers=True, verbose=False)
    model = _make_model(options, recipe, train_data)
    model.backbone.freeze(recipe.optimizer.frozen_stages)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "recipe.yaml").write_text(yaml.safe_dump(plain_values(recipe)))
    model.codec.save(options.output / "codec.npz")

    draws = TrainingDraws(
        train_data,
        recipe.image_size,
        recipe.augment,
        model.codec.mask_size,
        seed=options.seed,
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
    trainee = Trainee(model, recipe, val_data, options.seed)
    # Lightning's notes on the machine and its products are no news of this run.
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    trainer = _make_trainer(options, recipe, accumulate, checkpoints)
    # Frozen batch norms are meant; so is resuming between epochs: draws are numbered, see Draws.
    warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before")
    trainer.fit(trainee, data_module, ckpt_path=last if options.resume else None, weights_only=True)
    return _finish(options, recipe, trainee, trainer, val_data)


def _check_output(options: TrainOptions, last: Path) -> None:
    if options.resume and not last.is_file():
        raise FileNotFoundError(
            f"{last}: nothing to resume; leave out --resume to begin a run in this folder."
        )
    if not options.resume and last.is_file():
        raise ValueError(
            f"{options.output}: holds an earlier run; go on with it by --resume, "
            "or choose another --output."
        )


def _find_recipe(options: TrainOptions) -> Recipe:
    if options.recipe is not None:
        return load_recipe(options.recipe)
    if options.resume:
        return load_recipe(options.output / "recipe.yaml")
    return read_info(options.init).recipe if options.init else load_recipe("default")


def _make_model(options: TrainOptions, recipe: Recipe, data: CocoData) -> MEInst:
    """The network with the weights that it starts from."""
    start = load_model(options.init) if options.init else None
    codec: Codec
    if options.codec is not None:
        codec = PCACodec.load(options.codec)
    elif start is not None:
        codec = start.codec
    else:
        codec = fit_codec(data, recipe.codec)
    model = build_model(data.class_names, recipe, codec)
    if options.resume:  # all weights come from the checkpoint
        return model
    if start is not None:
        _take_weights(model, start)
    elif not options.random_backbone:
        source = load_imagenet_weights(model.backbone, recipe.model.backbone)
        log.info("backbone %s starts from %s", recipe.model.backbone, source)
    return model


def _take_weights(model: MEInst, start: MEInst) -> None:
    """Copy what fits; class logits and codes only where they mean the same."""
    if model.options != start.options:
        raise ValueError(
            f"--init has another network than the recipe: {start.options} against "
            f"{model.options}. Leave out --recipe to train by the recipe of --init."
        )
    anew = []
    if model.class_names != start.class_names:
        anew.append("head.logits.")
    same_codec = model.codec.state_dict().keys() == start.codec.state_dict().keys() and all(
        torch.equal(mine, start.codec.state_dict()[name])
        for name, mine in model.codec.state_dict().items()
    )
    if not same_codec:
        anew.append("head.codes.")
    skipped = (*anew, "codec.")
    taken = {k: v for k, v in start.state_dict().items() if not k.startswith(skipped)}
    model.load_state_dict(taken, strict=False)
    if anew:
        log.info("made anew, because classes or codec differ: %s", ", ".join(anew))


def _make_trainer(
    options: TrainOptions, recipe: Recipe, accumulate: int, checkpoints: Path
) -> L.Trainer:
    schedule = recipe.schedule
    callbacks: list[Any] = [
        ModelCheckpoint(
            checkpoints,
            filename="best",
            monitor=MONITORED,
            mode="max",
            enable_version_counter=False,
        ),
        ModelCheckpoint(
            checkpoints,
            filename="last",
            every_n_train_steps=options.checkpoint_every,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        ResumableBar(refresh_rate=5),
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
        val_check_interval=min(schedule.validate_every, schedule.iterations) * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
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
    mixed = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_avx512_bf16_supported()
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
    save_model(model, options.output / "last.safetensors", recipe)
    best = torch.load(
        options.output / "checkpoints" / "best.ckpt", map_location="cpu", weights_only=True
    )
    prefix = "model."
    state = {k[len(prefix) :]: v for k, v in best["state_dict"].items() if k.startswith(prefix)}
    model.load_state_dict(state)
    save_model(model, best_path, recipe, metrics=best["metrics"])
    content = json.dumps({"update": best["global_step"], **best["metrics"]}, indent=2)
    write_atomically(options.output / "metrics.json", content.encode())
    draw_curves(read_logs(options.output / "logs"), options.output / "curves.png")
    draw_sheet(model, val_data, options.output / "overlays.jpg")
    return best_path
