"""The published MEInst models: AdelaiDet's tensor names and those of this project.

One table maps published names to tensors of a model. It is used in both directions, so a conversion
to meinst and back gives the same tensors bit for bit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from meinst.codecs import PCACodec
from meinst.codecs.linear import LinearCodec
from meinst.codecs.options import CodecOptions
from meinst.compat.coco_classes import COCO_CLASSES
from meinst.compat.detectron import detectron_name
from meinst.compat.errors import ForeignFileError
from meinst.detector.meinst import MEInst
from meinst.detector.predictor import ModelOptions
from meinst.models.checkpoint import build_model
from meinst.models.recipe import Recipe, load_recipe
from meinst.ops.shapes_only import shapes_only
from meinst.options import first_few

# Recipes of the published models. Where several have the same network, the first one is chosen.
PUBLISHED = ("MEInst_R_50_3x", "MEInst_R_50_1x", "MEInst_R_50_3x_512", "MEInst_R_50_1x_none")

_HEAD = "proposal_generator.MEInst_head."
_CODEC = "proposal_generator.mask_encoding."

# Names here and in AdelaiDet, except for the ResNet (detectron.py) and slices of tensors.
# {level}: pyramid levels are counted from 0 here and from 3 in AdelaiDet.
_NAMES = (
    (r"fpn\.net\.inner_blocks\.(\d)\.0\.(weight|bias)", r"backbone.fpn_lateral{level}.\2"),
    (r"fpn\.net\.layer_blocks\.(\d)\.0\.(weight|bias)", r"backbone.fpn_output{level}.\2"),
    (r"fpn\.net\.extra_blocks\.(p[67])\.(weight|bias)", r"backbone.top_block.\1.\2"),
    (r"head\.shared_tower\.(.+)", _HEAD + r"share_tower.\1"),
    (r"head\.class_tower\.(.+)", _HEAD + r"cls_tower.\1"),
    (r"head\.box_tower\.(.+)", _HEAD + r"bbox_tower.\1"),
    (r"head\.mask_tower\.(.+)", _HEAD + r"mask_tower.\1"),
    (r"head\.logits\.(.+)", _HEAD + r"cls_logits.\1"),
    (r"head\.boxes\.(.+)", _HEAD + r"bbox_pred.\1"),
    (r"head\.centerness\.(.+)", _HEAD + r"ctrness.\1"),
    (r"head\.codes\.(weight|bias)", _HEAD + r"mask_pred.\1"),
    (r"codec\.components_", _CODEC + "components"),
    (r"codec\.mean_", _CODEC + "means"),
    (r"codec\.explained_variance_", _CODEC + "explained_variances"),
)

# Not in published checkpoints: unused counters, and shares of a total variance that is not stored.
_UNPUBLISHED = re.compile(r".*\.num_batches_tracked|codec\.explained_variance_ratio_")

# Written by some versions of Detectron2; the values must equal those of the recipe.
_INPUT = ("pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Place:
    """Location of a published tensor: ``index`` along the first axis of the tensor ``name``."""

    name: str
    index: int | slice

    def view(self, state: Mapping[str, Tensor]) -> Tensor:
        """The part of a model's state dict that is the published tensor, as a view."""
        return state[self.name][self.index]


def places(state: Mapping[str, Tensor], where: str = "this model") -> dict[str, Place]:
    """Map every published name to its place in a model's state dict.

    Args:
        state: the model's state dict.
        where: name of the model, for error messages.

    Raises:
        ForeignFileError: naming the first few tensors that have no published name.
    """
    table: dict[str, Place] = {}
    nameless = []
    for name, tensor in state.items():
        if _UNPUBLISHED.fullmatch(name):
            continue
        if name == "head.scales":  # one tensor per level in AdelaiDet
            for level in range(len(tensor)):
                table[f"{_HEAD}scales.{level}.scale"] = Place(name, slice(level, level + 1))
            continue
        published = _published_name(name, state)
        if published is None:
            nameless.append(name)
        else:
            # A codec's arrays begin with an axis for classes; the published arrays do not.
            table[published] = Place(name, 0 if name.startswith("codec.") else slice(None))
    if nameless:
        raise ForeignFileError(
            f"{where}: AdelaiDet has no such network; {len(nameless)} tensors have no published "
            f"name: {first_few(nameless, 4)}. Only models with a ResNet and a pyramid without "
            "norms can be converted."
        )
    return table


def _published_name(name: str, state: Mapping[str, Tensor]) -> str | None:
    if name.startswith("backbone.net."):
        resnet = detectron_name(name.removeprefix("backbone.net."))
        return f"backbone.bottom_up.{resnet}" if resnet else None
    for pattern, template in _NAMES:
        if match := re.fullmatch(pattern, name):
            level = int(match[1]) + 3 if "{level}" in template else 0
            published = match.expand(template.replace("{level}", str(level)))
            layer = name.removesuffix(".weight")
            if f"{layer}.offset.weight" in state:  # the kernel of a deformable conv
                published = published.removesuffix(".weight") + ".conv.weight"
            return published
    return None


