"""Every option of a training, declared once: recipe files and the command line are made of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from meinst.data.transforms import AugmentOptions, InputOptions
from meinst.detector.losses import LossOptions
from meinst.detector.meinst import ModelOptions
from meinst.detector.select import SelectOptions
from meinst.options import check_range

RECIPES = Path(__file__).parent.parent / "zoo" / "recipes"


CodecKind = Literal["pca", "dct", "grid", "autoencoder"]


@dataclass(frozen=True)
class CodecOptions:
    """The mask encoding that is fitted on the training annotations.

    Attributes:
        kind: principal components (the paper's), low frequencies, a smaller mask, or a small
            network.
        n_components: length of a mask's code, ``K``; a square number for a grid.
        mask_size: side of the grid that masks are cropped to, ``S``.
        sigmoid: whether logits are encoded and decoded (pca, dct).
        whiten: whether codes are divided by their standard deviation (pca, dct).
        per_class: whether each class has a basis of its own (pca).
        shrinkage: weight of the average mask in a class's basis, in masks (pca, per class).
        seed: start of an autoencoder's training.
    """

    kind: CodecKind = "pca"
    n_components: int = 60
    mask_size: int = 28
    sigmoid: bool = True
    whiten: bool = True
    per_class: bool = False
    shrinkage: float = 3000.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what only principal components can do; codecs check their numbers themselves."""
        if self.per_class and self.kind != "pca":
            raise ValueError(
                f"a basis for each class (per_class) is for kind pca, found kind {self.kind}."
            )


@dataclass(frozen=True)
class OptimizerOptions:
    """How the weights are changed.

    Attributes:
        name: AdamW, or SGD with momentum.
        lr: learning rate after the warm-up, for a whole batch.
        backbone_lr_factor: multiplies ``lr`` for the backbone; on photographs a high rate kept
            classes from being learnt (docs/accuracy.md).
        weight_decay: of all weights but those of norms and biases.
        decay_biases: whether biases and the box scales decay too, as in the published recipes.
        momentum: of SGD.
        clip_norm: largest norm of all gradients together; 0 for no limit.
        frozen_stages: first stages of the backbone that are not trained.
        ema_decay: decay of the moving average of the weights, which is what is kept and
            validated, reached gradually; 0 for none.
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
        """Refuse numbers that make no step, or one uphill."""
        check_range(self, 0, 1, "momentum", "ema_decay")
        names = ("lr", "backbone_lr_factor", "weight_decay", "clip_norm", "frozen_stages")
        check_range(self, 0, math.inf, *names)


@dataclass(frozen=True)
class ScheduleOptions:
    """How long training goes on, and the learning rate's way.

    Attributes:
        iterations: weight updates.
        warmup_iterations: updates before the full learning rate.
        warmup: the rate rises linearly from ``warmup_factor`` to 1, or stays at it.
        warmup_factor: multiplies the rate at first.
        decay: cosine to ``final_factor``, or steps.
        final_factor: multiplies the rate at the end of the cosine.
        steps: updates after which the rate is multiplied by ``step_factor``.
        step_factor: see ``steps``.
        validate_every: updates between validations.
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

    def __post_init__(self) -> None:
        """Refuse numbers that make no run, and one that would not end with a validation."""
        check_range(self, 1, math.inf, "iterations", "validate_every")
        check_range(self, 0, math.inf, "warmup_iterations")
        check_range(self, 0, 1, "warmup_factor", "final_factor", "step_factor")
        if self.iterations > self.validate_every and self.iterations % self.validate_every:
            raise ValueError(
                f"iterations = {self.iterations} is no multiple of validate_every = "
                f"{self.validate_every}: the last weights would not be validated."
            )


@dataclass(frozen=True)
class Recipe:
    """All that decides what a training yields, but for the data and the seed.

    Attributes:
        model: the network's shape.
        codec: the mask encoding.
        image_size: to what size images are brought.
        augment: random changes of the training images.
        loss: weights of the losses, rules of assignment.
        selection: what counts as a detection.
        optimizer: how the weights are changed.
        schedule: for how long, and the learning rate's way.
        batch_size: images of one update, over all devices.
        skip_empty: whether training images without instances are left out.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    codec: CodecOptions = field(default_factory=CodecOptions)
    image_size: InputOptions = field(default_factory=InputOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    selection: SelectOptions = field(default_factory=SelectOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    batch_size: int = 4
    skip_empty: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        check_range(self, 1, math.inf, "batch_size")


T = TypeVar("T")


def parse_options(kind: type[T], values: dict[str, Any], where: str) -> T:
    """Make a nested dataclass of plain values, checking every name and type.

    Args:
        kind: a dataclass.
        values: what a recipe file or a model file holds; missing keys take their default.
        where: the file's name, for the error.

    Raises:
        ValueError: if a key is unknown or a value does not fit.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "options")
    try:
        parsed = parser.parse_object({"options": values})
        options: T = parser.instantiate(parsed).options
    except (ArgumentError, TypeError, ValueError) as error:
        reason = " ".join(str(error).replace("options.", "").split())
        raise ValueError(f"{where}: {reason}") from error
    return options


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a recipe that the package ships, or a YAML file of your own.

    A file may name another recipe under ``base`` and then holds only what differs from it, at any
    depth; without, what it leaves out has the defaults of the dataclasses.

    Args:
        name_or_path: a name of :func:`list_recipes`, or a path.

    Raises:
        FileNotFoundError: if it is neither, or its base is not.
        ValueError: if a file holds an unknown key or a value that does not fit, or is its own base.
    """
    values, path = _read_values(name_or_path, ())
    return parse_options(Recipe, _merge(plain_values(Recipe()), values), str(path))


def _read_values(name_or_path: str | Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], Path]:
    """What a recipe file and the recipes it is based on say, and the file's path."""
    import yaml

    path = Path(name_or_path)
    if not path.is_file():
        path = RECIPES / f"{name_or_path}.yaml"
        if not path.is_file():
            raise FileNotFoundError(
                f"recipe {str(name_or_path)!r} is neither a file nor one of "
                f"{', '.join(list_recipes())}."
            )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a mapping of options, found {type(values).__name__}")
    base = values.pop("base", None)
    if base is None:
        return values, path
    if path.resolve() in above:
        raise ValueError(f"{path}: base leads back to this file; name another recipe.")
    # A path is meant from the file's own folder.
    near = path.parent / str(base)
    below, _ = _read_values(near if near.is_file() else str(base), (*above, path.resolve()))
    return _merge(below, values), path


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """The mapping below with what the one above says otherwise, mappings within likewise."""
    merged = dict(below)
    for key, value in above.items():
        under = below.get(key)
        if isinstance(under, dict) and isinstance(value, dict | None):
            merged[key] = _merge(under, value or {})  # a section may have comments alone
        else:
            merged[key] = value
    return merged


