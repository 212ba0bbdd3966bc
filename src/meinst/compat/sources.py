"""Locating foreign files and reading their tensors without executing any code in them."""

from __future__ import annotations

import io
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
from meinst.files import check_archive
from meinst.options import first_few

HUB = "hf://"

# First bytes of a file of torch.save before version 1.6: a pickled magic number.
_LEGACY = re.compile(rb"\x80.\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", re.DOTALL)

# Other models, by the prefix of a key; the first match counts.
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
    ("layer1.0.conv1.", "torchvision's ResNet (timm provides these weights)"),
)


@dataclass(frozen=True)
class ForeignWeights:
    """Content of a foreign file.

    Attributes:
        tensors: the tensors by their names in the file.
        author: author of the file, if it is given.
    """

    tensors: dict[str, Tensor]
    author: str | None


def locate(source: str) -> Path:
    """Return a local path as it is; download ``hf://OWNER/REPO/FILE`` and return its path.

    huggingface_hub downloads the file: it caches, resumes and uses the token of its login.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if an address does not have this form.
        OSError: if the download fails.
    """
    if not source.startswith(HUB):
        path = Path(source)
        if not path.is_file():
            reason = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{path} {reason}. Give a file, or hf://OWNER/REPO/FILE.")
        return path
    parts = source.removeprefix(HUB).split("/", 2)
    if len(parts) < 3 or not all(parts):
        raise ValueError(f"{source}: an address on the hub has the form hf://OWNER/REPO/FILE.")
    import huggingface_hub

    owner, repository, file = parts
    try:
        return Path(huggingface_hub.hf_hub_download(f"{owner}/{repository}", file))
    except Exception as error:  # the client raises many types
        reason = (str(error).strip() or "no reason given").splitlines()[0].rstrip(".")
        raise OSError(
            f"{source}: the download failed ({type(error).__name__}: {reason}). Check the address "
            "and the network, or download the file in another way and give its path."
        ) from error


def read_weights(path: Path) -> ForeignWeights:
    """Read the weights in a file of ``torch.save`` or in a pickle of NumPy arrays.

    The weights may be the whole content, or its entry ``"model"`` or (in Caffe2's files)
    ``"blobs"``. Nothing in the file is executed.

    Raises:
        ForeignFileError: if the file has another format, is damaged, contains code or contains no
            weights.
    """
    content = read_pickle(path) if _is_plain_pickle(path) else _read_torch(path)
    if not isinstance(content, dict):
        raise ForeignFileError(f"{path}: contains a {type(content).__name__}, not named weights.")
    author = content.get("__author__")
    return ForeignWeights(_find_weights(content, path), author if isinstance(author, str) else None)


def reject_others(state: Mapping[str, Tensor], path: Path) -> None:
    """Reject weights that belong neither to MEInst nor to a backbone, naming their model.

    Raises:
        ForeignFileError: always.
    """
    for prefix, name in _OTHERS:
        if any(key.startswith(prefix) for key in state):
            raise ForeignFileError(
                f"{path}: the weights of {name}, not of MEInst (a key starts with {prefix!r}). "
                "Give a checkpoint of MEInst, or the backbone R-50.pkl."
            )
    raise ForeignFileError(
        f"{path}: neither MEInst's weights (no key starts with 'proposal_generator.MEInst_head.') "
        f"nor a ResNet of Detectron2; its keys are {first_few(sorted(state), 4)}."
    )


