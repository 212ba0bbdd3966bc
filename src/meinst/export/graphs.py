"""The network as a graph for another engine: traced by torch.export, then converted."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from meinst.detector.head import CodesOnDemand
from meinst.detector.layers import DepthwiseConv, SameConv
from meinst.detector.meinst import MEInst
from meinst.detector.predictor import PAD_MULTIPLE
from meinst.models.exported import GRAPHS, INPUT, Format, import_extra, output_names

ONNX_OPSET = 19  # the first with DeformConv
_MAX_DIM = 4096  # images per batch, and steps of 32 pixels per side: torch requires a bound


class NetworkOnly(nn.Module):
    """A copy of a model's network whose outputs are plain tensors.

    Args:
        model: not changed.
    """

    def __init__(self, model: MEInst) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu().eval()
        _fix_padding(self.model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` to the outputs of ``output_names``, with the codes of all points."""
        outputs = self.model.network(pixels)
        values = [getattr(outputs, name) for name in output_names(self.model.options)]
        return tuple(x.dense() if isinstance(x, CodesOnDemand) else x for x in values)


def write_graph(model: MEInst, folder: Path, engine: Format) -> None:
    """Write a model's network, in float32, for any batch and sides in steps of 32 pixels.

    Raises:
        ImportError: if a package is missing.
        RuntimeError: if torch cannot export the network, with its reason.
    """
    path = folder / GRAPHS[engine]
    outputs = output_names(model.options)
    program = _trace(model)
    if engine == "openvino":
        openvino = import_extra("openvino")
        graph = openvino.convert_model(program)
        for port, name in zip(graph.inputs + graph.outputs, (INPUT, *outputs), strict=True):
            port.get_tensor().set_names({name})
        openvino.save_model(graph, path, compress_to_fp16=False)
        return
    import_extra("onnx")
    import_extra("onnxscript")
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


def _trace(model: MEInst) -> ExportedProgram:
    # Two by three points at the coarsest level: torch takes a size of 1 in the example as constant.
    side = max(PAD_MULTIPLE, *model.options.strides)
    example = torch.zeros(2, 3, 2 * side, 3 * side)
    sizes = {
        0: Dim("images", min=1, max=_MAX_DIM),
        2: PAD_MULTIPLE * Dim("rows", min=1, max=_MAX_DIM),
        3: PAD_MULTIPLE * Dim("columns", min=1, max=_MAX_DIM),
    }
    try:
        network = NetworkOnly(model)
        return torch.export.export(network, (example,), dynamic_shapes={"pixels": sizes})
    except Exception as error:  # torch raises nearly anything for unsupported networks
        raise RuntimeError(
            f"the network on {model.options.backbone!r} cannot be exported: torch.export raised "
            f"{type(error).__name__}: {error}"
        ) from error


class _FixedPadding(nn.Module):
    """TensorFlow's "SAME" conv for sides that its stride divides.

    The padding then does not depend on the size, and engines make it part of the conv.
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
    """Replace convs whose padding depends on the size of their input, timm's and ours."""
    from timm.layers.conv2d_same import Conv2dSame

    for name, child in module.named_children():
        if (isinstance(child, (SameConv, Conv2dSame)) and child.dilation == (1, 1)) or (
            isinstance(child, DepthwiseConv) and child.same
        ):
            setattr(module, name, _FixedPadding(child))
        else:
            _fix_padding(child)
