"""Names and shapes. Tensors repeat one number, so that whole networks need no memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from meinst.codecs import GridCodec, PCACodec
from meinst.compat.adelaidet import PUBLISHED, find_recipe, places, to_adelaidet
from meinst.compat.coco_classes import COCO_CLASSES
from meinst.compat.errors import ForeignFileError
from meinst.detector.meinst import MEInst
from meinst.detector.predictor import ModelOptions
from meinst.models.recipe import RECIPES, load_recipe

FILE = Path("m.pth")
FIXTURES = Path(__file__).parents[2] / "parity" / "fixtures"
PLAIN = "MEInst_R_50_1x_none"
HEAD = "proposal_generator.MEInst_head."
CODEC = "proposal_generator.mask_encoding."


def published(name: str) -> dict[str, Tensor]:
    """Names and shapes of a recorded checkpoint, without its values."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as stored:
        shapes = {
            key: tuple(stored[f"shape/{key}"].tolist())
            if f"shape/{key}" in stored
            else stored[f"value/{key}"].shape
            for key in stored["keys"].tolist()
        }
    return {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}


def own_recipe(folder: Path, **model: Any) -> str:
    """A recipe file: the 3x one with another network."""
    values = yaml.safe_load((RECIPES / "MEInst_R_50_3x.yaml").read_text())
    values["model"]["head"] |= model.pop("head", {})
    values["model"] |= model
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def shapes_of(recipe: str) -> dict[str, torch.Size]:
    """Published names and shapes of a recipe's network, according to the table."""
    from meinst.codecs import PCACodec
    from meinst.models.checkpoint import build_model

    with torch.device("meta"):
        state = build_model(COCO_CLASSES, load_recipe(recipe), PCACodec()).state_dict()
    return {key: place.view(state).shape for key, place in places(state).items()}


def test_classes_are_in_the_order_of_coco_ids() -> None:
    assert len(set(COCO_CLASSES)) == 80
    # Ids 1, 13 (after a gap at 12), 44 (after 26, 29, 30), 65 (after 45), 90 (after six more).
    places = {"person": 0, "stop sign": 11, "bottle": 39, "bed": 59, "toothbrush": 79}
    assert {name: COCO_CLASSES.index(name) for name in places} == places


@pytest.mark.parametrize(
    ("weights", "fitting"),
    [
        ("r50_plain", ("MEInst_R_50_1x_none",)),
        ("r50_deform", ("MEInst_R_50_3x", "MEInst_R_50_1x", "MEInst_R_50_3x_512")),
    ],
)
def test_recipe_is_derived_from_the_tensors(weights: str, fitting: tuple[str, ...]) -> None:
    state = published(weights)
    fit = find_recipe(state, FILE)
    assert (fit.name, *fit.others) == fitting
    assert fit.recipe == load_recipe(fitting[0])
    chosen = find_recipe(state, FILE, fitting[-1])
    assert (chosen.name, chosen.others) == (fitting[-1], ())
    assert chosen.recipe == load_recipe(fitting[-1])
    other = next(name for name in PUBLISHED if name not in fitting)
    with pytest.raises(ForeignFileError, match=f"the recipe {other}: "):
        find_recipe(state, FILE, other)


def test_all_mismatches_are_one_error() -> None:
    state = published("r50_deform")
    del state[f"{HEAD}ctrness.bias"]
    state[f"{HEAD}scales.2.scale"] = torch.zeros(2)
    state[f"{HEAD}wings.weight"] = torch.zeros(1)
    state[f"{HEAD}mask_pred.bias"] = torch.zeros(60, dtype=torch.float64)
    with pytest.raises(ForeignFileError) as caught:
        find_recipe(state, FILE)
    message = str(caught.value)
    assert message.startswith("m.pth: 4 tensors ")
    for part in (
        "MEInst_R_50_3x",
        "ctrness.bias is missing",
        "scales.2.scale has the shape (2,) instead of (1,)",
        "wings.weight is unknown",
        "mask_pred.bias has the type torch.float64 instead of torch.float32",
        "--recipe",
    ):
        assert part in message
    for key in list(state):
        if key.startswith("backbone.bottom_up."):
            del state[key]
    with pytest.raises(ForeignFileError, match=r"269 tensors .+\(265 more\)"):
        find_recipe(state, FILE)


@pytest.mark.parametrize("key", ["cls_logits.weight", "bbox_tower.9.conv.weight"])
def test_single_wrong_shape_is_an_error(key: str) -> None:
    state = published("r50_deform")
    state[HEAD + key] = state[HEAD + key][1:]
    with pytest.raises(ForeignFileError, match=f"1 tensors .+{key} has the shape"):
        find_recipe(state, FILE, "MEInst_R_50_3x")


