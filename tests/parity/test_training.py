"""One training step of the published code: assignment, losses, gradients."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from published import WEIGHTS, Recorded, load_published, recorded
from torch import Tensor

from meinst.compat.adelaidet import places
from meinst.data.shapes import Instances
from meinst.data.transforms import Geometry, transform_instances
from meinst.detector.assign import assign_points
from meinst.detector.losses import LossOptions, compute_losses, level_ranges
from meinst.detector.meinst import MEInst
from meinst.ops.boxes import boxes_to_distances
from meinst.types import HeadOutputs, Target

pytestmark = pytest.mark.slow

BATCHES = ("normal", "second_no_positive")
OPTIONS = LossOptions(giou_smooth=1.0, target_logits="constant")
LOSSES = {"class": "cls", "box": "loc", "centerness": "ctr", "code": "mask"}
BACKGROUND = 80


@dataclass(frozen=True)
class Step:
    """A recorded step, made again."""

    wanted: Recorded
    model: MEInst
    outputs: HeadOutputs
    targets: list[Target]
    losses: dict[str, Tensor]
    gradients: dict[str, Tensor]


def make_target(wanted: Recorded, image: int) -> Target:
    """The project's own way from annotations to a target, without any augmentation."""
    polygons = tuple(
        tuple(np.asarray(part, dtype=np.float64) for part in parts)
        for parts in json.loads(str(wanted[f"gt_polygons{image}"]))
    )
    boxes = wanted[f"gt_boxes{image}"].astype(np.float64)
    crowd = np.zeros(len(boxes), dtype=np.bool_)
    instances = Instances(boxes, wanted[f"gt_classes{image}"], polygons, crowd)
    height, width = wanted[f"image{image}"].shape[1:]
    whole = Geometry((0.0, 0.0, float(width), float(height)), (height, width))
    target = transform_instances(instances, whole, 28)
    assert len(target.boxes) == len(boxes)
    return target


def read_images(wanted: Recorded) -> list[Tensor]:
    """Recorded as the published loader gives them, blue first."""
    return [torch.from_numpy(wanted[f"image{i}"]).flip(0) for i in (0, 1)]


@functools.cache
def trainable(weights: str) -> MEInst:
    model = copy.deepcopy(load_published(weights)).train()
    model.backbone.freeze(2)
    return model


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sum in one order on every machine.

    Some bias gradients are small sums of large numbers: of r50_deform's fpn_lateral3.bias the
    recorded norm is 1.15e-3 off the one in float64, and ours on two threads 1.15e-3 off the
    recorded; on one thread every norm is within 7.1e-4 of the recorded.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def make_step(weights: str, batch: str) -> Step:
    wanted = recorded(f"train_{weights}_{batch}")
    model = trainable(weights)
    model.zero_grad()
    targets = [make_target(wanted, image) for image in (0, 1)]
    limits = model.options.distance_limits
    with one_thread():
        outputs = model(read_images(wanted))
        losses = compute_losses(outputs, targets, model.codec, limits, OPTIONS)
        torch.stack(list(losses.values())).sum().backward()
    known = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    table = places(model.state_dict())
    gradients = {
        theirs: place.view(known).clone() for theirs, place in table.items() if place.name in known
    }
    detached = {name: value.detach() for name, value in losses.items()}
    return Step(wanted, model, outputs, targets, detached, gradients)


@pytest.fixture(params=[(w, b) for w in WEIGHTS for b in BATCHES], ids="-".join)
def step(request: pytest.FixtureRequest) -> Step:
    return make_step(*request.param)


def assigned(step: Step) -> Iterator[tuple[int, int, Tensor]]:
    """Level, image and the indices of its points' instances, in the order of the recording."""
    outputs = step.outputs
    ranges = level_ranges(outputs.strides, outputs.level_sizes, step.model.options.distance_limits)
    index = [
        assign_points(outputs.points, outputs.strides, ranges, target.boxes)
        for target in step.targets
    ]
    start = 0
    for level, count in enumerate(outputs.level_sizes):
        for image in (0, 1):
            yield level, image, index[image][start : start + count]
        start += count


