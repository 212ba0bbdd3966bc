"""MEInst as a LightningModule: one training step, one validation, one optimizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from meinst.data.coco import CocoData
from meinst.data.ground_truth import ground_truth
from meinst.data.metrics import APSummary, coco_metrics
from meinst.detector.losses import compute_losses
from meinst.detector.meinst import MEInst
from meinst.images.notes import NoteSummary
from meinst.inference.evaluate import Failure, evaluation_results, match_measurable
from meinst.models.recipe import Recipe
from meinst.training.checkpoints import first_non_finite
from meinst.training.schedule import lr_factor, make_optimizer
from meinst.types import HeadOutputs, Target

Batch = tuple[list[Tensor], list[Target]]
MONITORED = "val/segm_AP"
THRESHOLD = "val/segm_F1_50_threshold"
log = logging.getLogger("meinst")


class Validation:
    """The validation data, read once: the file may change during the run.

    Copies of the module (the moving average is one) share it, so that the annotations are in
    memory only once.

    Attributes:
        data: images and their annotations.
        classes: which of the model's classes are measured.
        truth: the usable instances in COCO's format.

    Raises:
        ValueError: if there is nothing to measure.
    """

    def __init__(self, class_names: Sequence[str], data: CocoData) -> None:
        self.data = data
        self.classes = match_measurable(class_names, data)
        self.truth = ground_truth(data)

    def __deepcopy__(self, _: Any) -> Validation:
        return self


class LitMEInst(L.LightningModule):
    """Trains and validates a :class:`MEInst` according to a recipe.

    Args:
        model: the model to train.
        recipe: the recipe.
        validation: data on which ``val/bbox_AP`` and ``val/segm_AP`` are measured.
        seed: seed of random target logits, where the recipe uses them.
    """

    def __init__(self, model: MEInst, recipe: Recipe, validation: CocoData, seed: int) -> None:
        super().__init__()
        self.model = model
        self.recipe = recipe
        self.validation = Validation(model.class_names, validation)
        self.seed = seed
        self.results: list[dict[str, Any]] = []
        self.metrics: dict[str, float | None] = {}
        self.notes = NoteSummary()

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Return the sum of the losses of one batch."""
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
                f"the loss became {total.item()} at update {self.global_step}; "
                "lower optimizer.lr, or train with --precision 32-true."
            )
        # The mean over processes is the loss of the whole batch; see compute_losses.
        logged = {f"loss/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(logged, sync_dist=True)
        self.log("loss/total", total.detach(), prog_bar=True, sync_dist=True)
        return total

    def _generator(self, batch_index: int) -> torch.Generator | None:
        """Generator of this batch on this process, the same in a resumed run."""
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
        """Collect the results of some images: boxes, scores and run-length-encoded masks."""
        records = [self.validation.data.images[index] for index in batch]
        limit = self.model.selection.max_detections
        # In float32, like `meinst evaluate`.
        with torch.autocast(self.device.type, enabled=False):
            for outcome in evaluation_results(
                self.model, records, self.validation.classes, limit, notes=self.notes
            ):
                if isinstance(outcome, Failure):  # one image must not cost hours of training
                    log.warning("counted as an image without detections: %s", outcome.reason)
                else:
                    self.results += outcome

    def on_validation_epoch_end(self) -> None:
        """Compute the metrics from the results of all processes."""
        results = self.results
        if self.trainer.world_size > 1:
            parts: list[list[dict[str, Any]]] = [[] for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(parts, results)
            results = [result for part in parts for result in part]
        self.results = []
        if self.trainer.sanity_checking:
            return
        if not self.metrics:  # the first validation; the next ones would repeat it
            for line in self.notes.lines():
                log.info("validation: %s", line)
        metrics = coco_metrics(
            self.validation.truth,
            results,
            self.model.selection.max_detections,
            self.validation.classes.matched_ids,
        )
        self.metrics = _logged("bbox", metrics.bbox) | _logged("segm", metrics.segm)
        # Every process has all results and so the same numbers: there is nothing to reduce.
        for name, value in self.metrics.items():
            logged = math.nan if value is None else value  # nothing to find is not a score of 0
            self.log(name, logged, prog_bar=name == MONITORED, sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the metrics of the last validation, and what a resumed run must share.

        Raises:
            FloatingPointError: if weights are NaN or infinite; the file is not replaced then.
        """
        if name := first_non_finite(checkpoint):
            raise FloatingPointError(
                f"weights became NaN or infinite ({name}) by update {self.global_step}, so this "
                "state is not saved; continue from the last checkpoint with --resume and a lower "
                "optimizer.lr or --precision 32-true."
            )
        checkpoint["metrics"] = self.metrics
        checkpoint["seed"] = self.seed
        checkpoint["accumulate"] = self.trainer.accumulate_grad_batches
        checkpoint["class_names"] = list(self.model.class_names)

    def on_train_start(self) -> None:
        """Set rates and decay from the recipe, which may differ from that of the checkpoint."""
        optimizer, scheduler = self.trainer.optimizers[0], self.lr_schedulers()
        assert isinstance(scheduler, LambdaLR)
        groups = make_optimizer(*self._parts(), self.recipe.optimizer).param_groups
        factor = lr_factor(scheduler.last_epoch, self.recipe.schedule)
        for group, new in zip(optimizer.param_groups, groups, strict=True):
            group.update({name: new[name] for name in new if name != "params"})
            group.update(initial_lr=new["lr"], lr=new["lr"] * factor)
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients together.

        Lightning's mixed precision rejects fused optimizers, because gradients in float16 are
        scaled when it clips them. On the CPU mixed precision is bfloat16, which is not scaled.
        """
        if not optimizer.defaults.get("fused"):
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val:
            nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The recipe's optimizer, with a learning rate that changes at every update."""
        optimizer = make_optimizer(*self._parts(), self.recipe.optimizer)
        # The recipe is looked up at every update, since its schedule may be revised.
        scheduler = LambdaLR(optimizer, lambda update: lr_factor(update, self.recipe.schedule))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _parts(self) -> tuple[nn.Module, list[nn.Module]]:
        """The backbone, and all other trained parts."""
        model = self.model
        parts = (model.fpn, model.head, model.refinement, model.refiner)
        return model.backbone, [part for part in parts if part is not None]


def _logged(iou_type: str, summary: APSummary) -> dict[str, float | None]:
    """The figures that are logged and stored; None where there is nothing to find."""
    figures = summary.to_dict()
    names = ("AP", "AP50", "AP75", "F1_50", "F1_50_threshold")
    return {f"val/{iou_type}_{name}": figures[name] for name in names}


def _in_float32(outputs: HeadOutputs) -> HeadOutputs:
    return replace(
        outputs,
        logits=outputs.logits.float(),
        boxes=outputs.boxes.float(),
        centerness=outputs.centerness.float(),
        refinement=None if outputs.refinement is None else outputs.refinement.float(),
    )