def test_codec_sizes_are_those_of_the_matrix() -> None:
    state = published("r50_plain")
    for key, shape in {
        f"{CODEC}components": (40, 400),
        f"{CODEC}means": (400,),
        f"{CODEC}explained_variances": (40,),
        f"{HEAD}mask_pred.weight": (40, 256, 3, 3),
        f"{HEAD}mask_pred.bias": (40,),
    }.items():
        state[key] = torch.zeros(()).expand(shape)
    codec = find_recipe(state, FILE, PLAIN).recipe.codec
    assert (codec.n_components, codec.mask_size) == (40, 20)
    state[f"{CODEC}components"] = torch.zeros(40, 401)  # 401 is not a square
    with pytest.raises(ForeignFileError, match=r"components has the shape \(40, 401\)"):
        find_recipe(state, FILE, PLAIN)


def test_other_classes_must_be_named() -> None:
    state = published("r50_plain")
    state[f"{HEAD}cls_logits.weight"] = torch.zeros(()).expand(2, 256, 3, 3)
    state[f"{HEAD}cls_logits.bias"] = torch.zeros(2)
    with pytest.raises(ForeignFileError, match=r"2 classes, not 80.+--class-names"):
        find_recipe(state, FILE, PLAIN)
    assert find_recipe(state, FILE, PLAIN, ("a", "b")).name == PLAIN
    with pytest.raises(ForeignFileError, match="2 classes, not 3"):
        find_recipe(state, FILE, PLAIN, ("a", "b", "c"))


def test_input_settings_in_the_file_must_match() -> None:
    # Saved by some versions of Detectron2: B, G, R.
    state = published("r50_plain")
    state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    state["pixel_std"] = torch.ones(3, 1, 1)
    assert find_recipe(state, FILE, PLAIN).name == PLAIN
    state["pixel_std"] = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)
    with pytest.raises(ForeignFileError, match=r"1 tensors .+pixel_std is \[57.375"):
        find_recipe(state, FILE, PLAIN)


@pytest.mark.parametrize(
    ("model", "present", "absent"),
    [
        (
            {"backbone": "resnet101"},
            {"backbone.bottom_up.res4.22.conv2.weight": (256, 256, 3, 3)},
            "backbone.bottom_up.res4.23.conv2.weight",
        ),
        (
            {"backbone": "resnext101_32x8d", "stride_in_1x1": False},
            {"backbone.bottom_up.res4.22.conv2.weight": (1024, 32, 3, 3)},
            "backbone.bottom_up.res4.23.conv2.weight",
        ),
        (
            {"head": {"modulated": True}},
            {f"{HEAD}mask_tower.9.offset.bias": (27,), f"{HEAD}mask_tower.6.bias": (256,)},
            f"{HEAD}mask_tower.9.weight",
        ),
        (
            {"head": {"deformable": "all"}},
            {
                f"{HEAD}cls_tower.0.conv.weight": (256, 256, 3, 3),
                f"{HEAD}cls_tower.3.offset.weight": (18, 256, 3, 3),
                f"{HEAD}cls_tower.1.weight": (256,),
            },
            f"{HEAD}cls_tower.0.bias",
        ),
        (
            {"head": {"num_shared_convs": 1, "deformable": "none"}},
            {
                f"{HEAD}share_tower.0.weight": (256, 256, 3, 3),
                f"{HEAD}share_tower.1.bias": (256,),
            },
            f"{HEAD}share_tower.3.weight",
        ),
        (
            {"head": {"norm_groups": 0, "deformable": "none"}},
            {f"{HEAD}bbox_tower.6.weight": (256, 256, 3, 3)},
            f"{HEAD}bbox_tower.1.weight",
        ),
    ],
)
def test_network_variants_match_their_recipe(
    model: dict[str, Any], present: dict[str, tuple[int, ...]], absent: str, tmp_path: Path
) -> None:
    recipe = own_recipe(tmp_path, **model)
    shapes = shapes_of(recipe)
    for key, shape in present.items():
        assert shapes[key] == shape
    assert absent not in shapes
    state = {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    fit = find_recipe(state, FILE, recipe)
    assert fit.name == recipe
    with pytest.raises(ForeignFileError, match="MEInst_R_50_3x"):
        find_recipe(state, FILE, "MEInst_R_50_3x")


def test_rejects_networks_without_published_names(tmp_path: Path, tiny_model: MEInst) -> None:
    normed = own_recipe(tmp_path, pyramid_norm_groups=32)
    with pytest.raises(ForeignFileError, match=r"fpn\.net\.inner_blocks\.0\.1\.weight"):
        find_recipe(published("r50_deform"), FILE, normed)
    with pytest.raises(ForeignFileError, match=r"tiny: .+backbone\.net\.conv_stem\.weight"):
        to_adelaidet(tiny_model, "tiny")


def test_rejects_codecs_without_a_counterpart() -> None:
    codecs = {"grid": GridCodec(4, 14), "each class": PCACodec(4, 14, class_names=("a", "b"))}
    for words, codec in codecs.items():
        model = MEInst(("a", "b"), codec, ModelOptions(backbone="test_efficientnet", channels=32))
        with pytest.raises(ForeignFileError, match=f"tiny: .*{words}"):
            to_adelaidet(model, "tiny")


def test_table_covers_each_tensor_once() -> None:
    assert shapes_of("MEInst_R_50_3x") == {
        key: tensor.shape for key, tensor in published("r50_deform").items()
    }
