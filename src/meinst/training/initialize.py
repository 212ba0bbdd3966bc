"""The start of a training run: its recipe, its codec, the network and its first weights."""

from __future__ import annotations

import logging
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from meinst.codec_tools.fit import fit_codec
from meinst.codecs import Codec, load_codec
from meinst.codecs.options import CodecOptions
from meinst.data.coco import CocoData
from meinst.detector.backbone import load_imagenet_weights
from meinst.detector.meinst import MEInst
from meinst.models.backbone_file import load_backbone
from meinst.models.checkpoint import build_model, load_model, read_info
from meinst.models.recipe import Recipe, load_recipe
from meinst.options import first_few
from meinst.training.options import TrainOptions

# Files of a run that could also be given to it as input.
OUTPUTS = ("recipe.yaml", "codec.npz", "best.safetensors", "last.safetensors")

log = logging.getLogger("meinst")


def check_start(options: TrainOptions) -> None:
    """Reject contradictory options, and runs that would overwrite another, before any reading.

    Raises:
        FileNotFoundError: if there is nothing to resume, or no such backbone file.
        ValueError: if the folder contains a run, if an input file would be overwritten, or if two
            options say where the backbone starts.
    """
    last, best = options.last_checkpoint, options.best_checkpoint
    if options.resume:
        if not (last.is_file() or best.is_file()):
            raise FileNotFoundError(
                f"{last}: there is no run to resume; start one without --resume."
            )
        return
    if any(path.is_file() for path in (last, best, options.output / "best.safetensors")):
        raise ValueError(
            f"{options.output} contains an earlier run; continue it with --resume, or choose "
            "another --output."
        )
    _check_inputs(options)
    weights = options.backbone_weights
    if weights is None:
        return
    if options.init is not None or options.random_backbone:
        raise ValueError(
            f"--backbone-weights cannot be combined with "
            f"{'--init' if options.init else '--random-backbone'}; leave out one of them."
        )
    if not weights.is_file():
        raise FileNotFoundError(f"--backbone-weights {weights} does not exist.")


def _check_inputs(options: TrainOptions) -> None:
    """Reject input files that the run would overwrite.

    Raises:
        ValueError: if there is one.
    """
    outputs = {(options.output / name).resolve() for name in OUTPUTS}
    for option in ("codec", "init", "backbone_weights"):
        path = getattr(options, option)
        if path is not None and Path(path).resolve() in outputs:
            raise ValueError(
                f"--{option.replace('_', '-')} {path}: the run would overwrite it; choose another "
                "--output."
            )


def base_recipe(init: str | None = None, resume: bool = False, output: Path = Path()) -> Recipe:
    """The recipe of a run for which none is given.

    Args:
        init: the model that the run starts from.
        resume: whether the run continues the one in ``output``.
        output: its output folder.

    Returns:
        The resumed run's recipe, else that of ``init``, else ``default``.
    """
    if resume:
        return load_recipe(output / "recipe.yaml")
    if init is None:
        return load_recipe("default")
    recipe = read_info(init).recipe
    # The threshold that maximised F1 belongs to that model and its data.
    return replace(recipe, selection=replace(recipe.selection, score_threshold=None))


def find_recipe(options: TrainOptions) -> Recipe:
    """The recipe of a run: the given one, or :func:`base_recipe`.

    Raises:
        ValueError: if a resumed run is given a recipe that its checkpoint does not fit.
    """
    if options.recipe is None:
        return base_recipe(options.init, options.resume, options.output)
    if options.resume:
        own = load_recipe(options.output / "recipe.yaml")
        if options.recipe != own:
            _check_same_weights(options.recipe, own)
            log.warning("the run continues with a recipe that differs from the one it started with")
    return options.recipe


def _check_same_weights(recipe: Recipe, own: Recipe) -> None:
    """Reject a recipe that does not fit the checkpoint of a run.

    Raises:
        ValueError: if networks or trained weights differ, or only one averages the weights.
    """
    averaged, was_averaged = (r.optimizer.ema_decay > 0 for r in (recipe, own))
    pairs: list[tuple[str, Any, Any]] = [
        ("model", recipe.model, own.model),
        ("optimizer.name", recipe.optimizer.name, own.optimizer.name),
        ("optimizer.frozen_stages", recipe.optimizer.frozen_stages, own.optimizer.frozen_stages),
        ("optimizer.ema_decay (zero or not)", averaged, was_averaged),
    ]
    for key, value, own_value in pairs:
        if value != own_value:
            raise ValueError(
                f"--recipe: {key} differs from that of the run to resume, so the saved weights do "
                "not fit; start a new run in another --output (and reuse weights with --init)."
            )


