"""Quantization of a network's graph to 8 bits by nncf, and the layers that stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from meinst.models.exported import GRAPHS, INPUT, Format, import_extra

T = TypeVar("T")

FIRST_CONVS = 3  # number of convs at the start of the network that stay in float32
# Outputs whose last convs stay in float32; codes and refinement features lose nothing in 8 bits.
FLOAT_OUTPUTS = ("logits", "boxes", "centerness")
_CONVS = {"Convolution", "GroupConvolution", "Conv"}
_NORMS = {"GroupNormalization", "InstanceNormalization", "MVN"}
_SHAPES = {"ShapeOf", "Shape"}


class Layer(NamedTuple):
    """A node of a graph.

    Attributes:
        operation: the engine's name of its operation.
        inputs: names of the nodes whose results it takes.
    """

    operation: str
    inputs: Sequence[str]


def quantize_graph(
    source: Path,
    folder: Path,
    engine: Format,
    images: Sequence[T],
    prepare: Callable[[T], NDArray[np.float32]],
) -> None:
    """Write a graph that computes in 8 bits, except for the layers of :func:`float_layers`.

    Args:
        source: the graph in float32.
        folder: folder of the quantized graph.
        engine: OpenVINO or ONNX.
        images: their activations determine the ranges.
        prepare: returns an image's pixels ``(1, 3, H, W)`` in the form that the network takes.

    Raises:
        ImportError: if a package is missing.
    """
    nncf = import_extra("nncf")
    path = str(folder / GRAPHS[engine])
    if engine == "openvino":
        openvino = import_extra("openvino")
        graph: Any = openvino.Core().read_model(source)
        layers, outputs = _read_openvino(graph)
        data = nncf.Dataset(images, prepare)
    else:
        onnx = import_extra("onnx")
        graph = onnx.load(source)
        layers, outputs = _read_onnx(graph.graph)
        data = nncf.Dataset(images, lambda image: {INPUT: prepare(image)})
    last = [outputs[name] for name in FLOAT_OUTPUTS]
    ignored = nncf.IgnoredScope(names=float_layers(layers, last))
    quantized = nncf.quantize(graph, data, subset_size=len(images), ignored_scope=ignored)
    if engine == "openvino":
        openvino.save_model(quantized, path, compress_to_fp16=False)
    else:
        onnx.save(quantized, path)


def float_layers(layers: Mapping[str, Layer], last: Collection[str]) -> list[str]:
    """Names of the layers that cost the most AP in 8 bits and the least time in float32.

    These are the first convs; the last convs before some outputs; and group norms, which compute in
    float32 anyway and would otherwise have their inputs rounded to 8 bits.

    Args:
        layers: the layers of a graph by name, each after its inputs.
        last: names of the layers that produce the outputs in question.
    """
    convs = [name for name, layer in layers.items() if layer.operation in _CONVS]
    names = convs[:FIRST_CONVS] + [n for n, each in layers.items() if each.operation in _NORMS]
    visited, pending = set[str](), list(last)
    while pending:
        name = pending.pop()
        # Shapes do not depend on values, so the search does not continue behind them.
        if name in visited or layers[name].operation in _SHAPES:
            continue
        visited.add(name)
        if layers[name].operation in _CONVS:
            names.append(name)
        else:
            pending += layers[name].inputs
    return list(dict.fromkeys(names))


def _read_openvino(graph: Any) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers by name, and the layer that produces each output."""
    layers = {
        node.get_friendly_name(): Layer(
            node.get_type_name(),
            [value.get_node().get_friendly_name() for value in node.input_values()],
        )
        for node in graph.get_ordered_ops()
    }
    return layers, {
        output.get_any_name(): output.get_node().get_friendly_name() for output in graph.outputs
    }


def _read_onnx(graph: Any) -> tuple[dict[str, Layer], dict[str, str]]:
    """Like :func:`_read_openvino`."""
    producer = {result: node.name for node in graph.node for result in node.output}
    layers = {
        node.name: Layer(
            node.op_type, [producer[value] for value in node.input if value in producer]
        )
        for node in graph.node
    }
    return layers, {output.name: producer[output.name] for output in graph.output}