def _is_plain_pickle(path: Path) -> bool:
    """Whether a file is a plain pickle, not one of torch.save; rejects all other files."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        _check_zip(path)
        return False
    if _LEGACY.match(start):
        return False
    safetensors = start[4:9] == b"\0\0\0\0{"  # a length in eight bytes, then JSON
    if not safetensors and (start.startswith(b"\x80") or path.suffix == ".pkl"):
        return True
    reason, remedy = "neither a torch.save file nor a pickle", "Give a .pth or .pkl file."
    if safetensors:
        reason, remedy = _describe_safetensors(path)
    elif start.lstrip()[:1] == b"<":
        reason, remedy = "a web page: the download went wrong", "Download the file itself."
    elif start.startswith(b"version https://git-lfs"):
        reason, remedy = "a placeholder of Git LFS", "Download the file itself (git lfs pull)."
    elif not start:
        reason, remedy = "empty", "Download it again."
    raise ForeignFileError(f"{path}: {reason}. {remedy}")


def _describe_safetensors(path: Path) -> tuple[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("format", "")
    except (SafetensorError, OSError):
        return "a damaged safetensors file", "Download it again."
    if kind.startswith("meinst-backbone"):
        return "already converted", "Use it with `meinst train --backbone-weights`."
    if kind.startswith("meinst-"):
        return "already a model of meinst", "Use it as it is, or convert it back: --to adelaidet."
    return "a safetensors file, not a published checkpoint", "Give a .pth or .pkl file."


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            check_archive(archive, path.stat().st_size)
            names = archive.namelist()
            damaged = archive.testzip()  # torch does not check the checksums
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        raise ForeignFileError(
            f"{path}: a truncated or damaged zip archive ({error}). Download it again."
        ) from error
    if damaged is not None:
        raise ForeignFileError(
            f"{path}: damaged: {damaged} does not match its checksum. Download the file again."
        )
    if any(name.endswith(".npy") for name in names):
        raise ForeignFileError(
            f"{path}: an .npz of arrays, not a checkpoint. A published mask matrix needs no "
            "conversion: use `meinst train --codec`."
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise ForeignFileError(f"{path}: a zip archive that was not written by torch.save.")
    if any(name.endswith("/constants.pkl") for name in names):
        raise ForeignFileError(
            f"{path}: a TorchScript program, not a checkpoint; it was not run. Give the .pth."
        )


def _read_torch(path: Path) -> Any:
    source: Path | io.BytesIO = path
    if not zipfile.is_zipfile(path):  # in memory: lengths beyond the end of the file take none
        source = io.BytesIO(path.read_bytes())
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message explains how to run the code after all; only the name is of interest.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise ForeignFileError(
                f"{path}: contains a damaged pickle. Download the file again."
            ) from error
        raise ForeignFileError(
            f"{path}: contains more than weights: it would run {named[1]}; nothing was executed. "
            "If you trust its source, save the weights alone with the program that wrote it."
        ) from error
    except Exception as error:  # a damaged file raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ForeignFileError(
            f"{path}: a truncated or damaged torch.save file ({reason}). Download it again."
        ) from error


def _find_weights(content: dict[Any, Any], path: Path) -> dict[str, Tensor]:
    for name in ("model", "blobs"):
        if isinstance(content.get(name), dict):
            content = content[name]
            break
    else:
        _reject_containers(content, path)
    state = {}
    for key, value in content.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ForeignFileError(
                f"{path}: {key!r} is a {type(value).__name__}; expected named tensors."
            )
        state[key] = value.detach()
    if not state:
        raise ForeignFileError(f"{path}: contains no weights.")
    return state


def _reject_containers(content: dict[Any, Any], path: Path) -> None:
    if "pytorch-lightning_version" in content:
        raise ForeignFileError(
            f"{path}: a Lightning checkpoint of a training run. For a run of `meinst train`, use "
            "best.safetensors in its output folder, which needs no conversion."
        )
    if "optimizer" in content or "param_groups" in content:
        raise ForeignFileError(
            f"{path}: contains only the state of an optimizer, no weights (no entry 'model'). Give "
            "a checkpoint that contains the model."
        )
    if isinstance(content.get("state_dict"), dict):
        raise ForeignFileError(
            f"{path}: the weights are in 'state_dict', as in MMDetection, not in 'model', as in "
            "AdelaiDet."
        )
