"""The published recipes: schedule, groups of weights, what is frozen, first weights, input."""

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
from meinst.engine.checkpoint import build_model
from meinst.engine.config import load_recipe
from meinst.engine.schedule import lr_factor, make_optimizer

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
    for iteration, wanted in SOLVER[name]["lr_at"].items():
        found = recipe.optimizer.lr * lr_factor(int(iteration), recipe.schedule)
        assert found == pytest.approx(wanted, rel=1e-9), iteration
    assert recipe.schedule.iterations == SOLVER[name]["max_iter"]
    assert list(recipe.schedule.steps) == SOLVER[name]["steps"]


@pytest.mark.parametrize("name", NAMES)
def test_groups_of_weights(name: str) -> None:
    model, recipe = fresh(name), load_recipe(f"MEInst_{name}")
    table = places(model.state_dict())
    theirs = {place.name: published for published, place in table.items()}
    ours = {id(p): n for n, p in model.named_parameters()}
    optimizer = make_optimizer(model.backbone, (model.fpn, model.head), recipe.optimizer)
    found: dict[float, list[str]] = {}
    for group in optimizer.param_groups:
        assert group["momentum"] == 0.9
        assert not group["nesterov"]
        assert group["lr"] == 0.01
        names = [ours[id(p)] for p in group["params"]]
        found.setdefault(group["weight_decay"], []).extend(theirs[n] for n in names)
    for wanted in SOLVER[name]["groups"]:
        group = found[wanted["weight_decay"]]
        scales = sum("scales" in n for n in group)
        assert len(group) + 4 * scales == wanted["n"]  # five scales there, one tensor here
        expected = {n for n in wanted["example"] if "scales" not in n}
        assert expected <= set(group)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights(name: str) -> None:
    model = fresh(name)
    table = places(model.state_dict())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = {published for published, place in table.items() if place.name not in trained}
    # Frozen batch norms are buffers there, and no parameters.
    assert {n for n in frozen if ".norm." not in n} == set(SOLVER[name]["frozen"])
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == SOLVER[name]["n_params_trainable"]


@pytest.mark.parametrize("name", ["R_50_1x_none", "R_50_1x"])
def test_first_weights(name: str) -> None:
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
    recipe, wanted = load_recipe(f"MEInst_{name}"), SOLVER[name]
    assert recipe.batch_size == wanted["ims_per_batch"]
    assert recipe.skip_empty == wanted["filter_empty"]
    assert recipe.optimizer.clip_norm == 0
    assert not wanted["clip"]
    assert recipe.image_size.shorter_side == wanted["min_size_test"]
    assert recipe.image_size.longer_side == wanted["max_size_test"] == wanted["max_size_train"]
    sides = recipe.augment.shorter_sides or (recipe.image_size.shorter_side,)
    assert list(sides) == list(wanted["min_size_train"])
    assert list(recipe.model.pixel_mean) == wanted["pixel_mean"][::-1]
    assert list(recipe.model.pixel_std) == wanted["pixel_std"]
    assert recipe.model.channel_order == wanted["fmt"].lower()
    assert recipe.model.stride_in_1x1 == wanted["stride_in_1x1"]
    assert recipe.optimizer.frozen_stages == wanted["freeze_at"]
    assert not wanted["crop"]
    assert recipe.augment.crop_size is None
    assert recipe.augment.horizontal_flip == 0.5


@pytest.mark.parametrize("name", NAMES)
def test_detector(name: str) -> None:
    recipe, wanted = load_recipe(f"MEInst_{name}"), SOLVER[name]["meinst"]
    model, head = recipe.model, recipe.model.head
    assert list(model.strides) == wanted["FPN_STRIDES"]
    assert list(model.distance_limits) == wanted["SIZES_OF_INTEREST"]
    convs = {wanted[f"NUM_{tower}_CONVS"] for tower in ("CLS", "BOX", "MASK")}
    assert {head.num_convs} == convs
    assert head.num_shared_convs == wanted["NUM_SHARE_CONVS"]
    assert wanted["USE_DEFORMABLE"] == wanted["LAST_DEFORMABLE"]
    assert head.deformable == ("last" if wanted["USE_DEFORMABLE"] else "none")
    assert head.modulated == (wanted["TYPE_DEFORMABLE"] == "DCNv2")
    assert (head.mask_predictor == "large_kernel") == wanted["USE_GCN_IN_MASK"]
    codec = recipe.codec
    assert (codec.n_components, codec.mask_size) == (wanted["DIM_MASK"], wanted["MASK_SIZE"])
    assert (codec.sigmoid, codec.whiten) == (wanted["SIGMOID"], wanted["WHITEN"])
    loss = recipe.loss
    assert (loss.focal_alpha, loss.focal_gamma) == (wanted["LOSS_ALPHA"], wanted["LOSS_GAMMA"])
    assert loss.center_radius == wanted["POS_RADIUS"]
    assert (loss.giou_smooth, loss.target_logits) == (1.0, "random")
    assert (loss.code_weight, loss.pixel_weight, loss.dice_weight) == (1.0, 0.0, 0.0)
    chosen = recipe.selection
    assert chosen.candidate_threshold == wanted["INFERENCE_TH_TEST"]
    assert chosen.nms_threshold == wanted["NMS_TH"]
    assert chosen.max_per_level == wanted["PRE_NMS_TOPK_TEST"]
    assert chosen.max_detections == wanted["POST_NMS_TOPK_TEST"]
