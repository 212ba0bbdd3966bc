"""Translating foreign files to ours, and models back."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from meinst.compat.adelaidet import (
    PUBLISHED,
    find_recipe,
    from_adelaidet,
    is_meinst,
    to_adelaidet,
)
from meinst.compat.coco_classes import COCO_CLASSES
from meinst.compat.detectron import from_detectron, is_backbone
from meinst.compat.sources import HUB, ForeignWeights, locate, read_weights, refuse_others
from meinst.detector.meinst import MEInst
from meinst.engine.backbone_file import save_backbone
from meinst.engine.checkpoint import load_model, save_model
from meinst.engine.config import Recipe, load_recipe
from meinst.files import write_atomically


@dataclass(frozen=True)
class Conversion:
    """What was found and done.

    Attributes:
        found: what the source is.
        tensors: how many were translated.
        recipe: its recipe, or its network's name.
        notes: what the user should know, a sentence each.
    """

    found: str
    tensors: int
    recipe: str
    notes: tuple[str, ...] = ()


def convert(
    source: str,
    output: Path,
    recipe: str | None = None,
    class_names: Sequence[str] = (),
) -> Conversion:
    """Translate published weights, or a backbone's, to a file of ours.

    Args:
        source: a path or ``hf://OWNER/REPO/FILE``.
        output: the file, written whole or not at all.
        recipe: a shipped name or a YAML file; found from the weights if None.
        class_names: of the model's classes; COCO's if empty.

    Raises:
        FileNotFoundError: if the source or the output's folder does not exist.
        ForeignFileError: if the source is not what can be translated.
        OSError: if a download fails or the output cannot be written.
    """
    _check_output(output, source)
    path = locate(source)
    weights = read_weights(path)
    if is_meinst(weights.tensors):
        return _convert_model(weights, path, output, recipe, tuple(class_names) or COCO_CLASSES)
    if not is_backbone(weights.tensors):
        refuse_others(weights.tensors, path)
    if recipe or class_names:
        raise ValueError(
            f"{path}: a backbone for training, which has neither recipe nor classes: leave out "
            "--recipe and --class-names, and give the recipe to `meinst train`."
        )
    return _convert_backbone(weights, path, output)


def convert_back(source: str, output: Path) -> Conversion:
    """Translate a model of ours to a checkpoint that AdelaiDet loads.

    Args:
        source: a shipped model's name, a model file, or ``hf://OWNER/REPO/FILE``.
        output: the ``.pth``, written whole or not at all.

    Raises:
        FileNotFoundError: if the source or the output's folder does not exist.
        ForeignFileError: if AdelaiDet has no such network.
        ModelFileError: if the source is no model of ours.
    """
    _check_output(output, source)
    model = load_model(locate(source) if source.startswith(HUB) else source)
    state = to_adelaidet(model, source)
    buffer = io.BytesIO()
    torch.save({"model": state}, buffer)
    write_atomically(output, buffer.getvalue())
    fitting = [name for name in PUBLISHED if _is_of(model, load_recipe(name))]
    note = (
        "no published configuration is this network's: set input, strides, thresholds and mask "
        "encoding of AdelaiDet's to those of the model."
    )
    return Conversion(
        found="a model of meinst",
        tensors=len(state),
        recipe=" or ".join(fitting) or "one of its own",
        notes=() if fitting else (note,),
    )


def _is_of(model: MEInst, recipe: Recipe) -> bool:
    """Whether a recipe's network, input and mask encoding are a model's."""
    codec = model.codec.get_config()
    keys = ("n_components", "mask_size", "sigmoid", "whiten")
    same_codec = all(codec.get(key) == getattr(recipe.codec, key) for key in keys)
    return same_codec and (recipe.model, recipe.image_size) == (model.options, model.image_size)


def _convert_model(
    weights: ForeignWeights,
    path: Path,
    output: Path,
    recipe: str | None,
    class_names: tuple[str, ...],
) -> Conversion:
    fit = find_recipe(weights.tensors, path, recipe, class_names)
    save_model(from_adelaidet(weights.tensors, fit.recipe, class_names), output, fit.recipe)
    note = (
        f"{' and '.join(fit.others)} {'has' if len(fit.others) == 1 else 'have'} the same network "
        "with other image sizes or another schedule; if the file is one of those, give its name "
        "by --recipe."
    )
    return Conversion(
        found=f"a MEInst checkpoint of AdelaiDet, {len(class_names)} classes",
        tensors=len(weights.tensors),
        recipe=fit.name,
        notes=(note,) if fit.others else (),
    )


def _convert_backbone(weights: ForeignWeights, path: Path, output: Path) -> Conversion:
    network, tensors = from_detectron(weights.tensors, path)
    save_backbone(tensors, network, output, origin=path.name)
    notes = ["for `meinst train --backbone-weights`."]
    if weights.author == "torchvision":
        notes.append(
            "torchvision's weights take RGB and have the stride on the 3x3 conv; the recipes "
            "MEInst_R_50_* are for MSRA's."
        )
    return Conversion("a backbone of Detectron2", len(tensors), network, tuple(notes))


def _check_output(output: Path, source: str) -> None:
    folder = output.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{output}: its folder does not exist; make {folder} first.")
    if output.is_dir():
        raise ValueError(f"{output}: is a folder; give the name of a file.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{output}: the folder {folder} cannot be written; choose another.")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise ValueError(f"{output}: is the source itself; give another output.")
