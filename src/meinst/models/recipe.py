"""Recipes: everything that determines a training's result except the data and the seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from meinst.codecs.options import CodecOptions
from meinst.data.transforms import AugmentOptions, ResizeOptions
from meinst.detector.losses import LossOptions
from meinst.detector.predictor import ModelOptions
from meinst.detector.select import SelectOptions
from meinst.images.intensity import InputOptions
from meinst.options import (
    FileError,
    check_keys,
    check_range,
    one_line,
    options_from_dict,
    options_to_dict,
)

_MOST_VALUES = 10_000

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class OptimizerOptions:
    """The optimizer.

    Attributes:
        name: AdamW, or SGD with momentum.
        lr: learning rate after the warm-up, for a whole batch.
        backbone_lr_factor: factor on ``lr`` for the backbone.
        weight_decay: weight decay of all weights except those of norms and biases.
        decay_biases: whether biases and box scales decay too, as in the published recipes.
        momentum: momentum of SGD.
        clip_norm: limit of the norm of all gradients together; 0 for no limit.
        frozen_stages: number of backbone stages that are frozen, from the first.
        ema_decay: decay of the moving average of the weights, which is validated and saved; it is
            reached gradually. 0 for no average.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: float = 4e-4
    backbone_lr_factor: float = 0.1
    weight_decay: float = 0.02
    decay_biases: bool = False
    momentum: float = 0.9
    clip_norm: float = 5.0
    frozen_stages: int = 2
    ema_decay: float = 0.998

    def __post_init__(self) -> None:
        """Reject negative rates and decays above 1."""
        check_range(self, 0, 1, "momentum", "ema_decay")
        names = ("lr", "backbone_lr_factor", "weight_decay", "clip_norm", "frozen_stages")
        check_range(self, 0, math.inf, *names)


@dataclass(frozen=True)
class ScheduleOptions:
    """Length of the training and learning-rate schedule.

    Attributes:
        iterations: number of weight updates.
        warmup_iterations: updates before the full learning rate.
        warmup: whether the factor rises linearly from ``warmup_factor`` to 1 or is constant.
        warmup_factor: factor on the learning rate at the start.
        decay: cosine decay to ``final_factor``, or steps.
        final_factor: factor on the learning rate at the end of the cosine.
        steps: updates after which the learning rate is multiplied by ``step_factor``.
        step_factor: factor of each step.
        validate_every: updates between validations. The last update is always validated.
        revised_at: updates at which a run with `--minutes` changed the number of its updates; the
            rest of the decay is stretched or shortened from there on.
        revised_from: the number of updates before each of these changes.
    """

    iterations: int = 10000
    warmup_iterations: int = 200
    warmup: Literal["linear", "constant"] = "linear"
    warmup_factor: float = 0.001
    decay: Literal["cosine", "step"] = "cosine"
    final_factor: float = 0.01
    steps: tuple[int, ...] = ()
    step_factor: float = 0.1
    validate_every: int = 1000
    revised_at: tuple[int, ...] = ()
    revised_from: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Reject values out of range, and changes of the length that contradict each other."""
        check_range(self, 1, math.inf, "iterations", "validate_every")
        check_range(self, 0, math.inf, "warmup_iterations")
        check_range(self, 0, 1, "warmup_factor", "final_factor", "step_factor")
        ends = (*self.revised_from, self.iterations)
        if len(self.revised_at) != len(self.revised_from) or any(
            not before < at < min(ends[i : i + 2])
            for i, (before, at) in enumerate(pairwise((-1, *self.revised_at)))
        ):
            raise ValueError(
                "revised_at must be increasing updates, each before the number of updates that "
                f"revised_from gives for it and before the next one, got {self.revised_at} and "
                f"{self.revised_from} for iterations = {self.iterations}; leave both out to train "
                "with one decay."
            )


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a training's result except the data and the seed.

    Attributes:
        model: the architecture of the network.
        codec: how masks are encoded.
        input: how pixel values become the network's input.
        resize: the size images are resized to before the network.
        augment: random changes of the training images.
        loss: weights of the losses and rules of the assignment.
        selection: what counts as a detection.
        optimizer: the optimizer.
        schedule: length of the training and learning-rate schedule.
        batch_size: images per update, over all devices.
        skip_empty: whether to leave out training images without instances.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    codec: CodecOptions = field(default_factory=CodecOptions)
    input: InputOptions = field(default_factory=InputOptions)
    resize: ResizeOptions = field(default_factory=ResizeOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    selection: SelectOptions = field(default_factory=SelectOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    batch_size: int = 4
    skip_empty: bool = False

    def __post_init__(self) -> None:
        """Reject an empty batch."""
        check_range(self, 1, math.inf, "batch_size")


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a shipped recipe, or a YAML file.

    A file may name another recipe as its ``base`` and then contains only the differences, at any
    depth. What neither contains takes the defaults of the dataclasses.

    Args:
        name_or_path: a name from :func:`list_recipes`, or a path.

    Raises:
        FileNotFoundError: if there is no such recipe, or its base does not exist.
        ValueError: if a file has an unknown or repeated key or an invalid value, or is its own
            base.
    """
    values, path = _read_values(name_or_path, ())
    return options_from_dict(Recipe, _merge(options_to_dict(Recipe()), values), str(path))


