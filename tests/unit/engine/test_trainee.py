"""How the trainer is told to clip gradients; whole runs are in tests/integration."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from meinst.engine.config import OptimizerOptions
from meinst.engine.schedule import make_optimizer
from meinst.engine.trainee import Trainee


def clipped(limit: float | None) -> list[float]:
    """Gradients 3 and 4, of norm 5, after clipping."""
    module = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in range(2)])
    for parameter, slope in zip(module, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([slope])
    optimizer = make_optimizer(nn.Linear(1, 1), [module], OptimizerOptions())
    Trainee.configure_gradient_clipping(module, optimizer, limit)  # type: ignore[arg-type]
    return [round(parameter.grad.item(), 4) for parameter in module]


def test_gradients_are_clipped_by_their_norm_together() -> None:
    assert clipped(None) == [3, 4]
    assert clipped(10.0) == [3, 4]
    assert clipped(2.5) == [1.5, 2]


def test_other_optimisers_are_clipped_lightnings_way() -> None:
    asked: list[object] = []
    module = SimpleNamespace(clip_gradients=lambda *given: asked.append(given))
    optimizer = make_optimizer(nn.Linear(1, 1), [], OptimizerOptions(name="sgd"))
    Trainee.configure_gradient_clipping(module, optimizer, 2.5)  # type: ignore[arg-type]
    assert asked == [(optimizer, 2.5, None)]
