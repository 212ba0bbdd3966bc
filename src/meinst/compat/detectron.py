"""Detectron2's ResNets: their names, and the ImageNet weights that trainings start from.

Two spellings are about. Detectron2's own is ``res2.0.conv1.norm.weight``. The published R-50.pkl
(MSRA) has Caffe2's, ``res2_0_branch2a_bn_gamma``; Detectron's of 2018 likewise, but with a fused
norm, ``..._bn_s`` and ``..._bn_b``, and no statistics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from meinst.compat.errors import ForeignFileError, first_few
from meinst.detector.backbone import Backbone

# timm's names (ours, too) and Detectron2's. Stages are counted from 1 there and from 2 here.
_RESNET = (
    (r"conv1\.weight", r"stem.conv1.weight"),
    (r"bn1\.(\w+)", r"stem.conv1.norm.\1"),
    (r"layer(\d)\.(\d+)\.conv(\d)\.weight", r"res{stage}.\2.conv\3.weight"),
    (r"layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"res{stage}.\2.conv\3.norm.\4"),
    (r"layer(\d)\.(\d+)\.downsample\.0\.weight", r"res{stage}.\2.shortcut.weight"),
    (r"layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"res{stage}.\2.shortcut.norm.\3"),
)

# Caffe2's names of the parts of a block, and of a norm's tensors.
_BRANCHES = {"1": "shortcut", "2a": "conv1", "2b": "conv2", "2c": "conv3"}
_NORMS = {
    **{"s": "weight", "gamma": "weight", "b": "bias", "beta": "bias"},
    **{"rm": "running_mean", "running_mean": "running_mean"},
    **{"riv": "running_var", "running_var": "running_var"},
}
_CAFFE2 = re.compile(r"(?:res_)?(conv1)_(.+)|(res\d)_(\d+)_branch(1|2[abc])_(.+)")

# The classifier, the optimizer's momenta, and the convs' biases, which Detectron2 ignores as well.
_IGNORED = re.compile(
    r"(stem\.)?(fc|fc1000|linear|pred)[._].*|.*_momentum|lr|.*\.num_batches_tracked"
    r"|(.*\.)?(conv\d|shortcut)\.bias"
)

# Blocks of each stage, and shape of the first 3x3 conv's weight (of groups in ResNeXts).
_NETWORKS = {
    "resnet50": ((3, 4, 6, 3), (64, 64, 3, 3)),
    "resnet101": ((3, 4, 23, 3), (64, 64, 3, 3)),
    "resnet152": ((3, 8, 36, 3), (64, 64, 3, 3)),
    "resnext101_32x8d": ((3, 4, 23, 3), (256, 8, 3, 3)),
}


def detectron_name(timm_name: str) -> str | None:
    """Detectron2's name of a ResNet's tensor; None if it has none."""
    for ours, theirs in _RESNET:
        if match := re.fullmatch(ours, timm_name):
            stage = int(match[1]) + 1 if "{stage}" in theirs else 0
            return match.expand(theirs.replace("{stage}", str(stage)))
    return None


def is_backbone(state: Mapping[str, Tensor]) -> bool:
    """Whether these are a ResNet's weights, by one of the two spellings, and nothing more."""
    return "conv1_w" in state or "stem.conv1.weight" in state


def from_detectron(state: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Tensor]]:
    """Translate a ResNet of Detectron2, in either spelling, to timm's names.

    Where the norms were fused to a scale and a shift, the mean becomes 0 and the variance 1 less
    the norm's epsilon, so that scale and shift act exactly as they are. (Detectron2 itself sets
    the variance to 1 and so scales by 1 - 5e-6.)

    Args:
        state: weights by their foreign names.
        path: the file, for errors.

    Returns:
        timm's name of the network, and its tensors in float32.

    Raises:
        ForeignFileError: if the network is none of those known, or a tensor is missing,
            unknown or of a wrong shape.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _from_caffe2(key) or key
        if not _IGNORED.fullmatch(name):
            found[name] = tensor
    network = _recognise(found, path)
    with torch.device("meta"):  # shapes only
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
    faults += [f"{k} is of {v.dtype}" for k, v in found.items() if not v.is_floating_point()]
    if faults:
        raise ForeignFileError(
            f"{path}: {len(faults)} tensors do not fit a {network}: {first_few(sorted(faults))}. "
            "Give the file as it was published."
        )
    return network, {name: found[key].float().contiguous() for name, key in foreign.items()}


def backbone_shapes(net: nn.Module) -> dict[str, torch.Size]:
    """Shapes of a network's tensors by their names, without the norms' counters."""
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
    # A damaged file of a known network is told as such, by what does not fit.
    for name, kind in _NETWORKS.items():
        if blocks == kind[0]:
            return name
    raise ForeignFileError(
        f"{path}: a ResNet of {', '.join(map(str, blocks))} blocks with first 3x3 weights "
        f"{shape}, none of {', '.join(_NETWORKS)}."
    )


def _complete_fused_norms(net: nn.Module, found: dict[str, Tensor]) -> None:
    if any(key.endswith((".running_mean", ".running_var")) for key in found):
        return
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            mean = detectron_name(f"{name}.running_mean") or name
            found[mean] = torch.zeros(module.num_features)
            found[mean.replace("_mean", "_var")] = torch.ones(module.num_features) - module.eps
