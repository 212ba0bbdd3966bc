"""The model in Lightning's hands: one training step, one validation, one optimiser."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from meinst.data.batch import DrawSampler, TrainingDraws, collate
from meinst.data.coco import CocoData
from meinst.data.images import ImageError
from meinst.detector.losses import compute_losses
from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.engine.config import Recipe
from meinst.engine.evaluate import (
    ClassMatch,
    coco_metrics,
    find_results,
    ground_truth,
    match_classes,
)
from meinst.engine.schedule import lr_factor, make_optimizer
from meinst.types import HeadOutputs, Target

Batch = tuple[list[Tensor], list[Target]]
MONITORED = "val/segm_AP"
THRESHOLD = "val/segm_F1_50_threshold"
NAMES = ("AP", "AP50", "AP75", "F1_50", "F1_50_threshold")
log = logging.getLogger("meinst")


class Validation:
    """What a run is measured on, read once: the file may change while the run goes on.

    Copies of the module share it: the moving average is one, and need not hold all annotations
    once more.

    Attributes:
        data: images and their annotations.
        classes: which of the model's are measured.
        truth: the content of the annotation file.

    Raises:
        ValueError: if there is nothing to measure.
    """

    def __init__(self, class_names: Sequence[str], data: CocoData) -> None:
        self.data = data
        self.classes = match_classes(class_names, data)
        self.truth = ground_truth(data)
        _check_objects(self.truth, self.classes, data)

    def __deepcopy__(self, _: Any) -> Validation:
        return self


class Trainee(L.LightningModule):
    """Trains and validates a :class:`MEInst` by a recipe.

    Args:
        model: what is trained.
        recipe: by what rules.
        validation: on what ``val/bbox_AP`` and ``val/segm_AP`` are measured.
        seed: of logits drawn at random, where the recipe has such.
    """

    def __init__(self, model: MEInst, recipe: Recipe, validation: CocoData, seed: int) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.validation = Validation(model.class_names, validation)
        self.seed = seed
        self.results: list[dict[str, Any]] = []
        self.metrics: dict[str, float | None] = {}

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Sum of the losses of one batch."""
        images, targets = batch
        outputs = _in_float32(self.model(images))
        with torch.autocast(self.device.type, enabled=False):
            losses = compute_losses(
                outputs,
                targets,
                self.model.codec,
                self.model.options.distance_limits,
                self.recipe.loss,
                self._mean_over_processes,
                self._generator(batch_index),
                self.model.refiner,
            )
        total = torch.stack(list(losses.values())).sum()
        if not total.isfinite():
            raise FloatingPointError(
                f"the loss became {total.item()} at update {self.global_step}: "
                "lower optimizer.lr, or train with --precision 32-true."
            )
        # The mean over processes is the loss of the whole batch; see compute_losses.
        logged = {f"loss/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(logged, sync_dist=True)
        self.log("loss/total", total.detach(), prog_bar=True, sync_dist=True)
        return total

    def _generator(self, batch_index: int) -> torch.Generator | None:
        """For this batch on this process, the same in a resumed run."""
        if self.recipe.loss.target_logits != "random":
            return None
        numbers = (self.seed, batch_index, self.trainer.global_rank)
        seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
        return torch.Generator(self.device).manual_seed(int(seed[0]))

    def _mean_over_processes(self, value: Tensor) -> Tensor:
        mean = self.trainer.strategy.reduce(value.clone(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean

    def validation_step(self, batch: list[int], _: int) -> None:
        """Keep the results of one image: boxes, scores and run lengths."""
        limit = self.model.selection.max_detections
        for index in batch:
            record = self.validation.data.images[index]
            try:
                # In float32, as `meinst evaluate` will measure it.
                with torch.autocast(self.device.type, enabled=False):
                    classes = self.validation.classes
                    self.results += find_results(self.model, record, classes, limit)
            except ImageError as error:  # hours of training are worth more than one image
                log.warning("counts as having no detections: %s", error)

    def on_validation_epoch_end(self) -> None:
        """Measure the results of all processes."""
        results = self.results
        if self.trainer.world_size > 1:
            parts: list[list[dict[str, Any]]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, results)
            results = [result for part in parts for result in part]
        self.results = []
        if self.trainer.sanity_checking:
            return
        metrics = coco_metrics(
            self.validation.truth,
            results,
            self.model.selection.max_detections,
            self.validation.classes.matched_ids,
        )
        self.metrics = {
            f"val/{kind}_{name}": summary[name]  # None where there is nothing to find
            for kind, summary in metrics.items()
            for name in NAMES
        }
        # Every process has all results and so the same numbers: nothing is left to reduce.
        for name, value in self.metrics.items():
            self.log(name, value or 0.0, prog_bar=name == MONITORED, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the last validation measured, and what a resumed run must share."""
        checkpoint["metrics"] = self.metrics
        checkpoint["seed"] = self.seed
        checkpoint["accumulate"] = self.trainer.accumulate_grad_batches
        checkpoint["class_names"] = list(self.model.class_names)

    def on_train_start(self) -> None:
        """Take rates and decay from the recipe; those of a checkpoint would stay otherwise.

        A resumed run may have another recipe than it began with.
        """
        optimizer, scheduler = self.trainer.optimizers[0], self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        given = make_optimizer(*self._parts(), self.recipe.optimizer).param_groups
        factor = lr_factor(scheduler.last_epoch, self.recipe.schedule)
        for group, anew in zip(optimizer.param_groups, given, strict=True):
            group.update({name: anew[name] for name in anew if name != "params"})
            group.update(initial_lr=anew["lr"], lr=anew["lr"] * factor)
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the norm of all gradients together.

        Lightning's mixed precision refuses fused optimisers, as float16's gradients are scaled when
        it clips them; on the CPU there is bfloat16 alone, whose are not.
        """
        if not optimizer.defaults.get("fused"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def _parts(self) -> tuple[nn.Module, list[nn.Module]]:
        """The backbone, and all else that is trained."""
        parts = (self.model.fpn, self.model.head, self.model.sight, self.model.refiner)
        return self.model.backbone, [part for part in parts if part is not None]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe's optimiser, and its learning rate by the update."""
        optimizer = make_optimizer(*self._parts(), self.recipe.optimizer)
        schedule = self.recipe.schedule
        scheduler = LambdaLR(optimizer, lambda iteration: lr_factor(iteration, schedule))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _check_objects(truth: Mapping[str, Any], classes: ClassMatch, validation: CocoData) -> None:
    """Refuse data on which every model has AP 0: the first weights would be kept as the best.

    Raises:
        ValueError: if there is no object of the model's classes but crowds.
    """
    matched = set(classes.matched_ids)
    if not any(e["category_id"] in matched and not e.get("iscrowd") for e in truth["annotations"]):
        raise ValueError(
            f"{validation.annotations}: no usable object of the model's classes "
            f"({len(truth['annotations'])} annotations are usable), so nothing can be validated: "
            "give validation data with objects."
        )


def tune_selection(selection: SelectOptions, metrics: Mapping[str, float | None]) -> SelectOptions:
    """Where the recipe gives no score threshold: the one of the best F1 in a validation.

    Args:
        selection: the recipe's.
        metrics: a :class:`Trainee`'s; nothing where validation found nothing right.
    """
    if selection.score_threshold is not None or not metrics.get(THRESHOLD):
        return selection
    return replace(selection, score_threshold=metrics[THRESHOLD])


class Draws(L.LightningDataModule):
    """Which images each process sees, at every update the same for a seed, resumed or not.

    Args:
        train: draws of the training set.
        num_draws: draws of the whole run.
        num_validation: validation images.
        images_per_device: images that a process takes at once.
        accumulate: batches of an update.
        workers: processes that prepare images.
    """

    def __init__(
        self,
        train: TrainingDraws,
        num_draws: int,
        num_validation: int,
        images_per_device: int,
        accumulate: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.train = train
        self.num_draws = num_draws
        self.num_validation = num_validation
        self.images_per_device = images_per_device
        self.accumulate = accumulate
        self.workers = workers

    def state_dict(self) -> dict[str, Any]:
        """What the order of the draws depends on, beside the seed."""
        return {"images": len(self.train)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Tell of a set that grew or shrank: allowed, but not the run that it would have been."""
        if state["images"] != len(self.train):
            log.warning(
                "the training set has %d images, and had %d when this was saved: the run goes on "
                "with those of now, in another order",
                len(self.train),
                state["images"],
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches from the first one that has not been seen."""
        assert self.trainer is not None
        world = self.trainer.world_size
        start = self.trainer.global_step * self.accumulate * self.images_per_device * world
        sampler = DrawSampler(
            self.num_draws, start=start, rank=self.trainer.global_rank, world_size=world
        )
        return DataLoader(
            self.train,
            batch_size=self.images_per_device,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            persistent_workers=self.workers > 0,
            pin_memory=False,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Places of the validation images that this process takes."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        places: Any = range(rank, self.num_validation, world)
        return DataLoader(places, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, _: int) -> Any:
        """Move a training batch; a validation batch is only places of images."""
        if isinstance(batch[0], int):
            return batch
        images, targets = batch
        return [image.to(device) for image in images], [_moved(t, device) for t in targets]


def _moved(target: Target, device: torch.device) -> Target:
    return Target(target.boxes.to(device), target.labels.to(device), target.masks.to(device))


def _in_float32(outputs: HeadOutputs) -> HeadOutputs:
    return replace(
        outputs,
        logits=outputs.logits.float(),
        boxes=outputs.boxes.float(),
        centerness=outputs.centerness.float(),
        sight=None if outputs.sight is None else outputs.sight.float(),
    )
