"""The network as a graph for another engine: recorded by torch, converted."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from meinst.detector.head import CodesOnDemand
from meinst.detector.layers import DepthwiseConv
from meinst.detector.meinst import PAD_MULTIPLE, MEInst
from meinst.engine.runtime import GRAPHS, INPUT, Format, output_names, package

ONNX_OPSET = 19  # the first with DeformConv
_MOST = 4096  # images of a batch, and steps of a side: torch wants some bound


class NetworkAlone(nn.Module):
    """A copy of a model's network whose outputs are plain tensors.

    Args:
        model: not changed.
    """

    def __init__(self, model: MEInst) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval()
        _fix_padding(self.model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` to what :func:`~meinst.engine.runtime.output_names` tells."""
        outputs = self.model.network(pixels)
        said = [getattr(outputs, name) for name in output_names(self.model.options)]
        return tuple(x.everywhere() if isinstance(x, CodesOnDemand) else x for x in said)


def write_graph(model: MEInst, folder: Path, kind: Format) -> None:
    """Write a model's network, in float32, for any batch and sides in steps of 32 pixels.

    Raises:
        ImportError: if a package is missing.
        RuntimeError: if torch cannot record the network, with its reason.
    """
    path = folder / GRAPHS[kind]
    outputs = output_names(model.options)
    program = _record(model)
    if kind == "openvino":
        openvino = package("openvino")
        graph = openvino.convert_model(program)
        for port, name in zip(graph.inputs + graph.outputs, (INPUT, *outputs), strict=True):
            port.get_tensor().set_names({name})
        openvino.save_model(graph, path, compress_to_fp16=False)
        return
    package("onnx")
    package("onnxscript")
    torch.onnx.export(
        program,
        (),
        path,
        input_names=[INPUT],
        output_names=list(outputs),
        opset_version=ONNX_OPSET,
        external_data=False,
        verbose=False,
    )


def _record(model: MEInst) -> ExportedProgram:
    # Two and three points at the coarsest level: what is 1 in the example, torch takes for fixed.
    side = max(PAD_MULTIPLE, *model.options.strides)
    example = torch.zeros(2, 3, 2 * side, 3 * side)
    sizes = {
        0: Dim("images", min=1, max=_MOST),
        2: PAD_MULTIPLE * Dim("rows", min=1, max=_MOST),
        3: PAD_MULTIPLE * Dim("columns", min=1, max=_MOST),
    }
    try:
        network = NetworkAlone(model)
        return torch.export.export(network, (example,), dynamic_shapes={"pixels": sizes})
    except Exception as error:  # what a network does not allow raises nearly anything in torch
        raise RuntimeError(
            f"the network on {model.options.backbone!r} cannot be exported: torch.export says "
            f"{type(error).__name__}: {error}"
        ) from error


class _FixedPadding(nn.Module):
    """TensorFlow's "same" conv on sides that its stride divides.

    What is padded does then not depend on the size, and engines make it part of the conv.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        tall, wide = (max(k - s, 0) for k, s in zip(conv.kernel_size, conv.stride, strict=True))
        self.padding = (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)
        self.conv = conv

    def forward(self, feature: Tensor) -> Tensor:
        padded, conv = nn.functional.pad(feature, self.padding), self.conv
        return nn.functional.conv2d(padded, conv.weight, conv.bias, conv.stride, groups=conv.groups)


def _fix_padding(module: nn.Module) -> None:
    """Replace convs that find their padding anew for every input, timm's and ours."""
    from timm.layers.conv2d_same import Conv2dSame

    for name, child in module.named_children():
        if (isinstance(child, Conv2dSame) and child.dilation == (1, 1)) or (
            isinstance(child, DepthwiseConv) and child.same
        ):
            setattr(module, name, _FixedPadding(child))
        else:
            _fix_padding(child)