def is_meinst(state: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is named like one of MEInst's."""
    return any(key.startswith((_HEAD, _CODEC)) for key in state)


@dataclass(frozen=True)
class Fit:
    """Result of :func:`find_recipe`.

    Attributes:
        recipe: the recipe, with the codec sizes of the weights.
        name: name or path of the recipe.
        others: names of published recipes that have the same network.
    """

    recipe: Recipe
    name: str
    others: tuple[str, ...]


def find_recipe(
    state: Mapping[str, Tensor],
    path: Path,
    recipe: str | None = None,
    class_names: Sequence[str] = COCO_CLASSES,
) -> Fit:
    """Find the recipe whose network matches published weights, tensor by tensor.

    Args:
        state: published weights.
        path: their file, for error messages.
        recipe: name of a shipped recipe, or a YAML file; if None, the published recipes are tried.
        class_names: names of the ``C`` classes.

    Raises:
        ForeignFileError: if no recipe matches, naming the differences from the closest one.
    """
    candidates = {
        name: _with_codec_sizes(load_recipe(name), state)
        for name in ((recipe,) if recipe else PUBLISHED)
    }
    shapes: dict[tuple[ModelOptions, CodecOptions], dict[str, torch.Size]] = {}
    faults: dict[str, list[str]] = {}
    for name, candidate in candidates.items():
        network = (candidate.model, candidate.codec)  # shared by several recipes
        if network not in shapes:
            shapes[network] = _expected_shapes(candidate, class_names, f"recipe {name}")
        faults[name] = _compare(state, shapes[network]) + _compare_input(state, candidate)
    matching = [name for name in faults if not faults[name]]
    if not matching:
        closest = min(faults, key=lambda name: len(faults[name]))
        raise ForeignFileError(
            f"{path}: {len(faults[closest])} tensors do not match "
            f"{'the recipe' if recipe else 'the closest recipe,'} {closest}: "
            f"{first_few(faults[closest], 4, '; ')}. {_remedy(state, class_names)}"
        )
    return Fit(candidates[matching[0]], matching[0], tuple(matching[1:]))


def from_adelaidet(
    state: Mapping[str, Tensor], recipe: Recipe, class_names: Sequence[str] = COCO_CLASSES
) -> MEInst:
    """Build a model from published weights.

    Args:
        state: published weights.
        recipe: the recipe that :func:`find_recipe` returned for them.
        class_names: names of the ``C`` classes.

    Returns:
        The model, in evaluation mode. Its codec is the matrix among the weights; its
        ``explained_variance_ratio_``, which is not published, is 0.
    """
    model = _build(recipe, class_names)
    converted = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for key, place in places(converted).items():
        place.view(converted).copy_(state[key])
    model.load_state_dict(converted)
    return model.eval()


def to_adelaidet(model: MEInst, where: str = "this model") -> dict[str, Tensor]:
    """Convert a model's weights to published names and shapes.

    Input settings, thresholds and image sizes are not included: AdelaiDet reads them from its
    configuration.

    Args:
        model: any MEInst.
        where: name of the model, for error messages.

    Raises:
        ForeignFileError: if AdelaiDet's MEInst has no such network, or the codec is not a linear
            one shared by all classes.
    """
    codec = model.codec
    if not isinstance(codec, LinearCodec) or codec.class_names is not None:
        what = codec.kind if codec.class_names is None else "a basis for each class"
        raise ForeignFileError(
            f"{where}: its codec ({what}) has no counterpart in AdelaiDet, which supports only one "
            "linear basis for all classes."
        )
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    return {
        key: place.view(state).clone(memory_format=torch.contiguous_format)
        for key, place in places(state, where).items()
    }


def _build(recipe: Recipe, class_names: Sequence[str]) -> MEInst:
    options = recipe.codec
    codec = PCACodec(
        options.n_components, options.mask_size, sigmoid=options.sigmoid, whiten=options.whiten
    )
    return build_model(tuple(class_names), recipe, codec)


def _with_codec_sizes(recipe: Recipe, state: Mapping[str, Tensor]) -> Recipe:
    """The recipe with the codec sizes of the published matrix, if the weights contain one."""
    components = state.get(f"{_CODEC}components")
    if components is None or components.ndim != 2:
        return recipe
    count, size = components.shape
    side = math.isqrt(size)
    if side * side != size or not 1 <= count <= size:
        return recipe
    return replace(recipe, codec=replace(recipe.codec, n_components=count, mask_size=side))


def _expected_shapes(
    recipe: Recipe, class_names: Sequence[str], where: str
) -> dict[str, torch.Size]:
    with shapes_only():  # needs no memory and no random numbers
        state = _build(recipe, class_names).state_dict()
    return {key: place.view(state).shape for key, place in places(state, where).items()}


def _compare(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> list[str]:
    faults = [f"{key} is missing" for key in expected if key not in state]
    for key, tensor in state.items():
        if key in _INPUT:
            continue
        if key not in expected:
            faults.append(f"{key} is unknown")
        elif tensor.shape != expected[key]:
            faults.append(
                f"{key} has the shape {tuple(tensor.shape)} instead of {tuple(expected[key])}"
            )
        elif tensor.dtype != torch.float32:
            faults.append(f"{key} has the type {tensor.dtype} instead of torch.float32")
    return faults


def _compare_input(state: Mapping[str, Tensor], recipe: Recipe) -> list[str]:
    faults = []
    for key in _INPUT:
        expected = torch.tensor(getattr(recipe.model, key))
        if recipe.model.channel_order == "bgr":
            expected = expected.flip(0)
        if key in state and not torch.equal(state[key].flatten(), expected):
            found = state[key].flatten().tolist()
            faults.append(f"{key} is {found} instead of {expected.tolist()}")
    return faults


def _remedy(state: Mapping[str, Tensor], class_names: Sequence[str]) -> str:
    bias = state.get(f"{_HEAD}cls_logits.bias")
    if bias is not None and bias.ndim == 1 and len(bias) != len(class_names):
        return (
            f"It has {len(bias)} classes, not {len(class_names)}: name them with --class-names, in "
            "the order used in training."
        )
    return (
        "If it was trained with another configuration, describe the network in a YAML file and "
        "give it with --recipe; otherwise download the file again."
    )
