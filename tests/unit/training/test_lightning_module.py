"""Gradient clipping and what is saved; tests/integration covers whole runs."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from meinst.images.notes import NoteSummary
from meinst.models.recipe import OptimizerOptions
from meinst.training import lightning_module
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


def test_nan_weights_are_not_saved() -> None:
    module = SimpleNamespace(
        metrics={"val/segm_AP": 0.5},
        seed=3,
        global_step=12,
        trainer=SimpleNamespace(accumulate_grad_batches=2),
        model=SimpleNamespace(class_names=("disc",)),
    )
    checkpoint: dict[str, Any] = {"state_dict": {"w": torch.ones(2)}}
    LitMEInst.on_save_checkpoint(module, checkpoint)  # type: ignore[arg-type]
    assert (checkpoint["seed"], checkpoint["accumulate"]) == (3, 2)
    checkpoint["current_model_state"] = {"w": torch.tensor([1.0, math.nan])}
    with pytest.raises(FloatingPointError, match=r"\(w\) by update 12.*--resume.*optimizer\.lr"):
        LitMEInst.on_save_checkpoint(module, checkpoint)  # type: ignore[arg-type]


def test_metrics_of_nothing_are_logged_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, float] = {}
    summary = SimpleNamespace(
        to_dict=lambda: (
            dict.fromkeys(("AP", "AP50", "AP75", "F1_50", "F1_50_threshold")) | {"AP75": 0.0}
        )
    )
    monkeypatch.setattr(
        lightning_module,
        "coco_metrics",
        lambda *_: SimpleNamespace(bbox=summary, segm=summary),
    )
    module = SimpleNamespace(
        results=[],
        metrics={},
        notes=NoteSummary(),
        trainer=SimpleNamespace(world_size=1, sanity_checking=False),
        validation=SimpleNamespace(truth={}, classes=SimpleNamespace(matched_ids=())),
        model=SimpleNamespace(selection=SimpleNamespace(max_detections=1)),
        log=lambda name, value, **_: logged.update({name: value}),
    )
    LitMEInst.on_validation_epoch_end(module)  # type: ignore[arg-type]
    assert module.metrics["val/segm_AP"] is None
    assert math.isnan(logged["val/segm_AP"])
    assert logged["val/segm_AP75"] == 0.0
