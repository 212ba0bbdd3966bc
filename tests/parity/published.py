"""Recordings of the published system, and the networks that must reproduce them.

Functions are cached, so that tests share slow computations.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from meinst.compat.adelaidet import from_adelaidet
from meinst.compat.coco_classes import COCO_CLASSES
from meinst.data.images import load_image
from meinst.data.transforms import ResizeOptions, resized_size
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.models.recipe import load_recipe
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


@functools.cache
def load_published(weights: str) -> MEInst:
    """The network with the weights of a recording; shared, so copy before changing it."""
    state = _checkpoint(weights)
    model = from_adelaidet(state, load_recipe(RECIPES[weights]), COCO_CLASSES)
    return model.eval()


@functools.cache
def recorded(name: str) -> Recorded:
    """The arrays of a recorded ``.npz``; shared, so copy before changing them."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def at_side(model: MEInst, side: int) -> MEInst:
    """The same network with another test size."""
    model = copy.copy(model)
    model.resize_options = ResizeOptions(side, 1333)
    return model


@dataclass(frozen=True)
class Inference:
    """Outputs of the network and the detections of one call of ``predict``."""

    outputs: HeadOutputs
    detections: Detections
    resized: tuple[int, int]


def infer(weights: str, picture: str, side: int) -> Inference:
    """Run ``predict`` on a picture (``a``, ``b``, ``c``) resized to a shorter side."""
    # Different sides can give the same size, because of the limit of the longer side.
    height, width = load_image(FIXTURES / f"{picture}.png").shape[:2]
    return _infer(weights, picture, resized_size(height, width, ResizeOptions(side, 1333)))


@functools.cache
def _infer(weights: str, picture: str, resized: tuple[int, int]) -> Inference:
    model = at_side(load_published(weights), min(resized))
    recording: list[HeadOutputs] = []
    handle = model.register_forward_hook(lambda _model, _images, out: recording.append(out))
    try:
        detections = model.predict(FIXTURES / f"{picture}.png", score_threshold=0.0)
    finally:
        handle.remove()
    return Inference(recording[0], detections, resized)
