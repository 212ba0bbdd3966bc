import io
import os
import pickle
import tracemalloc
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from meinst.compat.errors import ForeignFileError
from meinst.compat.sources import locate, read_weights, reject_others

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}


def save(content: Any, path: Path, *, legacy: bool = False) -> Path:
    with path.open("wb") as file:
        torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_reads_weights_of_torch_save(legacy: bool, bare: bool, tmp_path: Path) -> None:
    state = OrderedDict(WEIGHTS, b=torch.nn.Parameter(torch.ones(1)))
    beside = {
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{}]},
        "scheduler": {"milestones": Counter([60000, 80000]), "base_lrs": [0.01]},
        "iteration": 89999,
    }
    content = state if bare else {"model": state, **beside}
    weights = read_weights(save(content, tmp_path / "m.pth", legacy=legacy))
    assert weights.author is None
    assert list(weights.tensors) == ["a.weight", "a.bias", "b"]
    for key, tensor in state.items():
        assert torch.equal(weights.tensors[key], tensor)
        assert type(weights.tensors[key]) is torch.Tensor
        assert not weights.tensors[key].requires_grad


def test_reads_weights_of_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "r50.pkl"
    model = {"conv1_w": np.ones((2, 2), ">f4"), "n": np.array(3)}
    content = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    weights = read_weights(path)
    assert weights.author == "Caffe2"
    assert torch.equal(weights.tensors["conv1_w"], torch.ones(2, 2))
    path.write_bytes(pickle.dumps({"blobs": model, "cfg": "x: 1"}))
    assert weights.tensors.keys() == read_weights(path).tensors.keys()
    path.write_bytes(pickle.dumps(model))
    assert weights.tensors.keys() == read_weights(path).tensors.keys()


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_checkpoint_is_not_executed(legacy: bool, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = save({"model": WEIGHTS, "x": Trap(trap)}, tmp_path / "m.pth", legacy=legacy)
    with pytest.raises(ForeignFileError, match=r"m\.pth: .+ \w+\.mkdir; nothing was executed"):
        read_weights(path)
    path.write_bytes(pickle.dumps({"model": Trap(trap)}))
    with pytest.raises(ForeignFileError, match=r"m\.pth: .+ \w+\.mkdir"):
        read_weights(path)
    assert not trap.exists()


def test_rejects_a_pickled_module(tmp_path: Path) -> None:
    path = save(torch.nn.BatchNorm2d(3), tmp_path / "m.pth")
    with pytest.raises(ForeignFileError, match=r"BatchNorm2d; nothing was executed"):
        read_weights(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_rejects_truncated_files(legacy: bool, tmp_path: Path) -> None:
    path = save({"model": {"a": torch.zeros(500)}}, tmp_path / "m.pth", legacy=legacy)
    whole = path.read_bytes()
    for share in (0.01, 0.1, 0.3, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ForeignFileError, match=r"m\.pth: .*(truncated|damaged)"):
            read_weights(path)


def test_rejects_a_changed_byte(tmp_path: Path) -> None:
    path = save({"model": {"a": torch.zeros(5000)}}, tmp_path / "m.pth")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ForeignFileError, match="checksum"):
        read_weights(path)


def test_rejects_a_damaged_compressed_archive(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data.pkl", b"0" * 5000)
    content = bytearray(path.read_bytes())
    content[30 + len("m/data.pkl")] = 0xFF  # after the header: an unknown type of deflate block
    path.write_bytes(content)
    with pytest.raises(ForeignFileError, match=r"m\.pth: .+damaged zip archive"):
        read_weights(path)


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, components_c=np.array([{}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"file\.pth: empty\."),
        (b"junk " * 30, "neither a torch.save file nor a pickle"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (_npz(), r"an \.npz of arrays.+--codec"),
        (_zip("readme.txt"), "not written by torch.save"),
        (_zip("m/data.pkl", "m/constants.pkl"), "TorchScript"),
        (pickle.dumps([1, 2]), "a list, not named weights"),
        (pickle.dumps({"model": {}}), "no weights"),
        (pickle.dumps({"a": np.zeros(2), "b": "text"}), "'b' is a str"),
        (pickle.dumps({"model": {1: np.zeros(2)}}), "1 is a Tensor"),
    ],
)
def test_other_files_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(ForeignFileError, match=message):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"optimizer": {"state": {}, "param_groups": []}, "iteration": 9}, "optimizer"),
        ({"state": {0: {"step": torch.ones(1)}}, "param_groups": []}, "optimizer"),
        ({"pytorch-lightning_version": "2", "state_dict": WEIGHTS}, r"best\.safetensors"),
        ({"meta": {}, "state_dict": WEIGHTS}, "MMDetection"),
        (torch.zeros(2), "a Tensor, not named weights"),
    ],
)
def test_other_checkpoints_are_named(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match=message):
        read_weights(save(content, tmp_path / "m.pth"))


