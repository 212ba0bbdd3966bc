"""The published system's recorded numbers, and the networks that have to give the same.

Functions are cached, so that tests share what takes long.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meinst.data.images import load_image
from meinst.data.transforms import InputOptions, resized_size
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.types import HeadOutputs

FIXTURES = Path(__file__).parent / "fixtures"
RECIPES = {"r50_plain": "MEInst_R_50_1x_none", "r50_deform": "MEInst_R_50_3x"}

WEIGHTS = tuple(RECIPES)

Recorded = dict[str, np.ndarray]


@functools.cache
def _checkpoint(weights: str) -> dict[str, Tensor]:
    spec = importlib.util.spec_from_file_location("checkpoint", FIXTURES / "checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state: dict[str, Tensor] = module.state_dict(weights)
    return state


def our_name(key: str) -> str:
    """LOCAL stand-in for compat's mapping."""
    if key.startswith("backbone.bottom_up."):
        key = key.removeprefix("backbone.bottom_up.")
        key = key.replace("stem.conv1.norm.", "bn1.").replace("stem.conv1.", "conv1.")
        key = re.sub(r"res(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", key)
        key = key.replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
        key = re.sub(r"conv(\d)\.norm\.", r"bn\1.", key)
        return "backbone.net." + key
    if match := re.match(r"backbone\.fpn_(lateral|output)(\d)\.(.*)", key):
        kind = "inner" if match[1] == "lateral" else "layer"
        return f"fpn.net.{kind}_blocks.{int(match[2]) - 3}.0.{match[3]}"
    if "top_block" in key:
        return key.replace("backbone.top_block", "fpn.net.extra_blocks")
    if "mask_encoding" in key:
        names = {
            "components": "components_",
            "means": "mean_",
            "explained_variances": "explained_variance_",
        }
        return "codec." + names[key.split(".")[-1]]
    key = key.replace("proposal_generator.MEInst_head.", "head.")
    key = re.sub(r"scales\.\d\.scale", "scales", key)
    for old, new in (
        ("cls_tower", "class_tower"),
        ("bbox_tower", "box_tower"),
        ("cls_logits", "logits"),
        ("bbox_pred", "boxes"),
        ("ctrness", "centerness"),
        ("mask_pred", "codes"),
        (".conv.weight", ".weight"),
    ):
        key = key.replace(old, new)
    return key


@functools.cache
def load_published(weights: str) -> MEInst:
    """The network with the published weights of a recording; shared, so copy before changing it."""
    from meinst.codecs import PCACodec
    from meinst.engine.checkpoint import build_model
    from meinst.engine.config import load_recipe

    recipe = load_recipe(RECIPES[weights])
    model = build_model(tuple(str(i) for i in range(80)), recipe, PCACodec())
    theirs = _checkpoint(weights)
    ours = {our_name(k): v[None] if "mask_encoding" in k else v for k, v in theirs.items()}
    scales = [v for k, v in theirs.items() if ".scales." in k]
    ours["head.scales"] = torch.stack(scales).flatten()
    found = model.load_state_dict(ours, strict=False)
    assert not found.unexpected_keys
    return model.eval()


@functools.cache
def recorded(name: str) -> Recorded:
    """The arrays of a recorded ``.npz``; shared, so copy before changing them."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def at_side(model: MEInst, side: int) -> MEInst:
    """The same network, for another test size."""
    model = copy.copy(model)
    model.image_size = InputOptions(side, 1333)
    return model


@dataclass(frozen=True)
class Inference:
    """What one call of ``predict`` returned, and what the network said in it."""

    outputs: HeadOutputs
    detections: Detections
    resized: tuple[int, int]


def infer(weights: str, picture: str, side: int) -> Inference:
    """What ``predict`` does with a picture (``a``, ``b``, ``c``) at a shorter side."""
    # Two sides may mean the same size, where the longer side's limit decides.
    height, width = load_image(FIXTURES / f"{picture}.png").shape[:2]
    return _infer(weights, picture, resized_size(height, width, InputOptions(side, 1333)))


@functools.cache
def _infer(weights: str, picture: str, resized: tuple[int, int]) -> Inference:
    model = at_side(load_published(weights), min(resized))
    heard: list[HeadOutputs] = []
    handle = model.register_forward_hook(lambda _module, _images, outputs: heard.append(outputs))
    try:
        detections = model.predict(FIXTURES / f"{picture}.png", score_threshold=0.0)
    finally:
        handle.remove()
    return Inference(heard[0], detections, resized)
