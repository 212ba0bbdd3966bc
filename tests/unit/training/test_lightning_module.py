"""Gradient clipping; tests/integration covers whole runs."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from meinst.models.recipe import OptimizerOptions
from meinst.training.lightning_module import LitMEInst
from meinst.training.schedule import make_optimizer


def clip(limit: float | None) -> list[float]:
    """Gradients 3 and 4 (norm 5) after clipping."""
    module = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(2)])
    for parameter, slope in zip(module, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([slope])
    optimizer = make_optimizer(nn.Linear(1, 1), [module], OptimizerOptions())
    LitMEInst.configure_gradient_clipping(module, optimizer, limit)  # type: ignore[arg-type]
    return [round(parameter.grad.item(), 4) for parameter in module]


def test_gradients_are_clipped_by_their_common_norm() -> None:
    assert clip(None) == [3, 4]
    assert clip(10.0) == [3, 4]
    assert clip(2.5) == [1.5, 2]


def test_lightning_clips_gradients_of_other_optimizers() -> None:
    calls: list[object] = []
    module = SimpleNamespace(clip_gradients=lambda *arguments: calls.append(arguments))
    optimizer = make_optimizer(nn.Linear(1, 1), [], OptimizerOptions(name="sgd"))
    LitMEInst.configure_gradient_clipping(module, optimizer, 2.5)  # type: ignore[arg-type]
    assert calls == [(optimizer, 2.5, None)]
