"""The published recipes: schedule, parameter groups, frozen and initial weights, input."""

from __future__ import annotations

import functools
import json
from typing import Any

import pytest
import torch
from published import FIXTURES

from meinst.codecs import PCACodec
from meinst.compat.adelaidet import places
from meinst.detector.meinst import MEInst
from meinst.models.checkpoint import build_model
from meinst.models.recipe import load_recipe
from meinst.training.schedule import lr_factor, make_optimizer

SOLVER: dict[str, dict[str, Any]] = json.loads((FIXTURES / "solver.json").read_text())
NAMES = tuple(SOLVER)


@functools.cache
def fresh(name: str) -> MEInst:
    torch.manual_seed(0)
    recipe = load_recipe(f"MEInst_{name}")
    model = build_model(tuple(str(i) for i in range(80)), recipe, PCACodec())
    model.backbone.freeze(recipe.optimizer.frozen_stages)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate(name: str) -> None:
    recipe = load_recipe(f"MEInst_{name}")
    for iteration, expected in SOLVER[name]["lr_at"].items():
        found = recipe.optimizer.lr * lr_factor(int(iteration), recipe.schedule)
        assert found == pytest.approx(expected, rel=1e-9), iteration
    assert recipe.schedule.iterations == SOLVER[name]["max_iter"]
    assert list(recipe.schedule.steps) == SOLVER[name]["steps"]


@pytest.mark.parametrize("name", NAMES)
def test_parameter_groups(name: str) -> None:
    model, recipe = fresh(name), load_recipe(f"MEInst_{name}")
    table = places(model.state_dict())
    published_names = {place.name: published for published, place in table.items()}
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer = make_optimizer(model.backbone, (model.fpn, model.head), recipe.optimizer)
    found: dict[float, list[str]] = {}
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.9
        assert not group["nesterov"]
        assert group["lr"] == 0.01
        parameters = [published_names[names[id(p)]] for p in group["params"]]
        found.setdefault(group["weight_decay"], []).extend(parameters)
    for recording in SOLVER[name]["groups"]:
        published = found[recording["weight_decay"]]
        scales = sum("scales" in n for n in published)
        # AdelaiDet has five tensors of scales, this project one.
        assert len(published) + 4 * scales == recording["n"]
        assert {n for n in recording["example"] if "scales" not in n} <= set(published)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights(name: str) -> None:
    model = fresh(name)
    table = places(model.state_dict())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = {published for published, place in table.items() if place.name not in trained}
    # Frozen batch norms are buffers in the published system, not parameters.
    assert {n for n in frozen if ".norm." not in n} == set(SOLVER[name]["frozen"])
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == SOLVER[name]["n_params_trainable"]


@pytest.mark.parametrize("name", ["R_50_1x_none", "R_50_1x"])
def test_initial_weights(name: str) -> None:
    model = fresh(name)
    state = model.state_dict()
    table = places(state)
    checked = 0
    for published, (deviation, mean) in SOLVER[name]["init"].items():
        tensor = table[published].view(state).double()
        error = max(deviation, 1e-12) / tensor.numel() ** 0.5
        assert tensor.mean().item() == pytest.approx(mean, abs=8 * error + 1e-9), published
        if tensor.numel() > 1:
            found = tensor.std(correction=0).item()
            assert found == pytest.approx(deviation, abs=8 * error + 1e-9), published
        checked += 1
    assert checked == len(SOLVER[name]["init"]) > 70


@pytest.mark.parametrize("name", NAMES)
def test_input(name: str) -> None:
    recipe, expected = load_recipe(f"MEInst_{name}"), SOLVER[name]
    assert recipe.batch_size == expected["ims_per_batch"]
    assert recipe.skip_empty == expected["filter_empty"]
    assert recipe.optimizer.clip_norm == 0
    assert not expected["clip"]
    assert recipe.resize.shorter_side == expected["min_size_test"]
    assert recipe.resize.longer_side == expected["max_size_test"] == expected["max_size_train"]
    sides = recipe.augment.shorter_sides or (recipe.resize.shorter_side,)
    assert list(sides) == list(expected["min_size_train"])
    assert list(recipe.model.pixel_mean) == expected["pixel_mean"][::-1]
    assert list(recipe.model.pixel_std) == expected["pixel_std"]
    assert recipe.model.channel_order == expected["fmt"].lower()
    assert recipe.model.stride_in_1x1 == expected["stride_in_1x1"]
    assert recipe.optimizer.frozen_stages == expected["freeze_at"]
    assert not expected["crop"]
    assert recipe.augment.crop_size is None
    assert recipe.augment.horizontal_flip == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_detector(name: str) -> None:
    recipe, expected = load_recipe(f"MEInst_{name}"), SOLVER[name]["meinst"]
    model, head = recipe.model, recipe.model.head
    assert list(model.strides) == expected["FPN_STRIDES"]
    assert list(model.distance_limits) == expected["SIZES_OF_INTEREST"]
    convs = {expected[f"NUM_{tower}_CONVS"] for tower in ("CLS", "BOX", "MASK")}
    assert {head.num_convs} == convs
    assert head.num_shared_convs == expected["NUM_SHARE_CONVS"]
    assert expected["USE_DEFORMABLE"] == expected["LAST_DEFORMABLE"]
    assert head.deformable == ("last" if expected["USE_DEFORMABLE"] else "none")
    assert head.modulated == (expected["TYPE_DEFORMABLE"] == "DCNv2")
    assert not expected["USE_GCN_IN_MASK"]
    codec = recipe.codec
    assert (codec.n_components, codec.mask_size) == (expected["DIM_MASK"], expected["MASK_SIZE"])
    assert (codec.sigmoid, codec.whiten) == (expected["SIGMOID"], expected["WHITEN"])
    loss = recipe.loss
    assert (loss.focal_alpha, loss.focal_gamma) == (expected["LOSS_ALPHA"], expected["LOSS_GAMMA"])
    assert loss.center_radius == expected["POS_RADIUS"]
    assert (loss.giou_smooth, loss.target_logits) == (1.0, "random")
    assert (loss.code_weight, loss.pixel_weight, loss.dice_weight) == (1.0, 0.0, 0.0)
    chosen = recipe.selection
    assert chosen.candidate_threshold == expected["INFERENCE_TH_TEST"]
    assert chosen.nms_threshold == expected["NMS_TH"]
    assert chosen.max_per_level == expected["PRE_NMS_TOPK_TEST"]
    assert chosen.max_detections == expected["POST_NMS_TOPK_TEST"]