def list_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def _read_values(
    name_or_path: str | Path, parents: tuple[Path, ...]
) -> tuple[dict[str, Any], Path]:
    """The values of a recipe file merged over those of its bases, and the file's path."""
    path = _find(name_or_path, f"{parents[-1]}: base" if parents else "recipe")
    values = _read_yaml(path)
    base = values.pop("base", None)
    check_keys(Recipe, values, str(path))
    if base is None:
        return values, path
    if path.resolve() in parents:
        raise FileError(f"{path}: base leads back to this file; name another recipe.")
    # A path is relative to the folder of the file.
    sibling = path.parent / str(base)
    below, _ = _read_values(sibling if _is_file(sibling) else str(base), (*parents, path.resolve()))
    return _merge(below, values), path


def _find(name_or_path: str | Path, noun: str) -> Path:
    """The file of a recipe; ``noun`` begins the message of the error if there is none."""
    for path in (Path(name_or_path), RECIPES / f"{name_or_path}.yaml"):
        if _is_file(path):
            return path
    message = f"{noun} {str(name_or_path)!r} is neither a file nor one of "
    raise FileNotFoundError(one_line(f"{message}{', '.join(list_recipes())}."))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # for example, a name that is too long
        return False


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        FileError: if it is not valid YAML, holds no mapping, repeats a key, or would grow beyond
            any recipe by its aliases.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe loader that rejects repeated keys instead of keeping the last value."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            keys = [self.construct_object(key, deep) for key in own]
            for key in keys:
                if keys.count(key) > 1:
                    raise FileError(f"{path}: the key {key} is given twice; keep one of them.")
            return super().construct_mapping(node, deep)

    try:
        # The loader is a safe one: nothing in the file is executed.
        values = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
    except FileError:
        raise
    # Besides its own errors: dates and numbers that do not exist, keys that are lists, brackets.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise FileError(
            f"{path}: a recipe must be a mapping of options, not a {type(values).__name__}"
        )
    if _count_values(values, {}) > _MOST_VALUES:
        raise FileError(
            f"{path}: a recipe has at most {_MOST_VALUES} values; repeat fewer aliases."
        )
    return values


def _count_values(value: Any, known: dict[int, float]) -> float:
    """Number of values at any depth, those of an alias as often as it is used; infinite in a loop.

    Each object is counted once, so that a file whose aliases stand for billions of values takes no
    time.
    """
    if not isinstance(value, (dict, list, tuple, set)):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is known: it contains itself
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count_values(each, known) for each in inner)
    return known[id(value)]


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The first mapping, overridden by the second at any depth."""
    merged = dict(below)
    for key, value in above.items():
        under = below.get(key)
        if isinstance(under, dict) and isinstance(value, dict | None):
            merged[key] = _merge(under, value or {})  # a section may hold only comments
        else:
            merged[key] = value
    return merged
