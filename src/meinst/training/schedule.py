"""The learning-rate schedule and the parameter groups of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn

from meinst.models.recipe import OptimizerOptions, ScheduleOptions


def lr_factor(iteration: int, options: ScheduleOptions) -> float:
    """Factor on the learning rate at an update, counted from 0."""
    if options.decay == "step":
        factor = options.step_factor ** sum(iteration >= step for step in options.steps)
    else:
        progress = min(decay_progress(iteration, options), 1.0)
        cosine = (1 + math.cos(math.pi * progress)) / 2
        factor = options.final_factor + (1 - options.final_factor) * cosine
    if iteration < options.warmup_iterations:
        progress = iteration / options.warmup_iterations if options.warmup == "linear" else 0.0
        factor *= options.warmup_factor * (1 - progress) + progress
    return factor


def decay_progress(iteration: int, options: ScheduleOptions) -> float:
    """Share of the decay that is over at an update: 0 at the first, 1 after the last.

    It grows evenly between the updates at which the number of updates was revised.
    """
    done, start = 0.0, 0
    for revision, planned in zip(options.revised_at, options.revised_from, strict=True):
        if iteration < revision:
            return done + (1 - done) * ((iteration - start) / (planned - start))
        done += (1 - done) * ((revision - start) / (planned - start))
        start = revision
    return done + (1 - done) * ((iteration - start) / (options.iterations - start))


def revise(options: ScheduleOptions, update: int, iterations: int) -> ScheduleOptions:
    """The schedule with another number of updates, decided after ``update`` updates.

    Learning rates up to ``update`` stay as they were.
    """
    if options.revised_at[-1:] == (update,):
        return replace(options, iterations=iterations)
    return replace(
        options,
        iterations=iterations,
        revised_at=(*options.revised_at, update),
        revised_from=(*options.revised_from, options.iterations),
    )


def make_optimizer(
    backbone: nn.Module, rest: Iterable[nn.Module], options: OptimizerOptions
) -> torch.optim.Optimizer:
    """AdamW or SGD on all trainable weights; norms never decay, biases only on request.

    Args:
        backbone: trained with ``lr * backbone_lr_factor``.
        rest: the other parts, trained with ``lr``.
        options: see :class:`OptimizerOptions`.
    """
    groups = []
    for modules, lr in (
        ([backbone], options.lr * options.backbone_lr_factor),
        (list(rest), options.lr),
    ):
        weights = [p for module in modules for p in module.parameters() if p.requires_grad]
        norms = {id(p) for module in modules for p in _norm_parameters(module)}
        # Matrices and kernels decay; scales, shifts and biases are one-dimensional.
        exempt = [id(p) in norms or (p.ndim <= 1 and not options.decay_biases) for p in weights]
        decayed = [p for p, is_exempt in zip(weights, exempt, strict=True) if not is_exempt]
        others = [p for p, is_exempt in zip(weights, exempt, strict=True) if is_exempt]
        groups += [
            {"params": decayed, "lr": lr, "weight_decay": options.weight_decay},
            {"params": others, "lr": lr, "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if options.name == "sgd":
        return torch.optim.SGD(groups, lr=options.lr, momentum=options.momentum)
    on_cpu = next(backbone.parameters()).device.type == "cpu"
    return torch.optim.AdamW(groups, lr=options.lr, fused=on_cpu or None)  # None: torch decides


def _norm_parameters(module: nn.Module) -> Iterable[nn.Parameter]:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
    for part in module.modules():
        if isinstance(part, kinds):
            yield from part.parameters(recurse=False)
