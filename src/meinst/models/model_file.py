"""The file format of models: safetensors, with the description of the model as JSON metadata."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from meinst.codecs import Codec, codec_from_config
from meinst.detector.predictor import Predictor
from meinst.files import write_atomically
from meinst.models.recipe import Recipe
from meinst.options import FileError, first_few, options_from_dict, options_to_dict

MODEL_FORMAT = "meinst-1"
EXPORT_FORMAT = "meinst-export-1"
_SOURCES = {
    MODEL_FORMAT: "a file written by `meinst train`",
    EXPORT_FORMAT: "a folder written by `meinst export`",
}
_METADATA = ("class_names", "codec", "recipe", "metrics")


class ModelFileError(FileError):
    """A file that is not a model, or does not match its own description."""


@dataclass(frozen=True)
class ModelInfo:
    """The description in a model file.

    Attributes:
        class_names: names of the classes, in the order of the logits.
        recipe: the recipe of its training.
        codec: hyper-parameters of its codec.
        metrics: figures of its validation.
    """

    class_names: tuple[str, ...]
    recipe: Recipe
    codec: dict[str, Any]
    metrics: dict[str, Any]


def write_model_file(
    path: Path,
    model: Predictor,
    tensors: dict[str, Tensor],
    file_format: str,
    recipe: Recipe | None = None,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Write tensors and everything else that a model needs, atomically.

    Args:
        path: the file.
        model: its class names, codec, architecture, input and selection are written.
        tensors: the tensors to write.
        file_format: :data:`MODEL_FORMAT` or :data:`EXPORT_FORMAT`.
        recipe: the recipe of its training; that of the file it was loaded from if None.
        metrics: figures of its validation; those of the file it was loaded from if None.
    """
    from safetensors.torch import save

    recipe = replace(
        recipe or model.metadata.get("recipe") or Recipe(),
        model=model.options,
        input=model.input_options,
        resize=model.resize_options,
        selection=model.selection,
    )
    if metrics is None:
        metrics = model.metadata.get("metrics", {})
    metadata = {
        "format": file_format,
        "class_names": json.dumps(model.class_names),
        "codec": json.dumps(model.codec.get_config()),
        "recipe": json.dumps(options_to_dict(recipe)),
        "metrics": json.dumps(metrics),
    }
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(stored, metadata))


def read_model_file(
    path: Path, file_format: str, *, weights: bool = True
) -> tuple[ModelInfo, dict[str, Tensor]]:
    """Read a file that :func:`write_model_file` wrote.

    Args:
        path: the file.
        file_format: the format it must have.
        weights: whether to read the tensors too.

    Raises:
        ModelFileError: if the file is damaged or has another format.
    """
    from safetensors import SafetensorError, safe_open

    source = _SOURCES[file_format]
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != file_format:
                raise ModelFileError(
                    f"{path}: a safetensors file of format {metadata.get('format')!r}, not "
                    f"{file_format}. Use {source}."
                )
            names = file.keys() if weights else []
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: not a complete safetensors file ({error}). Use {source}, or the name of a "
            "shipped model."
        ) from error
    return _parse_description(metadata, path, source), tensors


def _parse_description(metadata: dict[str, str], path: Path, source: str) -> ModelInfo:
    """The description in a file's metadata; ``source`` names where good files come from.

    Raises:
        ModelFileError: if it is damaged, or has unknown or invalid options.
    """
    try:
        values = {name: json.loads(metadata[name]) for name in _METADATA}
        _check_description(values)
    except (KeyError, ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{path}: its description is damaged ({type(error).__name__}: {error}). Use {source}."
        ) from error
    try:
        recipe = options_from_dict(Recipe, values["recipe"], str(path))
    except ValueError as error:
        raise ModelFileError(
            f"{str(error).rstrip('.')}. The file may be from another version of meinst: use that "
            "version, or create the file again."
        ) from error
    return ModelInfo(
        class_names=tuple(values["class_names"]),
        recipe=recipe,
        codec=values["codec"],
        metrics=values["metrics"],
    )


def _check_description(values: dict[str, Any]) -> None:
    names = values["class_names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names is not a list of names")
    if not names or len(set(names)) < len(names):
        raise ValueError("class_names must be one or more different names")
    for key in ("codec", "recipe", "metrics"):
        if not isinstance(values[key], dict):
            raise ValueError(f"{key} is not an object")


def read_format(path: Path) -> str | None:
    """The format of a file that any version of :func:`write_model_file` wrote; else None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format")
    except (SafetensorError, OSError):
        return None


def build_codec(info: ModelInfo, path: Path) -> Codec:
    """The codec that a file describes, without its arrays yet.

    Raises:
        ModelFileError: if there is no such codec.
    """
    try:
        return codec_from_config(info.codec)
    except ValueError as error:
        raise ModelFileError(f"{path}: its codec cannot be built: {error}") from error


def load_tensors(
    model: Predictor, tensors: dict[str, Tensor], path: Path, *, assign: bool = False
) -> None:
    """Load a file's tensors into a model, converted to the model's types.

    Args:
        model: changed in place.
        tensors: by name.
        path: the file, for messages.
        assign: let the model use the tensors themselves, without a copy.

    Raises:
        ModelFileError: if names or shapes do not match the model, or its codec is not fitted.
    """
    expected = model.state_dict()
    wrong = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in tensors.keys() & expected.keys()
        if tensors[name].shape != expected[name].shape
    ]
    wrong += [f"{name} is missing" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [f"{name} is unknown" for name in sorted(tensors.keys() - expected.keys())]
    if wrong:
        raise ModelFileError(
            f"{path}: {len(wrong)} tensors do not fit the network that the file describes: "
            f"{first_few(wrong, 3, '; ')}. The file was changed after it was written."
        )
    state = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    model.load_state_dict(state, assign=assign)
    if not model.codec.fitted:
        raise ModelFileError(
            f"{path}: its codec holds only zeros, so it decodes no masks. The file was changed "
            "after it was written, or its codec was not fitted."
        )
