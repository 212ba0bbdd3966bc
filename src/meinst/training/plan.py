"""The plan of ``meinst train --minutes``: from data, speed and time to a recipe, with reasons.

Pure functions of numbers. :mod:`meinst.training.timing` measures the machine, and
:mod:`meinst.training.time_limit` corrects the number of updates while the run lasts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from meinst.data.coco import CocoData
from meinst.data.transforms import ResizeOptions
from meinst.models.recipe import Recipe, ScheduleOptions
from meinst.options import first_few

AIM = 0.97
"""Share of the time that is planned; the rest is for what cannot be measured before."""

FINISH_SECONDS = 8.0
"""Time after the last validation for model files, curves and overlays."""

FIXED_SHARE = 0.2
"""Share of an update of the measured size that does not depend on its pixels."""

MIN_UPDATES = 50
ENOUGH_UPDATES = 1200  # above it, larger crops are better than more updates
SMALL_STRIDES = 4.0  # finest strides that nine of ten objects should have in the input
MAX_ENLARGED = 2.0  # how much images are enlarged at most
MAX_SIDE = 1024
VALIDATION_SHARE = 0.12
MAX_VALIDATIONS = 6


class TooShortError(ValueError):
    """The time does not suffice for :data:`MIN_UPDATES`, a validation and the report.

    Args:
        needed: seconds that would.
        validation: seconds of one validation.
        images: number of validation images.
    """

    def __init__(self, needed: float, validation: float, images: int) -> None:
        super().__init__(f"{needed:.0f} s are needed")
        self.needed = needed
        self.validation = validation
        self.images = images


@dataclass(frozen=True)
class DataFigures:
    """What the plan depends on in the data.

    Sizes of objects are square roots of the areas of their boxes, relative to the longer side of
    their image.

    Attributes:
        images: number of training images.
        validation_images: number of validation images.
        class_names: names of the classes.
        image_side: median of the images' longer sides, in pixels.
        small: size that a tenth of the objects do not reach.
        median: median size.
        objects: median number of objects of the images that have any.
        most_objects: largest number of objects of an image.
    """

    images: int
    validation_images: int
    class_names: tuple[str, ...]
    image_side: float
    small: float
    median: float
    objects: float
    most_objects: int


@dataclass(frozen=True)
class Timing:
    """Speed of a machine, measured with a recipe.

    Attributes:
        recipe: the recipe.
        step: seconds per update.
        validation: seconds per validation image.
        memory: bytes of memory at the peak.
        memory_before: bytes before the training began.
        memory_limit: bytes that the device has.
    """

    recipe: Recipe
    step: float
    validation: float
    memory: int = 0
    memory_before: int = 0
    memory_limit: int = 0

    def step_seconds(self, recipe: Recipe) -> float:
        """Expected seconds per update of a recipe; but for a part, it grows with the pixels."""
        pixels = _pixels(recipe) / _pixels(self.recipe)
        return self.step * (FIXED_SHARE + (1 - FIXED_SHARE) * pixels)

    def validation_seconds(self, recipe: Recipe) -> float:
        """Expected seconds per validation image: proportional to its area."""
        return self.validation * (recipe.resize.longer_side / self.recipe.resize.longer_side) ** 2

    def memory_bytes(self, recipe: Recipe) -> float:
        """Expected peak of memory: what training takes is proportional to the pixels."""
        taken = (self.memory - self.memory_before) * _pixels(recipe) / _pixels(self.recipe)
        return self.memory_before + taken


@dataclass(frozen=True)
class Choice:
    """One decision of a plan: what was chosen, and why."""

    name: str
    value: str
    reason: str

    def __str__(self) -> str:
        return f"  {self.name:<11}{self.value}: {self.reason}"


@dataclass(frozen=True)
class Plan:
    """A recipe for a data set, a machine and a time.

    Attributes:
        recipe: the recipe.
        choices: its decisions.
        seconds_per_update: expected.
        validation_seconds: expected time of one validation.
        finish_seconds: expected time after the last validation.
    """

    recipe: Recipe
    choices: tuple[Choice, ...]
    seconds_per_update: float
    validation_seconds: float
    finish_seconds: float


def figures_of(train_data: CocoData, val_data: CocoData) -> DataFigures:
    """The figures of a data set, which must have an object to learn from."""
    longer = np.array([max(record.width, record.height) for record in train_data.images], float)
    boxes = [instances.boxes[~instances.crowd] for instances in train_data.instances]
    counts = np.array([len(each) for each in boxes])
    sides = np.concatenate(boxes)
    sides = sides[:, 2:] - sides[:, :2]
    sizes = np.sqrt(sides.prod(axis=1).clip(0)) / np.repeat(longer, counts)
    return DataFigures(
        images=len(longer),
        validation_images=len(val_data),
        class_names=tuple(train_data.class_names),
        image_side=float(np.median(longer)),
        small=float(np.quantile(sizes, 0.1)),
        median=float(np.median(sizes)),
        objects=float(np.median(counts[counts > 0])),
        most_objects=int(counts.max()),
    )


def choose_start(figures: DataFigures) -> tuple[str, str]:
    """The shipped model to start from, and the reason."""
    text = (
        f"{figures.objects:g} objects per image, whose size is {figures.median:.0%} of its longer "
        "side (medians)"
    )
    if figures.objects >= 15 and figures.median < 0.1:
        return "nuclei", f"{text}; this model knows crowds of small objects"
    return "photos", f"{text}; this model knows photographs"


def adapt_to_data(figures: DataFigures, base: Recipe, from_model: bool) -> Recipe:
    """A recipe with input size, rates and limits for a data set; crops and batch of the base.

    Args:
        figures: of the data.
        base: the recipe of the model that the run starts from, or the default one.
        from_model: whether the run starts from a trained detector.
    """
    side = _input_side(figures, base)
    crop = min(base.augment.crop_size or base.resize.longer_side, side)
    rates = base.optimizer
    if from_model:
        rates = replace(rates, backbone_lr_factor=max(rates.backbone_lr_factor, 0.2))
    limit = base.selection.max_detections
    enough = next((n for n in (100, 300, 500) if n >= 1.25 * figures.most_objects), 1000)
    return replace(
        base,
        resize=ResizeOptions(side, side),
        augment=replace(base.augment, crop_size=crop),
        optimizer=rates,
        selection=replace(base.selection, max_detections=max(limit, enough)),
    )


def plan_training(
    figures: DataFigures,
    timing: Timing,
    seconds: float,
    *,
    given: bool = False,
    recrop: bool = True,
    patience: int | None = None,
    report: bool = True,
) -> Plan:
    """Choose crops, batch and schedule for a time.

    Args:
        figures: of the data.
        timing: measured with the recipe to adapt.
        seconds: from now on to the end of the run.
        given: whether the recipe is the user's, of which all but the schedule is kept.
        recrop: whether crops and batch may be changed.
        patience: validations without improvement after which the run stops, if any.
        report: whether a report follows, which predicts the validation images again.

    Raises:
        TooShortError: if the time does not suffice for :data:`MIN_UPDATES` and one validation.
    """
    recipe = timing.recipe
    candidates = _crops_and_batches(recipe) if recrop and not given else [recipe]
    validation = timing.validation_seconds(recipe) * figures.validation_images
    finish = FINISH_SECONDS + (validation if report else 0.0)
    most = MAX_VALIDATIONS * (1 if patience is None else 2)
    count = min(most, max(1, int(VALIDATION_SHARE * seconds / max(validation, 1e-6))))
    left = seconds - finish - count * validation
    recipe = _choose_candidate(candidates, timing, left)
    step = timing.step_seconds(recipe)
    updates = int(left / step)
    if updates < MIN_UPDATES:
        needed = MIN_UPDATES * step + validation + finish
        raise TooShortError(needed, validation, figures.validation_images)
    schedule = ScheduleOptions(
        iterations=updates,
        warmup_iterations=min(200, max(20, updates // 10)),
        validate_every=max(1, math.ceil(updates / count)),
    )
    planned = replace(recipe, schedule=schedule)
    choices = _choices(figures, planned, timing, given, validation)
    return Plan(planned, choices, step, validation, finish)


def _input_side(figures: DataFigures, base: Recipe) -> int:
    """Longer side of the network's input, a multiple of 32."""
    own = min(base.resize.longer_side, 512)
    needed = SMALL_STRIDES * base.model.strides[0] / max(figures.small, 1e-3)
    limit = min(MAX_SIDE, MAX_ENLARGED * figures.image_side)
    return max(32, round(max(min(needed, limit), min(own, limit)) / 32) * 32)


