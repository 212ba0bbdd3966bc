"""The published MEInst models: AdelaiDet's names of the tensors, and ours.

One table says where a published tensor lies in our model; it is read in both directions, so what
comes in goes out again bit for bit.
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
from meinst.compat.coco_classes import COCO_CLASSES
from meinst.compat.detectron import detectron_name
from meinst.compat.errors import ForeignFileError, first_few
from meinst.detector.meinst import MEInst, ModelOptions
from meinst.engine.checkpoint import build_model
from meinst.engine.config import CodecOptions, Recipe, load_recipe

# Recipes of the published models. Some have the same network: the first that fits is taken.
PUBLISHED = ("MEInst_R_50_3x", "MEInst_R_50_1x", "MEInst_R_50_3x_512", "MEInst_R_50_1x_none")

_HEAD = "proposal_generator.MEInst_head."
_CODEC = "proposal_generator.mask_encoding."

# Our names and AdelaiDet's, but for the ResNet (detectron.py) and what a slice of ours is.
# Pyramid levels are counted from 0 here and from 3 there: {level}.
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

# Ours alone: counters that nothing reads, and shares of a total that the checkpoint leaves out.
_OURS_ALONE = re.compile(r".*\.num_batches_tracked|codec\.explained_variance_ratio_")

# Written by some versions of Detectron2; the recipe says the same, and must.
_INPUT = ("pixel_mean", "pixel_std")


@dataclass(frozen=True)
class Place:
    """Where a published tensor lies: in our tensor ``name``, at ``index`` of its first axis."""

    name: str
    index: int | slice

    def view(self, state: Mapping[str, Tensor]) -> Tensor:
        """The published tensor's place in a state dict of ours, not copied."""
        return state[self.name][self.index]


def places(state: Mapping[str, Tensor], where: str = "this model") -> dict[str, Place]:
    """The table: of every published name, its place in our model's state dict.

    Args:
        state: all tensors of a model of ours.
        where: what they belong to, for the error.

    Raises:
        ForeignFileError: if a tensor of ours has no published name, naming the first few.
    """
    table: dict[str, Place] = {}
    nameless = []
    for name, tensor in state.items():
        if _OURS_ALONE.fullmatch(name):
            continue
        if name == "head.scales":  # one number each there
            for level in range(len(tensor)):
                table[f"{_HEAD}scales.{level}.scale"] = Place(name, slice(level, level + 1))
            continue
        theirs = _published_name(name, state)
        if theirs is None:
            nameless.append(name)
        else:
            # A codec's arrays begin with an axis for classes; the published ones have none.
            table[theirs] = Place(name, 0 if name.startswith("codec.") else slice(None))
    if nameless:
        raise ForeignFileError(
            f"{where}: its network has no counterpart among the published ones; without a "
            f"published name: {first_few(nameless)}. Only ResNets with a pyramid without norms "
            "and 3x3 predictions can be translated."
        )
    return table


def _published_name(name: str, state: Mapping[str, Tensor]) -> str | None:
    if name.startswith("backbone.net."):
        resnet = detectron_name(name.removeprefix("backbone.net."))
        return f"backbone.bottom_up.{resnet}" if resnet else None
    for ours, theirs in _NAMES:
        if match := re.fullmatch(ours, name):
            level = int(match[1]) + 3 if "{level}" in theirs else 0
            found = match.expand(theirs.replace("{level}", str(level)))
            layer = name.removesuffix(".weight")
            if f"{layer}.offset.weight" in state:  # a deformable conv's own weight
                found = found.removesuffix(".weight") + ".conv.weight"
            return found
    return None


def is_meinst(state: Mapping[str, Tensor]) -> bool:
    """Whether these look like MEInst's weights, whole or not."""
    return any(key.startswith((_HEAD, _CODEC)) for key in state)


