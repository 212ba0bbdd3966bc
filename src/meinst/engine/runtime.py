"""Exported models: OpenVINO or ONNX Runtime in the network's place, all else as it is.

An export is a folder: the network alone as a graph (``model.xml`` and ``model.bin`` for OpenVINO,
``model.onnx`` for ONNX Runtime), from prepared pixels ``(B, 3, H, W)`` to the outputs that
:func:`output_names` tells, for every batch and every size in steps of 32; and
``meinst.safetensors``: codec, class names, sizes, selection, and what corrects masks by sight.
Points and strides follow from the size of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meinst.codecs import Codec
from meinst.detector.meinst import ModelOptions, Predictor
from meinst.engine.checkpoint import (
    EXPORT_FORMAT,
    ModelFileError,
    build_codec,
    find_kind,
    list_models,
    load_model,
    load_tensors,
    read_described,
)
from meinst.engine.config import Recipe
from meinst.ops.points import make_points
from meinst.types import HeadOutputs

Format = Literal["openvino", "onnx"]
Run = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]

DESCRIPTION = "meinst.safetensors"
GRAPHS: dict[Format, str] = {"openvino": "model.xml", "onnx": "model.onnx"}
INPUT = "pixels"


def output_names(options: ModelOptions) -> tuple[str, ...]:
    """What a network of this shape says, in order: fields of :class:`~meinst.types.HeadOutputs`."""
    names = ("logits", "boxes", "centerness", "codes")
    return (*names, "sight") if options.sight_channels else names


class ExportedMEInst(Predictor):
    """A model whose network another engine runs, on the CPU.

    Args:
        class_names: names of the ``C`` classes, in the order of the logits.
        codec: as the model's that was exported.
        recipe: its shape, sizes and selection.
        run: the network: prepared pixels to what :func:`output_names` tells.
    """

    def __init__(self, class_names: Sequence[str], codec: Codec, recipe: Recipe, run: Run) -> None:
        super().__init__(class_names, codec, recipe.model, recipe.image_size, recipe.selection)
        self._run = run

    def network(self, pixels: Tensor) -> HeadOutputs:
        """What the exported graph says of prepared pixels ``(B, 3, H, W)``."""
        height, width = pixels.shape[2:]
        # Every stride-2 layer rounds up, so a level's size is the input's over its stride, too.
        sizes = [(-(-height // stride), -(-width // stride)) for stride in self.options.strides]
        points, strides = make_points(sizes, self.options.strides, pixels.device)
        arrays = self._run(pixels.detach().cpu().contiguous().numpy())
        said = {
            name: torch.from_numpy(array).to(pixels.device)
            for name, array in zip(output_names(self.options), arrays, strict=True)
        }
        if "sight" in said:  # sampled faster so, as the network itself gives it
            said["sight"] = said["sight"].contiguous(memory_format=torch.channels_last)
        return HeadOutputs(
            **said,
            points=points,
            strides=strides,
            level_sizes=tuple(rows * columns for rows, columns in sizes),
        )


def load(name_or_path: str | Path) -> Predictor:
    """A model by its name, its file or, if it was exported, its folder; ready to predict.

    Its batch norms are part of its convs, so it is not to be trained or written again; for that
    take :func:`meinst.engine.checkpoint.load_model`.

    Args:
        name_or_path: a shipped model's name, a file that ``meinst train`` wrote, or a folder
            that ``meinst export`` wrote.

    Raises:
        FileNotFoundError: if there is no such model.
        ModelFileError: if the file or folder is no model of this project.
        ImportError: if the engine of an exported model is not installed.
    """
    path = Path(name_or_path)
    if path.is_dir() and str(name_or_path) not in list_models():
        return load_exported(path)
    model = load_model(name_or_path)
    model.backbone.fold_norms()
    return model


def load_exported(folder: Path) -> ExportedMEInst:
    """Open what :func:`meinst.engine.export.export_model` wrote.

    Raises:
        ModelFileError: if the folder holds no export.
        ImportError: if OpenVINO or ONNX Runtime, whichever it needs, is not installed.
    """
    found: list[Format] = [kind for kind, name in GRAPHS.items() if (folder / name).is_file()]
    path = folder / DESCRIPTION
    if len(found) != 1 or not path.is_file():
        best = folder / "best.safetensors"
        way = f"{best}, the model of this run" if best.is_file() else "what `meinst export` wrote"
        raise ModelFileError(
            f"{folder}: a folder, but no export ({DESCRIPTION} and one of "
            f"{', '.join(GRAPHS.values())}). Use {way}."
        )
    info, tensors = read_described(path, EXPORT_FORMAT)
    graph = folder / GRAPHS[found[0]]
    try:
        opened = _open_openvino if found == ["openvino"] else _open_onnx
        run = opened(graph, output_names(info.recipe.model))
    except ImportError:
        raise
    except Exception as error:  # the engines' own classes, one for each kind of damage
        reason = " ".join(str(error).split())
        raise ModelFileError(f"{graph} cannot be opened ({reason}): export it again.") from error
    model = ExportedMEInst(info.class_names, build_codec(info, path), info.recipe, run)
    load_tensors(model, tensors, path)
    return model.eval()


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, whole or not, of any version."""
    return find_kind(folder / DESCRIPTION) == EXPORT_FORMAT


def package(name: str) -> Any:
    """Import a package of the extra "export".

    Raises:
        ImportError: if it is not installed, with what to do about it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"exported models need the package {name}: pip install 'meinst[export]'"
        ) from error


def _open_openvino(path: Path, outputs: Sequence[str]) -> Run:
    core = package("openvino").Core()
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        # Else what is not quantised would run in bfloat16 where the machine has it.
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(str(path), "CPU", options).create_infer_request()

    one_at_a_time = Lock()

    def run(pixels: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        with one_at_a_time:
            results = request.infer({INPUT: pixels}, share_inputs=True)
        return [results[name] for name in outputs]

    return run


def _open_onnx(path: Path, outputs: Sequence[str]) -> Run:
    onnxruntime = package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(outputs, {INPUT: pixels})