def list_recipes() -> list[str]:
    """Names of the recipes that the package ships."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def plain_values(options: Any) -> dict[str, Any]:
    """A dataclass as nested dicts and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value

    values: dict[str, Any] = plain(asdict(options))
    return values


@dataclass(frozen=True)
class TrainOptions:
    """What a training run works on, and where.

    Attributes:
        train_images: folder that the file names of the training images start from.
        train_annotations: their COCO-format annotations.
        val_images: folder that the file names of the validation images start from.
        val_annotations: their COCO-format annotations.
        output: folder of checkpoints, logs, curves and pictures.
        recipe: default, photos (few large objects) or nuclei (many small ones), each of hours on
            two CPU cores; a published one (MEInst_R_50_1x, MEInst_R_50_1x_none, MEInst_R_50_3x,
            MEInst_R_50_3x_512); or a YAML file, which holds what is different from the recipe it
            names as its ``base``, the number of updates for example; by default that of
            ``init``, or ``default``.
        init: a shipped or trained model to start from; by default the backbone starts from
            ImageNet weights and the rest from scratch.
        backbone_weights: a file that meinst convert made of a backbone, to start the backbone
            from; by default it starts from ImageNet weights of its package or of timm's hub.
        random_backbone: start the backbone from random weights too.
        codec: a fitted codec (.npz); by default that of ``init``, or one fitted on the
            training annotations.
        resume: go on from the output folder's last checkpoint, with the run's own codec, weights
            and seed (``init``, ``backbone_weights``, ``random_backbone``, ``codec`` and ``seed``
            are not looked at then), and its own recipe unless ``recipe`` is given.
        seed: of weights, order and augmentation.
        devices: processes, one for each device.
        num_nodes: machines.
        accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Lightning's, for example ``32-true`` or ``bf16-mixed``; by default mixed on
            CPUs and GPUs with bfloat16.
        images_per_device: images that a device takes at once; fewer need less memory, and
            updates are accumulated to the recipe's batch size, each part's losses with
            normalisers of its own. By default the batch size divided by the devices.
        workers: processes that prepare images, for each device.
        checkpoint_every: updates between two savings of the last checkpoint.
    """

    train_images: Path
    train_annotations: Path
    val_images: Path
    val_annotations: Path
    output: Path
    recipe: str | None = None
    init: str | None = None
    backbone_weights: Path | None = None
    random_backbone: bool = False
    codec: Path | None = None
    resume: bool = False
    seed: int = 0
    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    precision: str | None = None
    images_per_device: int | None = None
    workers: int = 1
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        """Refuse numbers that make no run."""
        names = ("devices", "num_nodes", "images_per_device", "checkpoint_every")
        check_range(self, 1, math.inf, *names)
        check_range(self, 0, math.inf, "workers")
        check_range(self, 0, 2**32 - 1, "seed")  # as NumPy's generator takes them
