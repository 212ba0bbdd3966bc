"""Detectron2's ResNets: tensor names, and ImageNet weights for training.

There are two naming schemes. Detectron2 itself uses ``res2.0.conv1.norm.weight``. The published
R-50.pkl (MSRA) uses the names of Caffe2, ``res2_0_branch2a_bn_gamma``. So do the files of Detectron
(2018), but their norms are fused into a scale ``..._bn_s`` and a shift ``..._bn_b``, without
statistics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from meinst.compat.errors import ForeignFileError
from meinst.detector.backbone import Backbone
from meinst.ops.shapes_only import shapes_only
from meinst.options import first_few

# Names in timm and in Detectron2. {stage}: timm counts stages from 1, Detectron2 from 2.
_RESNET = (
    (r"conv1\.weight", r"stem.conv1.weight"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", r"res{stage}.\2.conv\3.weight"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"res{stage}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"res{stage}.\2.shortcut.weight"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"res{stage}.\2.shortcut.norm.\3"),
)

# Caffe2's names of a block's layers and of a norm's tensors.
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_NORMS = {
    **{"s": "weight", "gamma": "weight", "b": "bias", "beta": "bias"},
    **{"rm": "running_mean", "running_mean": "running_mean"},
    **{"riv": "running_var", "running_var": "running_var"},
}
_CAFFE2 = re.compile(r"(?:res_)?(conv1)_(.+)|(res\d)_(\d+)_branch(1|2[abc])_(.+)")

# The classifier, the optimizer's momenta and the convs' biases; Detectron2 ignores them too.
_IGNORED = re.compile(
    r"(stem\.)?(fc|fc1000|linear|pred)[._].*|.*_momentum|lr|.*\.num_batches_tracked"
    r"|(.*\.)?(conv\d|shortcut)\.bias"
)

# Number of blocks per stage, and shape of the first 3x3 conv's weight (grouped in ResNeXts).
_NETWORKS = {
    "resnet50": ((3, 4, 6, 3), (64, 64, 3, 3)),
    "resnet101": ((3, 4, 23, 3), (64, 64, 3, 3)),
    "resnet152": ((3, 8, 36, 3), (64, 64, 3, 3)),
    "resnext101_32x8d": ((3, 4, 23, 3), (256, 8, 3, 3)),
}


def detectron_name(timm_name: str) -> str | None:
    """Detectron2's name of a ResNet's tensor; None if there is none."""
    for pattern, template in _RESNET:
        if match := re.fullmatch(pattern, timm_name):
            stage = int(match[1]) + 1 if "{stage}" in template else 0
            return match.expand(template.replace("{stage}", str(stage)))
    return None


def is_backbone(state: Mapping[str, Tensor]) -> bool:
    """Whether these are weights of a ResNet alone, in either naming scheme."""
    return "conv1_w" in state or "stem.conv1.weight" in state


def from_detectron(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Convert a ResNet of Detectron2, in either naming scheme, to timm's names.

    For norms that were fused into a scale and a shift, the mean becomes 0 and the variance becomes
    1 minus the norm's epsilon, so that the norm applies exactly this scale and shift. (Detectron2
    sets the variance to 1, which scales by 1 - 5e-6.)

    Args:
        state: weights by their names in the file.
        path: the file, for error messages.

    Returns:
        timm's name of the network, and its tensors in float32.

    Raises:
        ForeignFileError: if the network is not supported, or a tensor is missing, unknown or of
            the wrong shape.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _from_caffe2(key) or key
        if not _IGNORED.fullmatch(name):
            found[name] = tensor
    network = _recognise(found, path)
    with shapes_only():  # shapes only
        net = Backbone(network, (2, 3, 4)).net
    _complete_fused_norms(net, found)
    expected = backbone_shapes(net)
    foreign = {name: detectron_name(name) or name for name in expected}
    faults = [f"{key} is missing" for key in foreign.values() if key not in found]
    faults += [f"{key} is unknown" for key in found.keys() - set(foreign.values())]
    faults += [
        f"{key} has the shape {tuple(found[key].shape)} instead of {tuple(expected[name])}"
        for name, key in foreign.items()
        if key in found and found[key].shape != expected[name]
    ]
    faults += [f"{k} has the type {v.dtype}" for k, v in found.items() if not v.is_floating_point()]
    if faults:
        raise ForeignFileError(
            f"{path}: {len(faults)} tensors do not match {network}: "
            f"{first_few(sorted(faults), 4, '; ')}. Give the file as it was published."
        )
    return network, {name: found[key].float().contiguous() for name, key in foreign.items()}


def backbone_shapes(net: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a network's tensors by name, without the counters of its norms."""
    return {
        name: tensor.shape
        for name, tensor in net.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def _from_caffe2(key: str) -> str | None:
    match = _CAFFE2.fullmatch(key)
    if match is None:
        return None
    stem, stem_tail, stage, block, branch, tail = match.groups()
    layer = f"stem.{stem}" if stem else f"{stage}.{block}.{_BRANCHES[branch]}"
    tail = tail or stem_tail
    if tail in ("w", "b"):
        return f"{layer}.{'weight' if tail == 'w' else 'bias'}"
    norm = _NORMS.get(tail.removeprefix("bn_"))
    return f"{layer}.norm.{norm}" if norm and tail.startswith("bn_") else None


def _recognise(found: Mapping[str, Tensor], path: Path) -> str:
    blocks = tuple(
        len({key.split(".")[1] for key in found if key.startswith(f"res{stage}.")})
        for stage in (2, 3, 4, 5)
    )
    conv = found.get("res2.0.conv2.weight")
    shape = None if conv is None else tuple(conv.shape)
    for name, kind in _NETWORKS.items():
        if kind == (blocks, shape):
            return name
    # The first conv differs: assume a damaged file, so that the error names the wrong tensors.
    for name, kind in _NETWORKS.items():
        if blocks == kind[0]:
            return name
    raise ForeignFileError(
        f"{path}: a ResNet of {', '.join(map(str, blocks))} blocks whose first 3x3 weight has the "
        f"shape {shape}; supported are {', '.join(_NETWORKS)}."
    )


def _complete_fused_norms(net: nn.Module, found: dict[str, Tensor]) -> None:
    if any(key.endswith((".running_mean", ".running_var")) for key in found):
        return
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            mean = detectron_name(f"{name}.running_mean") or name
            found[mean] = torch.zeros(module.num_features)
            found[mean.replace("_mean", "_var")] = torch.ones(module.num_features) - module.eps
