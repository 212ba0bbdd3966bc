"""Where foreign files come from, and their tensors, read without running anything in them."""

from __future__ import annotations

import lzma
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meinst.compat.arrays_pickle import read_pickle
from meinst.compat.errors import ForeignFileError

HUB = "hf://"

# How a file of torch.save from before version 1.6 begins: a pickled magic number.
_LEGACY = re.compile(rb"\x80.\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", re.DOTALL)

# Who is to be told apart from MEInst, by a key's beginning; the first that fits counts.
_OTHERS = (
    ("basis_module.", "AdelaiDet's BlendMask"),
    ("mask_branch.", "AdelaiDet's CondInst or BoxInst"),
    ("controller.", "AdelaiDet's CondInst or BoxInst"),
    ("ins_head.", "AdelaiDet's SOLOv2"),
    ("proposal_generator.fcos_head.", "AdelaiDet's FCOS, or a model on top of it"),
    ("roi_heads.mask_head.", "Detectron2's Mask R-CNN"),
    ("roi_heads.", "one of Detectron2's R-CNNs"),
    ("head.cls_subnet.", "Detectron2's RetinaNet"),
    ("bbox_head.", "a detector of MMDetection"),
    ("layer1.0.conv1.", "torchvision's ResNet (timm has these weights itself)"),
)


@dataclass(frozen=True)
class ForeignWeights:
    """What a file holds.

    Attributes:
        tensors: by their names in the file.
        author: who made the file, if it says so.
    """

    tensors: dict[str, Tensor]
    author: str | None