@dataclass(frozen=True)
class Fit:
    """A recipe that published weights were matched with.

    Attributes:
        recipe: its network, codec sizes included, is that of the weights.
        name: as given, or as shipped.
        others: shipped recipes that fit as well.
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
    """The recipe whose network these weights are, tensor for tensor.

    Args:
        state: published weights.
        path: their file, for errors.
        recipe: a shipped name or a YAML file that has to fit; any published one if None.
        class_names: of the ``C`` classes.

    Raises:
        ForeignFileError: if none fits; with what differs from the nearest.
    """
    candidates = {
        name: _with_codec_sizes(load_recipe(name), state)
        for name in ((recipe,) if recipe else PUBLISHED)
    }
    shapes: dict[tuple[ModelOptions, CodecOptions], dict[str, torch.Size]] = {}
    faults: dict[str, list[str]] = {}
    for name, one in candidates.items():
        network = (one.model, one.codec)  # several have the same
        if network not in shapes:
            shapes[network] = _expected_shapes(one, class_names, f"recipe {name}")
        faults[name] = _compare(state, shapes[network]) + _compare_input(state, one)
    fitting = [name for name in faults if not faults[name]]
    if not fitting:
        nearest = min(faults, key=lambda name: len(faults[name]))
        raise ForeignFileError(
            f"{path}: {len(faults[nearest])} tensors do not fit "
            f"{'the recipe' if recipe else 'the nearest recipe,'} {nearest}: "
            f"{first_few(faults[nearest])}. {_remedy(state, class_names)}"
        )
    return Fit(candidates[fitting[0]], fitting[0], tuple(fitting[1:]))


def from_adelaidet(
    state: Mapping[str, Tensor], recipe: Recipe, class_names: Sequence[str] = COCO_CLASSES
) -> MEInst:
    """Build our model of published weights.

    Args:
        state: published weights that fit, as :func:`find_recipe` saw to.
        recipe: what that returned.
        class_names: of the ``C`` classes.

    Returns:
        The model, in evaluation mode. Its codec is the matrix inside the weights; the shares of
        variance, which are not in there, are 0.
    """
    model = _build(recipe, class_names)
    ours = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    for key, place in places(ours).items():
        place.view(ours).copy_(state[key])
    model.load_state_dict(ours)
    return model.eval()


def to_adelaidet(model: MEInst, where: str = "this model") -> dict[str, Tensor]:
    """The weights of a model under their published names, with the published shapes.

    Input settings, thresholds and sizes are not among them: AdelaiDet has those in its
    configuration.

    Args:
        model: any MEInst.
        where: its name, for the error.

    Raises:
        ForeignFileError: if the network is none that AdelaiDet's MEInst could be, or its codec
            is no linear one for all classes.
    """
    codec = model.codec
    if not isinstance(codec, LinearCodec) or codec.class_names is not None:
        what = codec.kind if codec.class_names is None else "a basis for each class"
        raise ForeignFileError(
            f"{where}: its codec ({what}) has no counterpart in AdelaiDet, which knows one linear "
            "basis for all classes."
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
    """The recipe with the matrix's own number of components and mask size, if it has any."""
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
    with torch.device("meta"):  # no memory, no random numbers
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
            faults.append(f"{key} is of {tensor.dtype} instead of torch.float32")
    return faults


def _compare_input(state: Mapping[str, Tensor], recipe: Recipe) -> list[str]:
    faults = []
    for key in _INPUT:
        wanted = torch.tensor(getattr(recipe.model, key))
        if recipe.model.channel_order == "bgr":
            wanted = wanted.flip(0)
        if key in state and not torch.equal(state[key].flatten(), wanted):
            faults.append(f"{key} is {state[key].flatten().tolist()} instead of {wanted.tolist()}")
    return faults


def _remedy(state: Mapping[str, Tensor], class_names: Sequence[str]) -> str:
    bias = state.get(f"{_HEAD}cls_logits.bias")
    if bias is not None and bias.ndim == 1 and len(bias) != len(class_names):
        return (
            f"It has {len(bias)} classes, not {len(class_names)}: name them, in the order of its "
            "training, by --class-names."
        )
    return (
        "If it was trained by another recipe, give a YAML file of its network by --recipe; "
        "otherwise fetch the file anew."
    )
