"""What a training run starts from: its recipe, its codec, the network and its first weights."""

from __future__ import annotations

import logging
from dataclasses import fields, replace

import torch

from meinst.codecs import Codec, load_codec
from meinst.data.coco import CocoData
from meinst.detector.backbone import load_imagenet_weights
from meinst.detector.meinst import MEInst
from meinst.engine.backbone_file import load_backbone
from meinst.engine.checkpoint import build_model, load_model, read_info
from meinst.engine.codec_fit import fit_codec
from meinst.engine.config import Recipe, TrainOptions, load_recipe

log = logging.getLogger("meinst")


def check_start(options: TrainOptions) -> None:
    """Refuse what contradicts itself, or would overwrite a run, before anything is read.

    Raises:
        FileNotFoundError: if there is nothing to resume, or no such backbone file.
        ValueError: if the folder holds a run, or two options say where the backbone starts.
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
        ValueError: if networks or trained weights differ.
    """
    pairs = [("model", recipe.model, begun_with.model)]
    pairs += [
        (f"optimizer.{key}", getattr(recipe.optimizer, key), getattr(begun_with.optimizer, key))
        for key in ("name", "frozen_stages")
    ]
    for key, mine, theirs in pairs:
        if mine != theirs:
            raise ValueError(
                f"--recipe {name}: its {key} is not that of the run to resume, whose weights would "
                "not fit. Begin anew in another --output (and take over weights by --init)."
            )


def make_model(options: TrainOptions, recipe: Recipe, data: CocoData) -> MEInst:
    """The network with the codec and the weights that it starts from.

    Raises:
        ValueError: if ``init`` has another network than the recipe.
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
        codec = fit_codec(data.annotations, recipe.codec)
    model = build_model(data.class_names, recipe, codec.for_classes(data.class_names))
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
