"""What a training run starts from: its recipe, its codec, the network and its first weights."""

from __future__ import annotations

import logging
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from meinst.codecs import Codec, load_codec
from meinst.data.coco import CocoData
from meinst.detector.backbone import load_imagenet_weights
from meinst.detector.meinst import MEInst
from meinst.engine.backbone_file import load_backbone
from meinst.engine.checkpoint import build_model, load_model, read_info
from meinst.engine.codec_fit import fit_codec
from meinst.engine.config import CodecOptions, Recipe, TrainOptions, load_recipe

# Of a run's files those that could be given to it as well.
WRITTEN = ("recipe.yaml", "codec.npz", "best.safetensors", "last.safetensors")

log = logging.getLogger("meinst")


def check_start(options: TrainOptions) -> None:
    """Refuse what contradicts itself, or would overwrite a run, before anything is read.

    Raises:
        FileNotFoundError: if there is nothing to resume, or no such backbone file.
        ValueError: if the folder holds a run, or a file that is read would be overwritten, or two
            options say where the backbone starts.
    """
    last = options.output / "checkpoints" / "last.ckpt"
    if options.resume and not last.is_file():
        raise FileNotFoundError(
            f"{last}: nothing to resume; leave out --resume to begin a run in this folder."
        )
    used = last.is_file() or (options.output / "best.safetensors").is_file()
    if not options.resume and used:
        raise ValueError(
            f"{options.output}: holds an earlier run; go on with it by --resume, "
            "or choose another --output."
        )
    if not options.resume:
        _check_inputs(options)
    weights = options.backbone_weights
    if weights is None or options.resume:
        return
    if options.init is not None or options.random_backbone:
        raise ValueError(
            "--backbone-weights says where the backbone starts from, and so does "
            f"{'--init' if options.init else '--random-backbone'}: leave out one of them."
        )
    if not weights.is_file():
        raise FileNotFoundError(f"--backbone-weights {weights}: there is no such file.")


def _check_inputs(options: TrainOptions) -> None:
    """Refuse to overwrite what is read.

    Raises:
        ValueError: if a given file lies where the run writes one.
    """
    written = {(options.output / name).resolve() for name in WRITTEN}
    for option in ("recipe", "codec", "init", "backbone_weights"):
        given = getattr(options, option)
        if given is not None and Path(given).resolve() in written:
            raise ValueError(
                f"--{option.replace('_', '-')} {given}: the run would overwrite it; choose another "
                "--output."
            )


def find_recipe(options: TrainOptions) -> Recipe:
    """The recipe that is named, else the resumed run's, else that of ``init``, else the default."""
    begun_with = options.output / "recipe.yaml"
    if options.recipe is not None:
        recipe = load_recipe(options.recipe)
        if options.resume and recipe != load_recipe(begun_with):
            _check_same_weights(recipe, load_recipe(begun_with), options.recipe)
            log.warning("goes on by --recipe %s, not by its own %s", options.recipe, begun_with)
        return recipe
    if options.resume:
        return load_recipe(begun_with)
    if options.init is None:
        return load_recipe("default")
    recipe = read_info(options.init).recipe
    # What balances missed and wrong masks was found for that model, on other data.
    return replace(recipe, selection=replace(recipe.selection, score_threshold=None))


def _check_same_weights(recipe: Recipe, begun_with: Recipe, name: str) -> None:
    """Refuse a recipe that a checkpoint of another does not fit.

    Raises:
        ValueError: if networks or trained weights differ, or one has an average of them.
    """
    pairs: list[tuple[str, Any, Any]] = [("model", recipe.model, begun_with.model)]
    pairs += [
        (f"optimizer.{key}", getattr(recipe.optimizer, key), getattr(begun_with.optimizer, key))
        for key in ("name", "frozen_stages")
    ]
    averaged, was_averaged = (r.optimizer.ema_decay > 0 for r in (recipe, begun_with))
    pairs.append(("optimizer.ema_decay (0 or not)", averaged, was_averaged))
    for key, mine, theirs in pairs:
        if mine != theirs:
            raise ValueError(
                f"--recipe {name}: its {key} is not that of the run to resume, whose weights would "
                "not fit. Begin anew in another --output (and take over weights by --init)."
            )


