"""``meinst convert`` with whole R-50 networks, and the use of its files."""

from __future__ import annotations

import importlib.util
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import SyntheticData
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from meinst import files
from meinst.cli.main import main
from meinst.codecs.options import CodecOptions
from meinst.compat.coco_classes import COCO_CLASSES
from meinst.data.coco import read_coco
from meinst.detector.backbone import Backbone
from meinst.models import checkpoint
from meinst.models.backbone_file import load_backbone
from meinst.models.checkpoint import load_model, read_info
from meinst.models.model_file import ModelFileError
from meinst.models.recipe import load_recipe
from meinst.training.initialize import make_model
from meinst.training.options import TrainOptions
from meinst.training.train import train

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
BOTTOM_UP = "backbone.bottom_up."


def published_state(name: str) -> dict[str, Tensor]:
    spec = importlib.util.spec_from_file_location("checkpoint", FIXTURES / "checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    state: dict[str, Tensor] = module.state_dict(name)
    return state


@pytest.fixture(scope="module")
def plain_state() -> dict[str, Tensor]:
    return published_state("r50_plain")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("convert")


@pytest.fixture(scope="module")
def plain_pth(plain_state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "MEInst_R_50_1x_none.pth"
    torch.save({"model": plain_state, "optimizer": {"state": {}}, "iteration": 89999}, path)
    return path


@pytest.fixture(scope="module")
def backbone_pkl(plain_state: dict[str, Tensor], folder: Path) -> Path:
    """The backbone with the names of the published R-50.pkl."""
    branches = {"shortcut": "1", "conv1": "2a", "conv2": "2b", "conv3": "2c"}
    parts = {"weight": "gamma", "bias": "beta"}
    blobs = {"conv1_b": np.zeros(64, np.float32), "fc1000_w": np.zeros((5, 4), np.float32)}
    for key, tensor in plain_state.items():
        if not key.startswith(BOTTOM_UP):
            continue
        layer, _, part = key.removeprefix(BOTTOM_UP).partition(".norm.")
        layer = layer.removesuffix(".weight")
        if layer == "stem.conv1":
            name = "res_conv1" if part else "conv1"
        else:
            stage, block, conv = layer.split(".")
            name = f"{stage}_{block}_branch{branches[conv]}"
        blobs[f"{name}_bn_{parts.get(part, part)}" if part else f"{name}_w"] = tensor.numpy()
    path = folder / "R-50.pkl"
    path.write_bytes(pickle.dumps({"model": blobs, "__author__": "Caffe2"}, protocol=2))
    return path


def backbone_file(backbone_pkl: Path) -> Path:
    path = backbone_pkl.with_suffix(".safetensors")
    if not path.exists():
        assert main(["convert", str(backbone_pkl), str(path)]) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "recipe", "note"),
    [
        ("r50_plain", "MEInst_R_50_1x_none", ""),
        ("r50_deform", "MEInst_R_50_3x", "MEInst_R_50_1x and MEInst_R_50_3x_512"),
    ],
)
def test_round_trip_is_exact(
    weights: str, recipe: str, note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = published_state(weights)
    source, converted, back = (tmp_path / name for name in ("m.pth", "m.safetensors", "back.pth"))
    torch.save({"model": state, "iteration": 0}, source)
    assert main(["convert", str(source), str(converted)]) == 0
    shown = capsys.readouterr().out
    count = len(state)
    assert f"80 classes, {count} tensors, {recipe}\n" in shown
    assert note in shown
    assert shown.endswith(f"written: {converted}\n")
    info = read_info(converted)
    assert info.class_names == COCO_CLASSES
    assert info.recipe == load_recipe(recipe)
    # Only the variance ratios are not in a checkpoint; every other tensor comes from it.
    for name, tensor in load_file(converted).items():
        unpublished = name.endswith(("num_batches_tracked", "explained_variance_ratio_"))
        assert unpublished != bool(tensor.any()), name

    source.unlink()
    assert main(["convert", str(converted), str(back), "--to", "adelaidet"]) == 0
    assert f"{count} tensors, MEInst_R_50_" in capsys.readouterr().out
    found = torch.load(back, weights_only=True)["model"]
    assert found.keys() == state.keys()
    for key, tensor in state.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape
        assert found[key].is_contiguous()
        assert torch.equal(found[key].view(torch.int32), tensor.view(torch.int32)), key


def test_downloads_from_the_hub_and_uses_the_given_recipe(
    plain_pth: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (checkpoint.ZOO.parent / "recipes" / "MEInst_R_50_1x_none.yaml").read_text()
    own = tmp_path / "own.yaml"
    own.write_text(text.replace("shorter_side: 800", "shorter_side: 96"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_: str(plain_pth))
    output = tmp_path / "m.safetensors"
    address = "hf://ZjuCv/AdelaiDet/x.pth"
    assert main(["convert", address, str(output), "--recipe", str(own)]) == 0
    assert str(own) in capsys.readouterr().out
    model = load_model(output)
    assert model.resize_options.shorter_side == 96
    found = model.predict(np.zeros((60, 80, 3), np.uint8), score_threshold=0.0)
    assert found.codec.inverse_transform(found.codes).shape == (len(found), 28, 28)


def test_class_names_are_saved(plain_state: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(plain_state)
    for part in ("weight", "bias"):
        key = f"proposal_generator.MEInst_head.cls_logits.{part}"
        state[key] = state[key][:2].clone()
    source, output = tmp_path / "m.pth", tmp_path / "m.safetensors"
    torch.save(state, source)
    named = ["--recipe", "MEInst_R_50_1x_none", "--class-names", "cat, big dog"]
    assert main(["convert", str(source), str(output), *named]) == 0
    assert read_info(output).class_names == ("cat", "big dog")


def test_converts_a_backbone(
    backbone_pkl: Path, plain_state: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    path = backbone_file(backbone_pkl)
    assert "265 tensors, resnet50" in capsys.readouterr().out
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "meinst-backbone-1",
            "backbone": "resnet50",
            "origin": "R-50.pkl",
        }
    tensors = load_file(path)
    key = f"{BOTTOM_UP}res3.1.conv2.norm.running_var"
    assert torch.equal(tensors["layer2.1.bn2.running_var"], plain_state[key])


def options(synthetic_data: SyntheticData, output: Path, **changes: Any) -> TrainOptions:
    images, annotations = synthetic_data.images, synthetic_data.annotations
    return TrainOptions(
        None, images, annotations, images, annotations, output, report=False, **changes
    )


def test_training_starts_from_a_backbone_file(
    backbone_pkl: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    path = backbone_file(backbone_pkl)
    codec = CodecOptions(n_components=2, mask_size=8)
    recipe = replace(load_recipe("MEInst_R_50_1x_none"), codec=codec)
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    model = make_model(options(synthetic_data, tmp_path, backbone_weights=path), recipe, data)
    state = model.backbone.net.state_dict()
    for name, tensor in load_file(path).items():
        assert torch.equal(state[name], tensor), name


def test_backbone_files_are_checked(
    backbone_pkl: Path, tiny_model_file: Path, tmp_path: Path
) -> None:
    path = backbone_file(backbone_pkl)
    with torch.device("meta"):
        backbone, other = Backbone("resnet50", (2, 3, 4)), Backbone("resnet101", (2, 3, 4))
    with pytest.raises(ModelFileError, match=r"resnet50.+resnet101"):
        load_backbone(other, "resnet101", path)
    with pytest.raises(ModelFileError, match=r"meinst-1.+--init"):
        load_backbone(backbone, "resnet50", tiny_model_file)
    with pytest.raises(ModelFileError, match="meinst convert"):
        load_backbone(backbone, "resnet50", backbone_pkl)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_backbone(backbone, "resnet50", tmp_path / "absent")
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["bn1.bias"]
    tensors["fc.bias"] = torch.zeros(1)
    tensors["bn1.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "x", metadata)
    with pytest.raises(ModelFileError, match="3 tensors") as caught:
        load_backbone(backbone, "resnet50", tmp_path / "x")
    for part in ("bn1.bias is missing", "fc.bias is unknown", "bn1.weight (1,) instead of (64,)"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "photos"}, "combined with --init"),
        ({"random_backbone": True}, "combined with --random-backbone"),
        ({}, "absent"),
    ],
)
def test_contradictions_are_reported_before_data_is_read(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    nowhere = SyntheticData(tmp_path / "no-images", tmp_path / "no.json")
    chosen = options(nowhere, tmp_path / "run", backbone_weights=tmp_path / "absent", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(chosen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PTH"], "missing arguments: OUTPUT"),
        (["PTH", "FOLDER/none/x"], "its folder does not exist"),
        (["PTH", "FOLDER"], "is a folder; give the name of a file"),
        (["PTH", "PTH"], "is the source itself"),
        (["FOLDER/absent.pth", "OUT"], "absent.pth does not exist"),
        (["hf://short", "OUT"], "hf://OWNER/REPO/FILE"),
        (["PTH", "OUT", "--recipe", "unknown"], "recipe 'unknown'"),
        (["PTH", "OUT", "--recipe", "MEInst_R_50_3x"], "the recipe MEInst_R_50_3x"),
        (["PTH", "OUT", "--recipe", "nuclei"], "recipe nuclei: "),
        (["PTH", "OUT", "--to", "mmdet"], "--to mmdet"),
        (["PTH", "OUT", "--to", "adelaidet"], "not a complete safetensors file"),
        (["TINY", "OUT", "--to", "adelaidet"], "AdelaiDet has no such network"),
        (["TINY", "OUT", "--to", "adelaidet", "--recipe", "x"], "cannot be combined with --to"),
        (["TINY", "OUT"], "already a model of meinst"),
        (["PKL", "OUT", "--recipe", "MEInst_R_50_3x"], "a backbone"),
        (["RCNN", "OUT"], "Detectron2's Mask R-CNN"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(
    arguments: list[str],
    message: str,
    plain_pth: Path,
    backbone_pkl: Path,
    tiny_model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MEINST_TRACEBACK", raising=False)
    rcnn = tmp_path / "model_final.pkl"
    content = {"model": {"roi_heads.mask_head.mask_fcn1.weight": np.zeros((2, 2), np.float32)}}
    rcnn.write_bytes(pickle.dumps(content))
    places = {"PTH": plain_pth, "PKL": backbone_pkl, "TINY": tiny_model_file, "RCNN": rcnn}
    places |= {"FOLDER": tmp_path, "OUT": tmp_path / "out"}
    pattern = "|".join(places)
    filled = [re.sub(pattern, lambda match: str(places[match[0]]), text) for text in arguments]
    before = plain_pth.stat().st_mtime_ns, plain_pth.read_bytes()
    assert main(["convert", *filled]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == [rcnn]
    assert (plain_pth.stat().st_mtime_ns, plain_pth.read_bytes()) == before


def test_full_disk_leaves_the_old_file(
    backbone_pkl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "m.safetensors"
    output.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert main(["convert", str(backbone_pkl), str(output)]) == 2
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]