def test_assignment_is_equal_point_for_point(step: Step) -> None:
    labels: dict[int, list[Tensor]] = {}
    distances: dict[int, list[Tensor]] = {}
    masks: dict[int, list[Tensor]] = {}
    starts = np.concatenate([[0], np.cumsum(step.outputs.level_sizes)])
    for level, image, index in assigned(step):
        target, inside = step.targets[image], index >= 0
        found = torch.full_like(index, BACKGROUND)
        found[inside] = target.labels[index[inside]]
        labels.setdefault(level, []).append(found)
        points = step.outputs.points[starts[level] : starts[level + 1]][inside]
        stride = step.model.options.strides[level]
        reach = boxes_to_distances(points, target.boxes[index[inside]]) / stride
        distances.setdefault(level, []).append(reach)
        masks.setdefault(level, []).append(target.masks[index[inside]])
    positives = 0
    for level in range(5):
        wanted = step.wanted
        name = f"p{level + 3}"
        assert torch.cat(labels[level]).tolist() == wanted[f"labels_{name}"].tolist()
        reach = torch.cat(distances[level]).numpy()
        np.testing.assert_allclose(reach, wanted[f"reg_targets_{name}"], atol=1e-5)
        bits = np.unpackbits(wanted[f"mask_targets_{name}"], axis=1).reshape(-1, 28, 28)
        assert np.array_equal(torch.cat(masks[level]).numpy(), bits)
        positives += len(bits)
    assert positives == len(step.wanted["mask_code_targets"]) > 20


def test_code_targets(step: Step) -> None:
    masks = [step.targets[image].masks[index[index >= 0]] for _, image, index in assigned(step)]
    codes = step.model.codec.transform(torch.cat(masks), logits="constant").numpy()
    np.testing.assert_allclose(codes, step.wanted["mask_code_targets"], atol=2e-5)


def test_losses(step: Step) -> None:
    assert set(step.losses) == set(LOSSES)
    for ours, theirs in LOSSES.items():
        wanted = float(step.wanted[f"loss/loss_MEInst_{theirs}"])
        assert step.losses[ours].item() == pytest.approx(wanted, rel=1e-5), ours


def test_gradient_norms(step: Step) -> None:
    norms = {k.removeprefix("gradnorm/"): v for k, v in step.wanted.items() if "gradnorm/" in k}
    assert norms.keys() == step.gradients.keys()
    for name, wanted in norms.items():
        norm = step.gradients[name].double().norm().item()
        assert norm == pytest.approx(float(wanted), rel=1e-3), name


def test_small_gradients(step: Step) -> None:
    small = {k.removeprefix("grad/"): v for k, v in step.wanted.items() if k.startswith("grad/")}
    assert len(small) > 30
    for name, wanted in small.items():
        difference = np.linalg.norm(step.gradients[name].numpy() - wanted)
        # Single numbers jump where noise turns a ReLU on or off; measured: 0.5% at most.
        assert difference <= 1e-2 * np.linalg.norm(wanted), name


@pytest.mark.parametrize("empty", [(0,), (0, 1)])
def test_images_without_instances_train(empty: tuple[int, ...]) -> None:
    wanted = recorded("train_r50_plain_normal")
    model = trainable("r50_plain")
    model.zero_grad()
    images = [image[:, ::2, ::2] for image in read_images(wanted)]  # a quarter of the time
    targets = [make_target(wanted, image) for image in (0, 1)]
    targets = [replace(target, boxes=target.boxes / 2) for target in targets]
    for image in empty:
        some = targets[image]
        targets[image] = Target(some.boxes[:0], some.labels[:0], some.masks[:0])
    limits = model.options.distance_limits
    losses = compute_losses(model(images), targets, model.codec, limits, OPTIONS)
    torch.stack(list(losses.values())).sum().backward()
    assert all(value.isfinite() for value in losses.values())
    assert (losses["code"] == 0) == (len(empty) == 2)
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    model.zero_grad()
