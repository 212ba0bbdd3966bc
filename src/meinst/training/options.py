"""The options of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from meinst.models.recipe import Recipe
from meinst.options import check_range

_FILES = ("train_images", "train_annotations", "val_images", "val_annotations")


@dataclass(frozen=True)
class TrainOptions:
    """Data, output and start of a training run.

    Attributes:
        data: a data set: a folder, a YOLO description (data.yaml) or a COCO annotation file. Its
            layout is detected; see `meinst data`. Without a validation part, a fifth of the images
            becomes one, which split.json in the output folder lists.
        train_images: folder of the training images; by default, that of ``data``.
        train_annotations: COCO annotations (JSON) of the training images; by default,
            those of ``data``.
        val_images: folder of the validation images; by default, that of ``data``.
        val_annotations: COCO annotations (JSON) of the validation images; by default,
            those of ``data``.
        output: folder for the model, checkpoints, logs and plots.
        recipe: how to train; by default the recipe of ``init``, or ``default``. With ``resume``,
            by default the run's own.
        init: a shipped model's name or a model file to start from. By default the backbone starts
            from ImageNet weights and the rest from scratch.
        backbone_weights: backbone weights converted by `meinst convert`. By default ImageNet
            weights are taken from an installed package or from timm's hub.
        random_backbone: start the backbone from random weights.
        minutes: time for the whole run, in minutes. Recipe and start are planned from the data and
            the speed of this machine, and the plan is printed with its reasons; of a given recipe
            only the schedule is planned. A resumed run follows the plan in its output folder. By
            default nothing is planned.
        plan_only: with ``minutes``, write the planned recipe.yaml and plan.json to the output
            folder and train nothing; to look at the plan, or to edit it.
        patience: stop after this number of validations in a row without a higher mask AP; by
            default never.
        codec: a fitted codec (.npz). By default the codec of ``init``, or one fitted on the
            training annotations.
        crowd_as_instances: train and validate on crowd regions (iscrowd 1) as ordinary instances;
            some tools mark every mask that was drawn with a brush as a crowd.
        boxes_alone: train on objects that have a box and no mask, too: they teach class and box. As
            masks, they are not measured.
        allow_outside: allow file names that lead out of the image folders.
        resume: continue from the last checkpoint in the output folder (from the best one if the
            last is damaged), with its codec, weights and seed; ``init``, ``backbone_weights``,
            ``random_backbone``, ``codec`` and ``seed`` are ignored.
        seed: seed of the initial weights, the order of images and their augmentation.
        devices: number of processes, one per device.
        num_nodes: number of machines.
        accelerator: auto, cpu or gpu.
        precision: precision as named by Lightning, for example 32-true or bf16-mixed. By default
            mixed where the CPU or GPU supports bfloat16.
        images_per_device: images that a device processes at once. Fewer need less memory; updates
            accumulate up to the recipe's batch size, with each part of a batch normalised by
            itself. By default the batch size divided by the number of devices.
        workers: processes per device that prepare images.
        checkpoint_every: updates between saves of the last checkpoint.
        report: write report.html at the end, which shows why average precision is lost. It takes
            as long as a validation.
    """

    data: Path | None = None
    train_images: Path | None = None
    train_annotations: Path | None = None
    val_images: Path | None = None
    val_annotations: Path | None = None
    output: Path = Path("runs/train")
    recipe: Recipe | None = None
    init: str | None = None
    backbone_weights: Path | None = None
    random_backbone: bool = False
    minutes: float | None = None
    plan_only: bool = False
    patience: int | None = None
    codec: Path | None = None
    crowd_as_instances: bool = False
    boxes_alone: bool = False
    allow_outside: bool = False
    resume: bool = False
    seed: int = 0
    devices: int = 1
    num_nodes: int = 1
    accelerator: str = "auto"
    precision: str | None = None
    images_per_device: int | None = None
    workers: int = 1
    checkpoint_every: int = 200
    report: bool = True

    def __post_init__(self) -> None:
        """Reject values that are out of range, and data given twice or not at all."""
        files = [getattr(self, name) for name in _FILES]
        if (self.data is None) == (None in files) or (self.data and any(files)):
            flags = ", ".join("--" + name.replace("_", "-") for name in _FILES)
            raise ValueError(f"give the data once: either a data set (DATA), or all of {flags}.")
        names = ("devices", "num_nodes", "images_per_device", "checkpoint_every", "patience")
        check_range(self, 1, math.inf, *names)
        check_range(self, 0, math.inf, "workers", "minutes")
        if self.minutes is not None and self.world_size > 1:
            raise ValueError(
                f"minutes plans a run of one process, got {self.world_size}; leave out --devices "
                "and --num-nodes, or set recipe.schedule.iterations instead."
            )
        if self.plan_only and (self.minutes is None or self.resume):
            remedy = "leave out --resume" if self.resume else "give --minutes"
            raise ValueError(f"plan_only needs the time of a new run to plan; {remedy}.")
        check_range(self, 0, 2**32 - 1, "seed")  # the range of NumPy's seeds

    @property
    def last_checkpoint(self) -> Path:
        """The checkpoint from which ``resume`` continues."""
        return self.output / "checkpoints" / "last.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint with the highest validation score."""
        return self.output / "checkpoints" / "best.ckpt"

    @property
    def world_size(self) -> int:
        """Number of processes of the run."""
        return self.devices * self.num_nodes