def make_model(options: TrainOptions, recipe: Recipe, data: CocoData) -> MEInst:
    """The network with its codec and initial weights.

    Raises:
        ValueError: if ``init`` has another network than the recipe, or its codec cannot encode
            the targets that the recipe needs.
        RuntimeError: if there are no ImageNet weights to start from.
    """
    start = load_model(options.init) if options.init and not options.resume else None
    codec = _find_codec(options, recipe, data, start)
    _check_encoding(codec, recipe)
    try:
        codec = codec.for_classes(data.class_names)
    except ValueError as error:
        raise ValueError(
            f"{error} Fit one with `meinst codec fit --per-class` and give it with --codec."
        ) from error
    model = build_model(data.class_names, recipe, codec)
    if options.resume:  # the checkpoint has all weights
        return model
    if start is not None:
        _copy_weights(model, start)
    elif options.backbone_weights is not None:
        source = load_backbone(model.backbone, recipe.model.backbone, options.backbone_weights)
        log.info("backbone %s starts from %s", recipe.model.backbone, source)
    elif not options.random_backbone:
        source = load_imagenet_weights(model.backbone, recipe.model.backbone)
        log.info("backbone %s starts from %s", recipe.model.backbone, source)
    return model


def _find_codec(
    options: TrainOptions, recipe: Recipe, data: CocoData, start: MEInst | None
) -> Codec:
    """The codec of the resumed run, else the given one, else that of ``init``, else a new one."""
    if options.resume:
        return load_codec(options.output / "codec.npz")
    if options.codec is not None:
        return load_codec(options.codec)
    if start is not None:
        return start.codec
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        codec = fit_codec(data, recipe.codec)
    for warning in caught:
        log.warning("%s: %s", data.annotations, warning.message)
    return codec


def with_codec_of(model: MEInst, recipe: Recipe, options: TrainOptions) -> Recipe:
    """The recipe with the options of the codec in use, which may come from a model or file.

    Warns the user if a given recipe asks for another codec.
    """
    config = model.codec.get_config()
    known = {f.name: config[f.name] for f in fields(CodecOptions) if f.name in config}
    used = replace(recipe.codec, **known, per_class="class_names" in config)
    if used != recipe.codec and options.recipe is not None and options.codec is None:
        log.warning(
            "the codec (%s, %d components, %d x %d masks) is that of %s; the recipe's codec "
            "options are ignored; to use another codec, start a new run with --codec",
            *(used.kind, used.n_components, used.mask_size, used.mask_size),
            "the run" if options.resume else f"--init {options.init}",
        )
    return replace(recipe, codec=used)


def _check_encoding(codec: Codec, recipe: Recipe) -> None:
    """Reject a codec that cannot encode the recipe's kind of target logits."""
    if recipe.loss.target_logits == "expected":
        return
    empty = torch.zeros(0, codec.mask_size, codec.mask_size, dtype=torch.uint8)
    labels = torch.zeros(0, dtype=torch.int64)
    generator = torch.Generator() if recipe.loss.target_logits == "random" else None
    try:
        codec.transform(empty, labels=labels, logits=recipe.loss.target_logits, generator=generator)
    except ValueError as error:
        raise ValueError(
            f"the codec does not support loss.target_logits = {recipe.loss.target_logits}: {error} "
            "Set it to expected, or use a codec of kind pca or dct with sigmoid."
        ) from error


def _copy_weights(model: MEInst, start: MEInst) -> None:
    """Copy the weights of ``init``: logits of the classes it knows, codes of the same codec."""
    own, other = model.options, start.options
    if own != other:
        differing = [f.name for f in fields(own) if getattr(own, f.name) != getattr(other, f.name)]
        raise ValueError(
            "the network of --init differs from that of the recipe in "
            f"model.{', model.'.join(differing)}; leave out --recipe to use the recipe of --init."
        )
    new = []
    if model.class_names != start.class_names:
        new.append("head.logits.")
    arrays = start.codec.state_dict()
    same_codec = model.codec.get_config() == start.codec.get_config() and all(
        torch.equal(array, arrays[name]) for name, array in model.codec.state_dict().items()
    )
    if not same_codec:
        new.append("head.codes.")
    skipped = (*new, "codec.")
    copied = {k: v for k, v in start.state_dict().items() if not k.startswith(skipped)}
    model.load_state_dict(copied, strict=False)
    known = _copy_known_classes(model, start)
    if new:
        log.info(
            "not copied from --init, since the classes or the codec differ: %s%s",
            ", ".join(new),
            f" (but for {first_few(known)})" if known and new[0] == "head.logits." else "",
        )


@torch.no_grad()
def _copy_known_classes(model: MEInst, start: MEInst) -> list[str]:
    """Copy the logits of the classes that ``start`` has by the same name; returns their names."""
    known = [name for name in model.class_names if name in start.class_names]
    own = [model.class_names.index(name) for name in known]
    other = [start.class_names.index(name) for name in known]
    for name, tensor in model.head.logits.named_parameters():
        tensor[own] = start.head.logits.get_parameter(name)[other]
    return known