def _pixels(recipe: Recipe) -> float:
    """Pixels of a batch."""
    side = min(recipe.augment.crop_size or recipe.resize.longer_side, recipe.resize.longer_side)
    return float(recipe.batch_size * side**2)


def _crops_and_batches(recipe: Recipe) -> list[Recipe]:
    """The recipe with other crops and batches, the costliest first."""
    crop, batch = recipe.augment.crop_size or recipe.resize.longer_side, recipe.batch_size
    half = max(1, batch // 2)
    candidates = []
    for factor, size in ((1.5, batch), (1.25, batch), (1, batch), (1, half), (0.75, half)):
        side = min(round(crop * factor / 32) * 32, recipe.resize.longer_side)
        lr = recipe.optimizer.lr * math.sqrt(size / batch)
        candidate = replace(
            recipe,
            augment=replace(recipe.augment, crop_size=max(side, 32)),
            optimizer=replace(recipe.optimizer, lr=round(lr, 6)),
            batch_size=size,
        )
        if candidate not in candidates:
            candidates.append(candidate)
    return candidates


def _choose_candidate(candidates: Sequence[Recipe], timing: Timing, seconds: float) -> Recipe:
    """The first that leaves time for enough updates and fits into the memory, else the last."""
    for candidate in candidates:
        fits = timing.memory_bytes(candidate) <= 0.8 * timing.memory_limit
        if timing.step_seconds(candidate) * ENOUGH_UPDATES <= seconds and (
            fits or not timing.memory_limit
        ):
            return candidate
    return candidates[-1]


def _choices(
    figures: DataFigures, recipe: Recipe, timing: Timing, is_given: bool, validation: float
) -> tuple[Choice, ...]:
    """The decisions, with the reason of each."""
    given = "given by the recipe; " if is_given else ""
    rates, most = recipe.optimizer, recipe.selection.max_detections
    detections = f"{given}the fullest training image has {figures.most_objects} objects"
    return (
        *_input_choices(figures, recipe, timing, given),
        *_schedule_choices(figures, recipe, validation),
        Choice(
            "rates",
            f"{rates.lr:g}, backbone {rates.lr * rates.backbone_lr_factor:g}",
            f"{given}first {rates.frozen_stages} stages frozen (docs/experiments/fine-tuning.md)",
        ),
        Choice("detections", f"at most {most} per image", detections),
    )


def _input_choices(
    figures: DataFigures, recipe: Recipe, timing: Timing, given: str
) -> tuple[Choice, ...]:
    """Input size, crops and batch."""
    side, stride = recipe.resize.longer_side, recipe.model.strides[0]
    crop, small = recipe.augment.crop_size or side, figures.small * side
    limit = ""
    if side >= 0.98 * MAX_ENLARGED * figures.image_side:
        limit = ", and images are not enlarged further"
    elif side >= MAX_SIDE:
        limit = ", and this is the largest input"
    sizes = (
        f"nine of ten objects are larger than {small:.0f} pixels there, {small / stride:.1f} times "
        f"the finest stride ({stride}){limit}"
    )
    crops = f"the largest that leave time for {ENOUGH_UPDATES} updates"
    if recipe.schedule.iterations < ENOUGH_UPDATES:
        crops = f"small, since even so there is no time for {ENOUGH_UPDATES} updates"
    elif crop == side:
        crops = "whole images"
    step, memory = timing.step_seconds(recipe), timing.memory_bytes(recipe) / 2**30
    speed = f"{step:.2g} s per update on this machine, {memory:.1f} GiB of memory"
    return (
        Choice("input", f"longer side {side}", given + sizes),
        Choice("crops", f"{crop} x {crop}", given + crops),
        Choice("batch", f"{recipe.batch_size} images", given + speed),
    )


def _schedule_choices(
    figures: DataFigures, recipe: Recipe, validation: float
) -> tuple[Choice, ...]:
    """Updates, warm-up and validations."""
    schedule = recipe.schedule
    passes = schedule.iterations * recipe.batch_size / figures.images
    count = math.ceil(schedule.iterations / schedule.validate_every)
    times = "once" if count == 1 else f"{count} times"
    return (
        Choice(
            "updates",
            f"{schedule.iterations}",
            f"what the time allows; {passes:.0f} passes over {figures.images} images",
        ),
        Choice("warm-up", f"{schedule.warmup_iterations} updates", "a tenth, 20 to 200"),
        Choice(
            "validation",
            f"every {schedule.validate_every} updates",
            f"{times}; {figures.validation_images} images take {validation:.0f} s",
        ),
    )


def describe_classes(names: Sequence[str], known: Sequence[str]) -> str:
    """Which classes a starting model knows by name, and which are new to it."""
    new = [name for name in names if name not in known]
    old = [name for name in names if name in known]
    parts = [f"known: {first_few(old, 4)}"] * bool(old) + [f"new: {first_few(new, 4)}"] * bool(new)
    return ", ".join(parts)
