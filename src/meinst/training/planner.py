"""``meinst train --minutes``: measure, plan, print and write the plan, and keep to it."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, replace

import yaml

from meinst.data.coco import CocoData
from meinst.files import write_atomically
from meinst.models.checkpoint import read_info
from meinst.models.recipe import Recipe
from meinst.options import FileError, options_to_dict
from meinst.training.initialize import base_recipe
from meinst.training.options import TrainOptions
from meinst.training.plan import (
    AIM,
    MIN_UPDATES,
    Choice,
    DataFigures,
    Plan,
    TooShortError,
    adapt_to_data,
    choose_start,
    describe_classes,
    figures_of,
    plan_training,
)
from meinst.training.time_limit import TimeLimit
from meinst.training.timing import measure

_MOST_MEASURING = 20.0  # seconds
_MEASURING_SHARE = 0.04
_MORE_UPDATES = 4  # times the planned updates, if the machine turns out to be faster

log = logging.getLogger("meinst")


@dataclass(frozen=True)
class PlannedRun:
    """A run with a time limit.

    Attributes:
        options: the run's options, with the chosen start.
        plan: the plan.
        figures: what it was made from.
        started: when the run began, in seconds of :func:`time.monotonic`.
        max_updates: largest number of updates that it may be revised to.
    """

    options: TrainOptions
    plan: Plan
    figures: DataFigures
    started: float
    max_updates: int

    def __str__(self) -> str:
        used = (time.monotonic() - self.started) / 60
        first = f"plan for {self.options.minutes:g} minutes, of which {used:.1f} have passed:"
        return "\n".join([first, *map(str, self.plan.choices)])

    def time_limit(self) -> TimeLimit:
        """The callback that keeps the run to its time."""
        return TimeLimit(
            self.plan, self.started, _seconds(self.options), self.max_updates, self.write
        )

    def write(self, recipe: Recipe) -> None:
        """Write ``recipe.yaml`` and ``plan.json``, at the start and after each revision."""
        start = f" --init {self.options.init}" if self.options.init else ""
        content = (
            f"# Planned by `meinst train --minutes {self.options.minutes:g}{start}`."
            f"{' Give the same --init with it.' if start else ''}\n"
            f"{yaml.safe_dump(options_to_dict(recipe), sort_keys=False)}"
        )
        write_atomically(self.options.output / "recipe.yaml", content.encode())
        schedule = recipe.schedule
        values = {
            "minutes": self.options.minutes,
            "init": self.options.init,
            "text": [str(choice).strip() for choice in self.plan.choices],
            "choices": [asdict(choice) for choice in self.plan.choices],
            "data": asdict(self.figures),
            "seconds_per_update": self.plan.seconds_per_update,
            "seconds_per_validation": self.plan.validation_seconds,
            "updates": schedule.iterations,
            "revisions": list(zip(schedule.revised_at, schedule.revised_from, strict=True)),
        }
        write_atomically(self.options.output / "plan.json", json.dumps(values, indent=2).encode())


def plan_run(
    options: TrainOptions,
    recipe: Recipe,
    train_data: CocoData,
    val_data: CocoData,
    started: float,
) -> PlannedRun:
    """Measure this machine and plan a run of ``options.minutes``.

    Args:
        options: data, output and start; a start and a recipe that they give are kept.
        recipe: the recipe given, or else ignored.
        train_data: with at least one object.
        val_data: the validation images.
        started: when the run began, in seconds of :func:`time.monotonic`.

    Raises:
        ValueError: if the time does not suffice for some updates and a validation.
    """
    figures = figures_of(train_data, val_data)
    given = options.recipe is not None
    options, start = _choose_start(options, figures)
    if not given:
        from_model = options.init is not None
        recipe = adapt_to_data(figures, base_recipe(options.init), from_model)
    measuring = min(_MOST_MEASURING, _MEASURING_SHARE * _seconds(options))

    timing = measure(options, recipe, train_data, val_data, measuring)
    left = _seconds(options) - (time.monotonic() - started)
    try:
        made = plan_training(
            figures,
            timing,
            left,
            given=given,
            recrop=options.images_per_device is None,
            patience=options.patience,
            report=options.report,
        )
    except TooShortError as error:
        raise FileError(_too_short(options, error, started)) from error
    made = replace(made, choices=(start, *made.choices))
    updates = made.recipe.schedule.iterations * _MORE_UPDATES
    return PlannedRun(options, made, figures, started, updates)


def _seconds(options: TrainOptions) -> float:
    """The planned length of a run."""
    assert options.minutes is not None
    return 60 * options.minutes * AIM


def _choose_start(options: TrainOptions, figures: DataFigures) -> tuple[TrainOptions, Choice]:
    """The options with a start, and the reason."""
    reason = "given by the command"
    scratch = options.random_backbone or options.backbone_weights is not None
    # A recipe has a network of its own, which a shipped model would not fit.
    if options.init is None and not scratch and options.recipe is None:
        init, reason = choose_start(figures)
        options = replace(options, init=init)
    elif options.init is None and not scratch:
        reason = "no --init was given with the recipe"
    if options.init is None:
        return options, Choice("start", "backbone only", reason)
    classes = describe_classes(figures.class_names, read_info(options.init).class_names)
    return options, Choice("start", options.init, f"{reason}; classes {classes}")


def _too_short(options: TrainOptions, error: TooShortError, started: float) -> str:
    """The message if the time is too short, with the time that would do."""
    passed = time.monotonic() - started
    minutes = math.ceil(1.1 * (passed + error.needed) / AIM / 6) / 10  # 1.1: speed varies
    return (
        f"--minutes {options.minutes:g} is too short: {passed:.0f} s have passed for reading and "
        f"measuring, {MIN_UPDATES} updates, one validation and the report take about "
        f"{error.needed:.0f} s ({error.validation:.0f} s of them to validate "
        f"{error.images} images once); give at least --minutes {minutes:g}, or fewer validation "
        "images."
    )
