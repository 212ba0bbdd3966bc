"""Conversion of foreign files to files of this project, and of models back."""

from __future__ import annotations

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
from meinst.compat.sources import HUB, ForeignWeights, locate, read_weights, reject_others
from meinst.detector.meinst import MEInst
from meinst.files import open_atomically, remove_leftovers
from meinst.models.backbone_file import save_backbone
from meinst.models.checkpoint import load_model, save_model
from meinst.models.recipe import Recipe, load_recipe


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        found: description of the source.
        tensors: number of converted tensors.
        recipe: name of the recipe or, for a backbone, of the network.
        notes: remarks for the user, one sentence each.
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
    """Convert published weights or a backbone to a file of this project.

    Args:
        source: a path or ``hf://OWNER/REPO/FILE``.
        output: the file to write, atomically.
        recipe: name of a shipped recipe, or a YAML file; derived from the weights if None.
        class_names: names of the model's classes; COCO's 80 if empty.

    Raises:
        FileNotFoundError: if the source or the output's folder does not exist.
        ForeignFileError: if the source cannot be converted.
        OSError: if a download fails or the output cannot be written.
    """
    _check_output(output, source)
    path = locate(source)
    weights = read_weights(path)
    if is_meinst(weights.tensors):
        return _convert_model(weights, path, output, recipe, tuple(class_names) or COCO_CLASSES)
    if not is_backbone(weights.tensors):
        reject_others(weights.tensors, path)
    if recipe or class_names:
        raise ValueError(
            f"{path}: a backbone, which has neither a recipe nor classes: leave out --recipe and "
            "--class-names, and choose the recipe in `meinst train`."
        )
    return _convert_backbone(weights, path, output)


def convert_back(source: str, output: Path) -> Conversion:
    """Convert a model to a checkpoint that AdelaiDet can load.

    Args:
        source: a shipped model's name, a model file, or ``hf://OWNER/REPO/FILE``.
        output: the ``.pth`` file to write, atomically.

    Raises:
        FileNotFoundError: if the source or the output's folder does not exist.
        ForeignFileError: if AdelaiDet has no such network.
        ModelFileError: if the source is not a model of this project.
    """
    _check_output(output, source)
    model = load_model(locate(source) if source.startswith(HUB) else source)
    state = to_adelaidet(model, source)
    with open_atomically(output) as file:
        torch.save({"model": state}, file)
    matching = [name for name in PUBLISHED if _has_recipe(model, load_recipe(name))]
    note = (
        "no published configuration describes this network: set the input, strides, thresholds "
        "and mask encoding in AdelaiDet's configuration to those of the model."
    )
    return Conversion(
        found="a model of meinst",
        tensors=len(state),
        recipe=" or ".join(matching) or "no published recipe",
        notes=() if matching else (note,),
    )


def _has_recipe(model: MEInst, recipe: Recipe) -> bool:
    """Whether a model has the network, input size and mask encoding of a recipe."""
    codec = model.codec.get_config()
    keys = ("n_components", "mask_size", "sigmoid", "whiten")
    same_codec = all(codec.get(key) == getattr(recipe.codec, key) for key in keys)
    return same_codec and (recipe.model, recipe.resize) == (model.options, model.resize_options)


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
        "with other image sizes or another schedule; if the file was trained with one of them, "
        "name it with --recipe."
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
    notes = ["use the file with `meinst train --backbone-weights`."]
    if weights.author == "torchvision":
        notes.append(
            "torchvision's weights expect RGB and have the stride in the 3x3 conv; the recipes "
            "MEInst_R_50_* are for MSRA's weights."
        )
    return Conversion("a backbone of Detectron2", len(tensors), network, tuple(notes))


def _check_output(output: Path, source: str) -> None:
    folder = output.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{output}: its folder does not exist; create {folder} first.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; give the name of a file.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{output}: the folder {folder} cannot be written; choose another.")
    if output.exists() and Path(source).exists() and output.samefile(source):
        raise ValueError(f"{output} is the source itself; give another output.")
    remove_leftovers(folder)
