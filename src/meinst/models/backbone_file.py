"""Files of backbone weights, used to start a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from meinst.detector.backbone import Backbone
from meinst.files import write_atomically
from meinst.models.model_file import MODEL_FORMAT, ModelFileError
from meinst.options import first_few

BACKBONE_FORMAT = "meinst-backbone-1"


def save_backbone(tensors: Mapping[str, Tensor], network: str, path: Path, origin: str) -> None:
    """Write a backbone's tensors atomically.

    Args:
        tensors: the tensors by timm's names, without a classifier.
        network: timm's name of the network.
        path: the safetensors file.
        origin: name of the file that the weights came from.
    """
    from safetensors.torch import save

    metadata = {"format": BACKBONE_FORMAT, "backbone": network, "origin": origin}
    write_atomically(path, save(dict(tensors), metadata))


def load_backbone(backbone: Backbone, network: str, path: Path) -> str:
    """Load weights into a backbone from a file that :func:`save_backbone` wrote.

    Args:
        backbone: changed in place.
        network: its timm name.
        path: the file.

    Returns:
        The source of the weights, for the log.

    Raises:
        FileNotFoundError: if there is no such file.
        ModelFileError: if the file has another format or contains another network.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"--backbone-weights {path} does not exist.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"--backbone-weights {path}: not a complete safetensors file ({error}). Create it "
            "with `meinst convert R-50.pkl r50.safetensors`."
        ) from error
    found = metadata.get("format")
    if found != BACKBONE_FORMAT:
        remedy = (
            "use it with --init" if found == MODEL_FORMAT else "create one with `meinst convert`"
        )
        raise ModelFileError(
            f"--backbone-weights {path}: not a backbone but a file of format {found!r}; {remedy}."
        )
    if metadata.get("backbone") != network:
        raise ModelFileError(
            f"--backbone-weights {path}: the weights are of {metadata.get('backbone')}, but the "
            f"recipe's backbone is {network}; change one of them."
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
            f"--backbone-weights {path}: {len(wrong)} tensors do not match the recipe's backbone: "
            f"{first_few(wrong, 3, '; ')}. Convert the original file again."
        )
    backbone.net.load_state_dict({**state, **tensors})
