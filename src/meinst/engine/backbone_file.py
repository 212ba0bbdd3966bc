"""Backbone weights as a file, for trainings to start from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from meinst.detector.backbone import Backbone
from meinst.engine.checkpoint import FORMAT, ModelFileError
from meinst.files import write_atomically

BACKBONE_FORMAT = "meinst-backbone-1"


def save_backbone(tensors: Mapping[str, Tensor], network: str, path: Path, origin: str) -> None:
    """Write a backbone's tensors atomically.

    Args:
        tensors: by timm's names, without a classifier.
        network: timm's name.
        path: the safetensors file.
        origin: the file that they came from, noted.
    """
    from safetensors.torch import save

    metadata = {"format": BACKBONE_FORMAT, "backbone": network, "origin": origin}
    write_atomically(path, save(dict(tensors), metadata))


def load_backbone(backbone: Backbone, network: str, path: Path) -> str:
    """Start a backbone from a file that :func:`save_backbone` wrote.

    Args:
        backbone: changed in place.
        network: its timm name.
        path: the file.

    Returns:
        Where the weights came from, for the log.

    Raises:
        FileNotFoundError: if there is no such file.
        ModelFileError: if it is of another kind, of another network, or does not fit it.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"--backbone-weights {path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"--backbone-weights {path}: not a complete safetensors file ({error}). Make one by "
            "`meinst convert R-50.pkl r50.safetensors`."
        ) from error
    found = metadata.get("format")
    if found != BACKBONE_FORMAT:
        remedy = "give it to --init" if found == FORMAT else "make one by `meinst convert`"
        raise ModelFileError(
            f"--backbone-weights {path}: not a backbone's file but of format {found!r}; {remedy}."
        )
    if metadata.get("backbone") != network:
        raise ModelFileError(
            f"--backbone-weights {path}: weights of {metadata.get('backbone')}, but the recipe's "
            f"backbone is {network}: change one of them."
        )
    _fill(backbone, tensors, path)
    return f"{path} ({metadata.get('origin')})"


def _fill(backbone: Backbone, tensors: Mapping[str, Tensor], path: Path) -> None:
    state = backbone.net.state_dict()
    expected = {name for name in state if not name.endswith("num_batches_tracked")}
    wrong = [f"{name} is missing" for name in sorted(expected - tensors.keys())]
    wrong += [f"{name} is unknown" for name in sorted(tensors.keys() - expected)]
    wrong += [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(state[name].shape)}"
        for name in sorted(expected & tensors.keys())
        if tensors[name].shape != state[name].shape
    ]
    if wrong:
        raise ModelFileError(
            f"--backbone-weights {path}: {len(wrong)} tensors do not fit the recipe's backbone: "
            f"{'; '.join(wrong[:3])}. Convert the original file anew."
        )
    backbone.net.load_state_dict({**state, **tensors})
