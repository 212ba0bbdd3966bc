"""A network's graph with 8 bits: which layers keep float, and nncf for the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from meinst.engine.runtime import GRAPHS, INPUT, Format, package

T = TypeVar("T")

FIRST_CONVS = 3  # of a network, that stay in float
FLOAT_OUTPUTS = ("logits", "boxes", "centerness")  # codes and sight lose nothing
_CONVS = {"Convolution", "GroupConvolution", "Conv"}
_NORMS = {"GroupNormalization", "InstanceNormalization", "MVN"}
_SIZES = {"ShapeOf", "Shape"}


class Layer(NamedTuple):
    """A node of a graph.

    Attributes:
        kind: the engine's name of what it does.
        before: names of the nodes whose results it takes.
    """

    kind: str
    before: Sequence[str]


def quantise_graph(
    source: Path,
    folder: Path,
    kind: Format,
    images: Sequence[T],
    prepare: Callable[[T], NDArray[np.float32]],
) -> None:
    """Write a graph that computes with 8 bits, but for what :func:`kept_in_float` names.

    Args:
        source: the graph in float.
        folder: where the other goes.
        kind: of both.
        images: their activations decide over the ranges.
        prepare: an image's pixels ``(1, 3, H, W)`` as the network takes them.

    Raises:
        ImportError: if a package is missing.
    """
    nncf = package("nncf")
    path = str(folder / GRAPHS[kind])
    if kind == "openvino":
        openvino = package("openvino")
        graph: Any = openvino.Core().read_model(source)
        layers, outputs = _read_openvino(graph)
        data = nncf.Dataset(images, prepare)
    else:
        onnx = package("onnx")
        graph = onnx.load(source)
        layers, outputs = _read_onnx(graph.graph)
        data = nncf.Dataset(images, lambda image: {INPUT: prepare(image)})
    last = [outputs[name] for name in FLOAT_OUTPUTS]
    ignored = nncf.IgnoredScope(names=kept_in_float(layers, last))
    quantised = nncf.quantize(graph, data, subset_size=len(images), ignored_scope=ignored)
    if kind == "openvino":
        openvino.save_model(quantised, path, compress_to_fp16=False)
    else:
        onnx.save(quantised, path)


def kept_in_float(layers: Mapping[str, Layer], last: Collection[str]) -> list[str]:
    """Names of the layers that cost most AP with 8 bits, and least time with 32.

    They are the first convs; the last ones of some outputs, which follow from them without another
    conv; and group norms, which compute in float all the same, else what a conv gives them would be
    rounded to 8 bits.

    Args:
        layers: of a graph by name, each after those it takes results from.
        last: names of those that make the outputs in question.
    """
    convs = [name for name, layer in layers.items() if layer.kind in _CONVS]
    kept = convs[:FIRST_CONVS] + [n for n, layer in layers.items() if layer.kind in _NORMS]
    seen, ahead = set[str](), list(last)
    while ahead:
        name = ahead.pop()
        if name in seen or layers[name].kind in _SIZES:  # a size says nothing of values
            continue
        seen.add(name)
        if layers[name].kind in _CONVS:
            kept.append(name)
        else:
            ahead += layers[name].before
    return list(dict.fromkeys(kept))


def _read_openvino(graph: Any) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers by name, and which of them makes each output."""
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
    """As :func:`_read_openvino`."""
    made = {result: node.name for node in graph.node for result in node.output}
    layers = {
        node.name: Layer(node.op_type, [made[value] for value in node.input if value in made])
        for node in graph.node
    }
    return layers, {output.name: made[output.name] for output in graph.output}
