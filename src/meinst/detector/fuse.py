"""Batch norms merged into the convs before them, for faster inference."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-4  # relative to the largest value


@torch.no_grad()
def fuse_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """Copy a network, merging each batch norm into the conv before it.

    Which norm follows which conv is found by running the network once, so any network will do. A
    norm's activation, which timm makes part of the norm, stays in its place.

    Args:
        network: in evaluation mode; not changed.
        example: an input of the network.

    Returns:
        The copy; or the network itself if there is nothing to merge, or if the copy's outputs
        would differ.
    """
    fused = copy.deepcopy(network)
    outputs, pairs = _find_pairs(fused, example)
    if not pairs:
        return network
    for conv, norm in pairs:
        parts: list[Any] = [fused.get_submodule(name) for name in (conv, norm)]
        fused.set_submodule(conv, nn.utils.fuse_conv_bn_eval(*parts))
        fused.set_submodule(norm, _activation(parts[1]))
    for before, after in zip(outputs, fused(example), strict=True):
        if (before - after).abs().max() > _TOLERANCE * before.abs().max():
            return network
    return fused.requires_grad_(False)


def _find_pairs(network: nn.Module, example: Tensor) -> tuple[list[Tensor], list[tuple[str, str]]]:
    """The network's outputs, and names of (conv, following norm), each used only once."""
    made: dict[int, tuple[str, Tensor]] = {}  # holds the tensors, so that ids stay unique
    pairs: list[tuple[str, str]] = []
    used: Counter[str] = Counter()

    def watch(name: str, module: nn.Module) -> Any:
        def conv_hook(_: nn.Module, __: Any, output: Tensor) -> None:
            used[name] += 1
            made[id(output)] = name, output

        def norm_hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            used[name] += 1
            if id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][0], name))

        if isinstance(module, nn.Conv2d):
            return module.register_forward_hook(conv_hook)
        return module.register_forward_pre_hook(norm_hook)

    watched = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    hooks = [watch(n, m) for n, m in network.named_modules() if isinstance(m, watched)]
    outputs: list[Tensor] = network(example)
    for hook in hooks:
        hook.remove()
    return outputs, [pair for pair in pairs if used[pair[0]] == used[pair[1]] == 1]


def _activation(norm: nn.Module) -> nn.Module:
    """What a norm does besides normalising: timm's norms also apply drop-out and activations."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    kept = [part for part in parts if part is not None and not isinstance(part, nn.Identity)]
    return nn.Sequential(*kept)