def locate(source: str) -> Path:
    """The local file of a path, or of ``hf://OWNER/REPO/FILE`` after downloading it.

    Downloads are huggingface_hub's: cached, resumed, with the token of its login.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an address is not of this form.
        OSError: if the download fails, with what to do about it.
    """
    if not source.startswith(HUB):
        path = Path(source)
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "there is no such file"
            raise FileNotFoundError(f"{path}: {what}. Give a file, or hf://OWNER/REPO/FILE.")
        return path
    parts = source.removeprefix(HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ValueError(f"{source}: an address on the hub is hf://OWNER/REPO/FILE.")
    import huggingface_hub

    owner, repository, file = parts
    try:
        return Path(huggingface_hub.hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the client raises many kinds; all mean "not had"
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise OSError(
            f"{source}: not downloaded: {type(error).__name__}: {reason} Check the address and "
            "the network, or fetch the file by other means and give its path."
        ) from error


def read_weights(path: Path) -> ForeignWeights:
    """The weights in a file of ``torch.save`` or in a pickle of NumPy arrays.

    Weights may stand under ``"model"`` or, in Caffe2's files, ``"blobs"``, with whatever beside
    them, or by themselves.

    Raises:
        ForeignFileError: if the file is of another kind, damaged, asks to run code, or holds
            no weights; in the file's name and with the reason. Nothing in it is executed.
    """
    content = read_pickle(path) if _is_plain_pickle(path) else _read_torch(path)
    if not isinstance(content, dict):
        raise ForeignFileError(
            f"{path}: holds a {type(content).__name__}, not weights by their names."
        )
    author = content.get("__author__")
    return ForeignWeights(_find_weights(content, path), author if isinstance(author, str) else None)


def refuse_others(state: Mapping[str, Tensor], path: Path) -> None:
    """Say what a file holds that is neither MEInst's weights nor a backbone's.

    Raises:
        ForeignFileError: always.
    """
    for beginning, name in _OTHERS:
        if any(key.startswith(beginning) for key in state):
            raise ForeignFileError(
                f"{path}: the weights of {name}, not of MEInst (a key begins with "
                f"{beginning!r}). Give a checkpoint of MEInst, or the backbone R-50.pkl."
            )
    raise ForeignFileError(
        f"{path}: neither MEInst's weights (no key begins with 'proposal_generator.MEInst_head.') "
        f"nor a ResNet of Detectron2; its keys are {', '.join(sorted(state)[:4])}, ..."
    )


def _is_plain_pickle(path: Path) -> bool:
    """Tell a plain pickle from a file of torch.save, and refuse what is neither."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        _check_zip(path)
        return False
    if _LEGACY.match(start):
        return False
    safetensors = start[4:9] == b"\0\0\0\0{"  # a length of eight bytes, then JSON
    if not safetensors and (start.startswith(b"\x80") or path.suffix == ".pkl"):
        return True
    reason, remedy = "neither a file of torch.save nor a pickle", "Give a .pth or .pkl file."
    if safetensors:
        reason, remedy = _describe_safetensors(path)
    elif start.lstrip()[:1] == b"<":
        reason, remedy = "a web page, so its download went wrong", "Fetch the file itself."
    elif start.startswith(b"version https://git-lfs"):
        reason, remedy = "a placeholder of Git LFS", "Fetch the file itself (git lfs pull)."
    elif not start:
        reason, remedy = "empty", "Fetch it anew."
    raise ForeignFileError(f"{path}: {reason}. {remedy}")


def _describe_safetensors(path: Path) -> tuple[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("format", "")
    except (SafetensorError, OSError):
        return "a damaged safetensors file", "Fetch it anew."
    if kind.startswith("meinst-backbone"):
        return "converted already", "Use it by `meinst train --backbone-weights`."
    if kind.startswith("meinst-"):
        return "a model of meinst already", "Use it as it is, or turn it back by --to adelaidet."
    return "a safetensors file, not a published checkpoint", "Give a .pth or .pkl file."


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()  # torch itself does not look at the checksums
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise ForeignFileError(
            f"{path}: a truncated or damaged zip archive ({error}). Fetch the file anew."
        ) from error
    if damaged is not None:
        raise ForeignFileError(
            f"{path}: damaged: the part {damaged} does not fit its checksum. Fetch the file anew."
        )
    if any(name.endswith(".npy") for name in names):
        raise ForeignFileError(
            f"{path}: an .npz of arrays, not a checkpoint. A published mask matrix is used as it "
            "is: `meinst train --codec`."
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise ForeignFileError(f"{path}: a zip archive that torch.save did not write.")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ForeignFileError(
            f"{path}: a TorchScript program, not a checkpoint; it was not run. Give the .pth."
        )


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message tells at length how to run the code after all; only the name counts.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise ForeignFileError(f"{path}: a damaged pickle in it. Fetch it anew.") from error
        raise ForeignFileError(
            f"{path}: not only weights: it asks to run {named[1]}; nothing was executed. If you "
            "trust its origin, save the weights alone with the program that made it."
        ) from error
    except Exception as error:  # a damaged file raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ForeignFileError(
            f"{path}: a truncated or damaged file of torch.save ({reason}). Fetch the file anew."
        ) from error


def _find_weights(content: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    for name in ("model", "blobs"):
        if isinstance(content.get(name), dict):
            content = content[name]
            break
    else:
        _refuse_containers(content, path)
    state = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ForeignFileError(
                f"{path}: {key!r} is a {type(value).__name__}; weights are tensors by their names."
            )
        state[key] = value.detach()
    if not state:
        raise ForeignFileError(f"{path}: holds no weights.")
    return state


def _refuse_containers(content: dict[Any, Any], path: Path) -> None:
    if "pytorch-lightning_version" in content:
        raise ForeignFileError(
            f"{path}: a checkpoint of a training run under Lightning. Of a run of `meinst train`, "
            "use best.safetensors in its output folder; it needs no conversion."
        )
    if "optimizer" in content or "param_groups" in content:
        raise ForeignFileError(
            f"{path}: the state of an optimizer alone, without weights (no 'model' beside it). "
            "Give the checkpoint of the same run that has the model."
        )
    if isinstance(content.get("state_dict"), dict):
        raise ForeignFileError(
            f"{path}: weights under 'state_dict', as MMDetection saves them, not under 'model', "
            "as AdelaiDet does."
        )