def make_model(options: TrainOptions, recipe: Recipe, data: CocoData) -> MEInst:
    """The network with the codec and the weights that it starts from.

    Raises:
        ValueError: if ``init`` has another network than the recipe, or its codec cannot encode
            as the recipe asks.
        RuntimeError: if there are no ImageNet weights to start from.
    """
    start = load_model(options.init) if options.init and not options.resume else None
    codec: Codec
    if options.resume:
        codec = load_codec(options.output / "codec.npz")
    elif options.codec is not None:
        codec = load_codec(options.codec)
    elif start is not None:
        codec = start.codec
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            codec = fit_codec(data.annotations, recipe.codec)
        for warning in caught:
            log.warning("%s: %s", data.annotations, warning.message)
    _check_encoding(codec, recipe)
    try:
        codec = codec.for_classes(data.class_names)
    except ValueError as error:
        raise ValueError(
            f"{error} `meinst codec fit --per-class` does that; give the file by --codec."
        ) from error
    model = build_model(data.class_names, recipe, codec)
    if options.resume:  # all weights come from the checkpoint
        return model
    if start is not None:
        _take_weights(model, start)
    elif options.backbone_weights is not None:
        source = load_backbone(model.backbone, recipe.model.backbone, options.backbone_weights)
        log.info("backbone %s starts from %s", recipe.model.backbone, source)
    elif not options.random_backbone:
        source = load_imagenet_weights(model.backbone, recipe.model.backbone)
        log.info("backbone %s starts from %s", recipe.model.backbone, source)
    return model


def with_codec_of(model: MEInst, recipe: Recipe, options: TrainOptions) -> Recipe:
    """The recipe, telling of the codec that is used: that of a model or file, where one was given.

    Tells the user where a recipe of his choice says otherwise.
    """
    config = model.codec.get_config()
    said = {f.name: config[f.name] for f in fields(CodecOptions) if f.name in config}
    used = replace(recipe.codec, **said, per_class="class_names" in config)
    if used != recipe.codec and options.recipe is not None and options.codec is None:
        log.warning(
            "the codec (%s, %d numbers, masks of %d x %d) is that of %s: what --recipe %s says of "
            "one is not looked at; give another by --codec, in a new run",
            *(used.kind, used.n_components, used.mask_size, used.mask_size),
            "the run" if options.resume else f"--init {options.init}",
            options.recipe,
        )
    return replace(recipe, codec=used)


def _check_encoding(codec: Codec, recipe: Recipe) -> None:
    if recipe.loss.target_logits == "expected":
        return
    none = torch.zeros(0, codec.mask_size, codec.mask_size, dtype=torch.uint8)
    labels = torch.zeros(0, dtype=torch.int64)
    drawn = torch.Generator() if recipe.loss.target_logits == "random" else None
    try:
        codec.transform(none, labels=labels, logits=recipe.loss.target_logits, generator=drawn)
    except ValueError as error:
        raise ValueError(
            f"the codec cannot make loss.target_logits: {error} Set them to expected, or take a "
            "codec of kind pca or dct with sigmoid."
        ) from error


def _take_weights(model: MEInst, start: MEInst) -> None:
    """Copy what fits; class logits and codes only where they mean the same."""
    mine, theirs = model.options, start.options
    if mine != theirs:
        other = [f.name for f in fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name)]
        raise ValueError(
            f"--init has another network than the recipe: model.{', model.'.join(other)} differ. "
            "Leave out --recipe to train by the recipe of --init."
        )
    anew = []
    if model.class_names != start.class_names:
        anew.append("head.logits.")
    known = start.codec.state_dict()
    same_codec = model.codec.get_config() == start.codec.get_config() and all(
        torch.equal(array, known[name]) for name, array in model.codec.state_dict().items()
    )
    if not same_codec:
        anew.append("head.codes.")
    skipped = (*anew, "codec.")
    taken = {k: v for k, v in start.state_dict().items() if not k.startswith(skipped)}
    model.load_state_dict(taken, strict=False)
    if anew:
        log.info("made anew, because classes or codec differ: %s", ", ".join(anew))
