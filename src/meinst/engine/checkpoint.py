"""Models as files: safetensors with everything inside that is needed to use them again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from meinst.codecs import Codec, codec_from_config
from meinst.detector.meinst import MEInst, Predictor
from meinst.engine.config import Recipe, parse_options, plain_values
from meinst.files import write_atomically

ZOO = Path(__file__).parent.parent / "zoo" / "models"
FORMAT = "meinst-1"
EXPORT_FORMAT = "meinst-export-1"
_MAKERS = {FORMAT: "a file that `meinst train`", EXPORT_FORMAT: "a folder that `meinst export`"}
_METADATA = ("class_names", "codec", "recipe", "metrics")


class ModelFileError(ValueError):
    """A file that is no model, or a model of another kind or size."""


@dataclass(frozen=True)
class ModelInfo:
    """What a model file says of itself.

    Attributes:
        class_names: in the order of the logits.
        recipe: how it was trained.
        codec: hyper-parameters of its codec.
        metrics: what was measured on which data, as its maker noted it.
    """

    class_names: tuple[str, ...]
    recipe: Recipe
    codec: dict[str, Any]
    metrics: dict[str, Any]


def list_models() -> list[str]:
    """Names of the models that the package ships."""
    return sorted(path.stem for path in ZOO.glob("*.safetensors"))


def find_model(name_or_path: str | Path) -> Path:
    """The file of a shipped model's name, or of a path.

    Raises:
        FileNotFoundError: if it is neither.
    """
    shipped = ZOO / f"{name_or_path}.safetensors"
    path = shipped if str(name_or_path) in list_models() else Path(name_or_path)
    if path.is_dir():
        raise FileNotFoundError(
            f"model {str(name_or_path)!r} is a folder: give a file that `meinst train` wrote, such "
            "as its best.safetensors. An export cannot be trained or converted."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"model {str(name_or_path)!r} is neither a file nor one of "
            f"{', '.join(list_models()) or '(none shipped)'}."
        )
    return path


def save_model(
    model: MEInst,
    path: str | Path,
    recipe: Recipe | None = None,
    *,
    half: bool = False,
    metrics: dict[str, Any] | None = None,
) -> Path:
    """Write a model atomically: weights, codec, class names, recipe.

    Args:
        model: what is written.
        path: ends in ``.safetensors`` by custom.
        recipe: how it was trained; its shape, sizes and selection are the model's own.
        half: store the network's matrices and kernels as float16, half the size.
        metrics: noted in the file, shown by ``meinst models``.

    Returns:
        The path.

    Raises:
        ValueError: if the model was made ready to predict, and can no longer be trained.
    """
    if model.backbone.folded:
        raise ValueError(
            "the model's batch norms were made part of its convs, as meinst.load does: take "
            "load_model() for a model to train or to write."
        )
    tensors = model.state_dict()
    if half:
        tensors = {
            name: tensor.half() if tensor.ndim > 1 and not name.startswith("codec.") else tensor
            for name, tensor in tensors.items()
        }
    write_described(Path(path), model, tensors, FORMAT, recipe, metrics)
    return Path(path)


def write_described(
    path: Path,
    model: Predictor,
    tensors: dict[str, Tensor],
    kind: str,
    recipe: Recipe | None,
    metrics: dict[str, Any] | None,
) -> None:
    """Write tensors, and with them all else that a model needs, atomically.

    Args:
        path: the file.
        model: its class names, codec, shape, sizes and selection are noted.
        tensors: what is stored.
        kind: :data:`FORMAT` or :data:`EXPORT_FORMAT`.
        recipe: how it was trained.
        metrics: what was measured.
    """
    from safetensors.torch import save

    recipe = replace(
        recipe or Recipe(),
        model=model.options,
        image_size=model.image_size,
        selection=model.selection,
    )
    metadata = {
        "format": kind,
        "class_names": json.dumps(model.class_names),
        "codec": json.dumps(model.codec.get_config()),
        "recipe": json.dumps(plain_values(recipe)),
        "metrics": json.dumps(metrics or {}),
    }
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(stored, metadata))


def read_info(name_or_path: str | Path) -> ModelInfo:
    """What a model file says of itself, without its weights.

    Raises:
        FileNotFoundError: if there is no such model.
        ModelFileError: if the file is no model of this project.
    """
    return read_described(find_model(name_or_path), FORMAT, weights=False)[0]


def load_model(name_or_path: str | Path) -> MEInst:
    """Build a model from its file, in evaluation mode, on the CPU, in float32.

    Args:
        name_or_path: a shipped model's name, or a file that :func:`save_model` wrote.

    Raises:
        FileNotFoundError: if there is no such model.
        ModelFileError: if the file is no model of this project, or does not fit its own
            description.
    """
    path = find_model(name_or_path)
    info, tensors = read_described(path, FORMAT)
    model = build_model(info.class_names, info.recipe, build_codec(info, path))
    load_tensors(model, tensors, path)
    return model.eval()


def build_codec(info: ModelInfo, path: Path) -> Codec:
    """The codec that a file describes, not yet with its arrays.

    Raises:
        ModelFileError: if there is no such codec.
    """
    try:
        return codec_from_config(info.codec)
    except ValueError as error:
        raise ModelFileError(f"{path}: its codec cannot be built: {error}") from error


def load_tensors(model: Predictor, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a model its tensors, in its own types.

    Raises:
        ModelFileError: if they are not the model's own, by name and shape.
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
            f"{path}: {len(wrong)} tensors do not fit the network it describes: "
            f"{'; '.join(wrong[:3])}. The file was changed after it was written."
        )
    model.load_state_dict({name: tensor.to(expected[name]) for name, tensor in tensors.items()})


def build_model(class_names: tuple[str, ...], recipe: Recipe, codec: Codec) -> MEInst:
    """The network that a recipe describes, with fresh weights."""
    return MEInst(class_names, codec, recipe.model, recipe.image_size, recipe.selection)


def find_kind(path: Path) -> str | None:
    """What kind of file :func:`write_described` wrote, by any version; None for another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format")
    except (SafetensorError, OSError):
        return None


def read_described(
    path: Path, kind: str, *, weights: bool = True
) -> tuple[ModelInfo, dict[str, Tensor]]:
    """What :func:`write_described` wrote; without the tensors if they are not wanted.

    Raises:
        ModelFileError: if it is no such file, or one of another kind.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise ModelFileError(
                    f"{path}: a safetensors file, but no {kind} model (format "
                    f"{metadata.get('format')!r}). Use {_MAKERS[kind]} wrote."
                )
            names = file.keys() if weights else []
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path}: not a complete safetensors file ({error}). "
            f"Use {_MAKERS[kind]} wrote, or the name of a shipped model."
        ) from error
    try:
        values = {name: json.loads(metadata[name]) for name in _METADATA}
    except (KeyError, json.JSONDecodeError) as error:
        raise ModelFileError(
            f"{path}: its description is damaged ({type(error).__name__}: {error}). "
            f"Use {_MAKERS[kind]} wrote."
        ) from error
    try:
        recipe = parse_options(Recipe, values["recipe"], str(path))
    except ValueError as error:
        raise ModelFileError(
            f"{str(error).rstrip('.')}. Perhaps another version of meinst wrote it: use that "
            "one, or make the file again with this."
        ) from error
    info = ModelInfo(
        class_names=tuple(values["class_names"]),
        recipe=recipe,
        codec=values["codec"],
        metrics=values["metrics"],
    )
    return info, tensors
