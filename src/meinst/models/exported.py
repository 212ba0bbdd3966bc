"""Exported models: OpenVINO or ONNX Runtime runs the network, everything else is the same.

An export is a folder with the network alone as a graph (``model.xml`` and ``model.bin`` for
OpenVINO, ``model.onnx`` for ONNX Runtime) and ``meinst.safetensors``. The graph maps prepared
pixels ``(B, 3, H, W)``, for any batch and any size in steps of 32, to the outputs named by
:func:`output_names`. ``meinst.safetensors`` holds codec, class names, input size, selection and
mask refiner. Points and strides follow from the size of the input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meinst.codecs import Codec
from meinst.detector.predictor import ModelOptions, Predictor
from meinst.models.model_file import (
    EXPORT_FORMAT,
    ModelFileError,
    build_codec,
    load_tensors,
    read_format,
    read_model_file,
)
from meinst.models.recipe import Recipe
from meinst.ops.points import make_points
from meinst.types import HeadOutputs

Format = Literal["openvino", "onnx"]
Run = Callable[[NDArray[np.float32]], Sequence[NDArray[np.float32]]]

DESCRIPTION = "meinst.safetensors"
GRAPHS: dict[Format, str] = {"openvino": "model.xml", "onnx": "model.onnx"}
INPUT = "pixels"


def output_names(options: ModelOptions) -> tuple[str, ...]:
    """Names of a graph's outputs, in order: fields of :class:`~meinst.types.HeadOutputs`."""
    names = ("logits", "boxes", "centerness", "codes")
    return (*names, "refinement") if options.refine_channels else names


class ExportedMEInst(Predictor):
    """A model whose network another engine runs, on the CPU.

    Args:
        class_names: names of the ``C`` classes, in the order of the logits.
        codec: the codec of the exported model.
        recipe: its architecture, input size and selection.
        run: maps prepared pixels to the outputs named by :func:`output_names`.
    """

    def __init__(self, class_names: Sequence[str], codec: Codec, recipe: Recipe, run: Run) -> None:
        super().__init__(
            class_names, codec, recipe.model, recipe.resize, recipe.selection, recipe.input
        )
        self._run = run

    def network(self, pixels: Tensor) -> HeadOutputs:
        """Run the exported graph on prepared pixels ``(B, 3, H, W)``."""
        height, width = pixels.shape[2:]
        # Every stride-2 layer rounds up, so a level's size is the input's over its stride.
        sizes = [(-(-height // stride), -(-width // stride)) for stride in self.options.strides]
        points, strides = make_points(sizes, self.options.strides, pixels.device)
        arrays = self._run(pixels.detach().cpu().contiguous().numpy())
        outputs = {
            name: torch.from_numpy(array).to(pixels.device)
            for name, array in zip(output_names(self.options), arrays, strict=True)
        }
        if "refinement" in outputs:  # the layout of the network itself, faster to sample
            outputs["refinement"] = outputs["refinement"].contiguous(
                memory_format=torch.channels_last
            )
        return HeadOutputs(
            **outputs,
            points=points,
            strides=strides,
            level_sizes=tuple(rows * columns for rows, columns in sizes),
        )


def load_exported(folder: Path) -> ExportedMEInst:
    """Load a folder that ``meinst export`` wrote.

    Raises:
        ModelFileError: if the folder is not an export.
        ImportError: if OpenVINO or ONNX Runtime, whichever is needed, is not installed.
    """
    formats: list[Format] = [kind for kind, name in GRAPHS.items() if (folder / name).is_file()]
    path = folder / DESCRIPTION
    if len(formats) != 1 or not path.is_file():
        best = folder / "best.safetensors"
        remedy = (
            f"{best}, the model of this run"
            if best.is_file()
            else "a folder written by `meinst export`"
        )
        raise ModelFileError(
            f"{folder} is not an export, which contains {DESCRIPTION} and one of "
            f"{', '.join(GRAPHS.values())}; use {remedy}."
        )
    info, tensors = read_model_file(path, EXPORT_FORMAT)
    graph = folder / GRAPHS[formats[0]]
    open_graph = _OpenVINOGraph if formats == ["openvino"] else _ONNXGraph
    try:
        run = open_graph(graph, output_names(info.recipe.model))
    except ImportError:
        raise
    except Exception as error:  # each engine has its own classes for each kind of damage
        reason = " ".join(str(error).split())
        raise ModelFileError(
            f"{graph} cannot be opened ({reason}); export the model again."
        ) from error
    codec = build_codec(info, path)
    for name, needed in (("logits", len(info.class_names)), ("codes", codec.n_components)):
        channels = run.channels.get(name)
        if channels != needed:
            raise ModelFileError(
                f"{graph}: its output {name} has {channels} channels, but {path} needs "
                f"{needed}; export the model again."
            )
    model = ExportedMEInst(info.class_names, codec, info.recipe, run)
    load_tensors(model, tensors, path)
    files = tuple(path for path in (graph, graph.with_suffix(".bin")) if path.is_file())
    model.metadata = {"recipe": info.recipe, "metrics": info.metrics, "graph": files}
    return model.eval()


def is_export(folder: Path) -> bool:
    """Whether a folder is an export of any version, complete or not."""
    return read_format(folder / DESCRIPTION) == EXPORT_FORMAT


def import_extra(name: str) -> Any:
    """Import a package of the extra "export".

    OpenVINO and nncf report their use to Intel, even when they only open a graph. They do without
    if the package that does so is missing, so it is hidden from them.

    Raises:
        ImportError: if the package is not installed, with the remedy.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"exported models need the package {name}: pip install 'meinst[export]'"
        ) from error


class _Graph:
    """An opened graph; a pickle of it holds the path, and opens it again.

    Args:
        path: the file.
        outputs: names of the outputs, in the order in which a call returns them.

    Attributes:
        channels: size of the last axis of each output.
    """

    channels: Mapping[str, int | str]

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        self.path = path
        self.outputs = tuple(outputs)

    def __reduce__(self) -> tuple[type[_Graph], tuple[Path, tuple[str, ...]]]:
        return type(self), (self.path.absolute(), self.outputs)


class _OpenVINOGraph(_Graph):
    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        super().__init__(path, outputs)
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            # By default, layers that are not quantised run in bfloat16 where the CPU supports it.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = import_extra("openvino").Core()
        network = core.compile_model(str(path), "CPU", options)
        sizes = {name: network.output(name).partial_shape for name in outputs}
        self.channels = {name: size[len(size) - 1].max_length for name, size in sizes.items()}
        self._request = network.create_infer_request()
        self._one_at_a_time = Lock()

    def __call__(self, pixels: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        with self._one_at_a_time:
            results = self._request.infer({INPUT: pixels}, share_inputs=True)
        return [results[name] for name in self.outputs]


class _ONNXGraph(_Graph):
    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        super().__init__(path, outputs)
        onnxruntime = import_extra("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.channels = {output.name: output.shape[-1] for output in self._session.get_outputs()}

    def __call__(self, pixels: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
        arrays: Sequence[NDArray[np.float32]] = self._session.run(self.outputs, {INPUT: pixels})
        return arrays