def test_safetensors_files_are_named(tiny_model_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match=r"already a model of meinst.+--to adelaidet"):
        read_weights(tiny_model_file)
    path = tmp_path / "x.safetensors"
    save_file(WEIGHTS, path)
    with pytest.raises(ForeignFileError, match="not a published checkpoint"):
        read_weights(path)
    save_file(WEIGHTS, path, {"format": "meinst-backbone-1"})
    with pytest.raises(ForeignFileError, match=r"already converted.+--backbone-weights"):
        read_weights(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ForeignFileError, match="damaged safetensors file"):
        read_weights(path)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("proposal_generator.fcos_head.cls_tower.0.weight", "AdelaiDet's FCOS"),
        ("mask_branch.refine.0.0.weight", "AdelaiDet's CondInst"),
        ("controller.weight", "AdelaiDet's CondInst"),
        ("basis_module.refine.0.0.weight", "AdelaiDet's BlendMask"),
        ("ins_head.cate_pred.weight", "AdelaiDet's SOLOv2"),
        ("roi_heads.mask_head.mask_fcn1.weight", "Detectron2's Mask R-CNN"),
        ("roi_heads.box_predictor.cls_score.weight", "one of Detectron2's R-CNNs"),
        ("bbox_head.retina_cls.weight", "a detector of MMDetection"),
        ("layer1.0.conv1.weight", "torchvision's ResNet"),
        ("something.else", "neither MEInst's weights"),
    ],
)
def test_other_models_are_named(key: str, message: str) -> None:
    state = {
        "backbone.bottom_up.stem.conv1.weight": torch.zeros(1),
        key: torch.zeros(1),
        # Keys of the base model must not hide the more specific model.
        **({"proposal_generator.fcos_head.x": torch.zeros(1)} if "AdelaiDet" in message else {}),
        **({"roi_heads.box_head.fc1.x": torch.zeros(1)} if "Mask R-CNN" in message else {}),
    }
    with pytest.raises(ForeignFileError, match=rf"m\.pth: .*{message}"):
        reject_others(state, Path("m.pth"))


def test_locates_local_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.touch()
    assert locate(str(path)) == path
    with pytest.raises(FileNotFoundError, match=r"y\.pth does not exist"):
        locate(str(tmp_path / "y.pth"))
    with pytest.raises(FileNotFoundError, match="is a folder"):
        locate(str(tmp_path))


def test_downloads_files_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def download(repo_id: str, filename: str) -> str:
        requested.append((repo_id, filename))
        return str(tmp_path / "cached.pth")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert locate("hf://ZjuCv/AdelaiDet/MEInst_R_50_3x.pth") == tmp_path / "cached.pth"
    assert locate("hf://owner/repo/folder/x.pth") == tmp_path / "cached.pth"
    assert requested == [
        ("ZjuCv/AdelaiDet", "MEInst_R_50_3x.pth"),
        ("owner/repo", "folder/x.pth"),
    ]


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://owner/repo", "hf://a//b"])
def test_rejects_incomplete_addresses(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", None)
    with pytest.raises(ValueError, match="hf://OWNER/REPO/FILE"):
        locate(address)


def test_failed_downloads_give_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: str) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("No network.\nTry again\nlater.")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(OSError, match=r"^hf://a/b/c: .+LocalEntryNotFoundError: No network\)"):
        locate("hf://a/b/c")


def test_lengths_in_old_files_take_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": {"a": torch.ones(3)}}, path, _use_new_zipfile_serialization=False)
    assert torch.equal(read_weights(path).tensors["a"], torch.ones(3))
    text = b"X\x10\x00\x00\x00protocol_version"
    assert text in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(text, b"X\x10\x00\x00\x10protocol_version"))
    tracemalloc.start()
    with pytest.raises(ForeignFileError, match=r"old\.pth"):
        read_weights(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
