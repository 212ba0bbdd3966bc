"""Batch norms as part of the convs before them, for inference."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

_TOLERANCE = 1e-4  # of the largest value


@torch.no_grad()
def fold_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """A copy of a network in which convs do what the batch norms behind them did.

    Which norm follows which conv is seen by running the network once, so any will do. A norm's
    activation, which timm makes part of it, stays in its place.

    Args:
        network: in evaluation mode; not changed.
        example: an input of it.

    Returns:
        The copy; or the network itself if there is nothing to fold, or the copy would not say the
        same.
    """
    folded = copy.deepcopy(network)
    said, pairs = _run_watched(folded, example)
    if not pairs:
        return network
    for conv, norm in pairs:
        parts: list[Any] = [folded.get_submodule(name) for name in (conv, norm)]
        folded.set_submodule(conv, nn.utils.fuse_conv_bn_eval(*parts))
        folded.set_submodule(norm, _activation(parts[1]))
    for before, after in zip(said, folded(example), strict=True):
        if (before - after).abs().max() > _TOLERANCE * before.abs().max():
            return network
    return folded.requires_grad_(False)


def _run_watched(network: nn.Module, example: Tensor) -> tuple[list[Tensor], list[tuple[str, str]]]:
    """Outputs; and names of convs and of the norms that take what they give, each used once."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, or their ids would return
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

    kinds = (nn.Conv2d, nn.modules.batchnorm._BatchNorm)
    hooks = [watch(n, m) for n, m in network.named_modules() if isinstance(m, kinds)]
    said: list[Tensor] = network(example)
    for hook in hooks:
        hook.remove()
    return said, [pair for pair in pairs if used[pair[0]] == used[pair[1]] == 1]


def _activation(norm: nn.Module) -> nn.Module:
    """What a norm does beside normalising: timm's norms drop and activate as well."""
    parts = [getattr(norm, name, None) for name in ("drop", "act")]
    kept = [part for part in parts if part is not None and not isinstance(part, nn.Identity)]
    return nn.Sequential(*kept)
