import math
from dataclasses import replace

import pytest
from torch import nn

from meinst.models.recipe import OptimizerOptions, ScheduleOptions
from meinst.training.schedule import decay_progress, lr_factor, make_optimizer, revise

STEPS = ScheduleOptions(
    iterations=100, decay="step", steps=(60, 80), warmup="constant", warmup_iterations=5
)


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [(0, 0.001), (4, 0.001), (5, 1.0), (59, 1.0), (60, 0.1), (79, 0.1), (80, 0.01), (99, 0.01)],
)
def test_steps_follow_a_constant_warm_up(iteration: int, factor: float) -> None:
    assert lr_factor(iteration, STEPS) == pytest.approx(factor)


def test_linear_warm_up_rises_from_its_factor_to_one() -> None:
    options = replace(STEPS, warmup="linear", warmup_iterations=10, warmup_factor=0.2)
    found = [lr_factor(i, options) for i in (0, 5, 10)]
    assert found == pytest.approx([0.2, 0.6, 1.0])  # 0.2 + (1 - 0.2) * i / 10


def test_cosine_decay() -> None:
    options = ScheduleOptions(iterations=100, warmup_iterations=0, final_factor=0.1)
    expected = [1.0, 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 0.55, 0.1]
    assert [lr_factor(i, options) for i in (0, 25, 50, 100)] == pytest.approx(expected)
    assert lr_factor(200, options) == pytest.approx(0.1)


def test_parameter_groups() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4))
    for parameter in backbone[0].parameters():
        parameter.requires_grad_(False)
    options = OptimizerOptions(lr=0.1, backbone_lr_factor=0.5, weight_decay=0.3)
    groups = make_optimizer(backbone, [head], options).param_groups
    found = [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups]
    # Weight decay applies to kernels, not to norms and biases; frozen parameters are excluded.
    assert found == [(0.05, 0.3, 1), (0.05, 0.0, 3), (0.1, 0.3, 1), (0.1, 0.0, 3)]


def test_published_groups_exclude_only_norms_from_decay() -> None:
    head = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4))
    options = OptimizerOptions(weight_decay=0.3, decay_biases=True)
    groups = make_optimizer(nn.Conv2d(3, 4, 3), [head], options).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 2), (0.3, 2), (0.0, 2)]


def test_sgd_uses_the_momentum() -> None:
    options = OptimizerOptions(name="sgd", momentum=0.7)
    optimizer = make_optimizer(nn.Linear(2, 2), [nn.Linear(2, 2)], options)
    assert type(optimizer).__name__ == "SGD"
    assert optimizer.param_groups[0]["momentum"] == 0.7


def test_revised_schedule_keeps_past_rates_and_ends_its_decay_at_the_new_end() -> None:
    planned = ScheduleOptions(iterations=100, warmup_iterations=0, final_factor=0.0)
    shorter = revise(planned, 40, 60)
    assert (shorter.iterations, shorter.revised_at, shorter.revised_from) == (60, (40,), (100,))
    again = revise(shorter, 50, 90)
    # 0.4 after 40 of 100; half of the other 0.6 after 10 of 20 more; the rest over 40 updates.
    progress = [decay_progress(i, again) for i in (0, 20, 40, 45, 50, 70, 90)]
    assert progress == pytest.approx([0.0, 0.2, 0.4, 0.55, 0.7, 0.85, 1.0])
    past = [0, 13, 39, 40]
    assert [lr_factor(i, again) for i in past] == [lr_factor(i, planned) for i in past]
    assert [lr_factor(i, again) for i in (49, 50)] == [lr_factor(i, shorter) for i in (49, 50)]
    assert lr_factor(90, again) == pytest.approx(0.0)


def test_second_revision_at_the_same_update_replaces_the_first() -> None:
    planned = ScheduleOptions(iterations=100)
    assert revise(revise(planned, 40, 60), 40, 70) == revise(planned, 40, 70)
