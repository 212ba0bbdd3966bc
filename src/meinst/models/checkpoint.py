"""Models as files, and the models that the package ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meinst.codecs import Codec
from meinst.detector.meinst import MEInst
from meinst.detector.predictor import Predictor
from meinst.models.model_file import (
    MODEL_FORMAT,
    ModelFileError,
    ModelInfo,
    build_codec,
    load_tensors,
    read_model_file,
    write_model_file,
)
from meinst.models.recipe import Recipe
from meinst.ops.shapes_only import shapes_only

ZOO = Path(__file__).parent / "zoo"


def list_models() -> list[str]:
    """Names of the shipped models."""
    return sorted(path.stem for path in ZOO.glob("*.safetensors"))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a shipped model, or of a path.

    Raises:
        FileNotFoundError: if it is neither.
    """
    shipped = ZOO / f"{name_or_path}.safetensors"
    path = shipped if str(name_or_path) in list_models() else Path(name_or_path)
    if path.is_dir():
        raise FileNotFoundError(
            f"model {str(name_or_path)!r} is a folder; give a file written by `meinst train`, such "
            "as its best.safetensors. An export cannot be trained or converted."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"model {str(name_or_path)!r} is neither a file nor one of "
            f"{', '.join(list_models()) or '(none shipped)'}."
        )
    return path


def save_model(
    model: Predictor,
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    half: bool = False,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Write a model atomically: weights, codec, class names and recipe.

    Args:
        model: a model from :func:`meinst.load` or :class:`MEInst`, not fused or exported.
        path: the file, by convention ending in ``.safetensors``.
        recipe: the recipe of its training; by default that of the file it was loaded from.
        half: store matrices and kernels of the network as float16, at half the size.
        metrics: figures of its validation, shown by ``meinst models``; by default those of the
            file it was loaded from.

    Returns:
        The path.

    Raises:
        ValueError: if the model is fused or exported.
    """
    if not isinstance(model, MEInst):
        raise ValueError(
            "an exported model cannot be saved; copy its folder, or save the original model."
        )
    if model.fused:
        raise ValueError(
            "a fused model cannot be saved; load it again, and save it before calling fuse()."
        )
    tensors = model.state_dict()
    if half:
        tensors = {
            name: tensor.half() if tensor.ndim > 1 and not name.startswith("codec.") else tensor
            for name, tensor in tensors.items()
        }
    write_model_file(Path(path), model, tensors, MODEL_FORMAT, recipe, metrics)
    return Path(path)


def read_info(name_or_path: str | Path) -> ModelInfo:
    """The description in a model file, without reading its weights.

    Raises:
        FileNotFoundError: if there is no such model.
        ModelFileError: if the file is not a model.
    """
    return read_model_file(find_model(name_or_path), MODEL_FORMAT, weights=False)[0]


def load_model(name_or_path: str | Path) -> MEInst:
    """Load a model from its file, in evaluation mode, on the CPU, in float32.

    Args:
        name_or_path: a shipped model's name, or a file that :func:`save_model` wrote.

    Raises:
        FileNotFoundError: if there is no such model.
        ModelFileError: if the file is not a model, or does not match its own description.
    """
    path = find_model(name_or_path)
    info, tensors = read_model_file(path, MODEL_FORMAT)
    model = _build_and_load(info, tensors, path)
    model.metadata = {"recipe": info.recipe, "metrics": info.metrics}
    return model.eval()


def _build_and_load(info: ModelInfo, tensors: dict[str, Tensor], path: Path) -> MEInst:
    """Build a model around a file's tensors.

    It is built without memory first, so that a file that describes a network of other sizes than
    its tensors takes none.
    """
    try:
        with shapes_only():
            model = build_model(info.class_names, info.recipe, build_codec(info, path))
    except ValueError as error:
        raise ModelFileError(f"{path}: its network cannot be built: {error}") from error
    load_tensors(model, tensors, path, assign=True)
    model.reset_constants()
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        # A timm network with constants that are not part of its weights.
        model = build_model(info.class_names, info.recipe, build_codec(info, path))
        load_tensors(model, tensors, path)
    return model.to(memory_format=torch.channels_last)


def build_model(class_names: tuple[str, ...], recipe: Recipe, codec: Codec) -> MEInst:
    """The model that a recipe describes, with new weights."""
    return MEInst(class_names, codec, recipe.model, recipe.resize, recipe.selection, recipe.input)
