"""The images that each process trains and validates on."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from meinst.data.coco import CocoData
from meinst.data.training_dataset import ResumableSampler, TrainingDataset, collate
from meinst.models.recipe import Recipe
from meinst.training.options import TrainOptions
from meinst.types import Target

_VALIDATION_BATCH = 16  # images per validation step; the next ones are read meanwhile
log = logging.getLogger("meinst")


class DataModule(L.LightningDataModule):
    """Training samples and validation images of each process.

    The same seed gives the same images at every update, whether the run was resumed or not.

    Args:
        dataset: the training samples.
        num_samples: training samples of the whole run.
        num_validation: number of validation images.
        images_per_device: images that a process takes at once.
        accumulate: batches per update.
        workers: processes that prepare images.
    """

    def __init__(
        self,
        dataset: TrainingDataset,
        num_samples: int,
        num_validation: int,
        images_per_device: int,
        accumulate: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.dataset = dataset
        self.num_samples = num_samples
        self.num_validation = num_validation
        self.images_per_device = images_per_device
        self.accumulate = accumulate
        self.workers = workers

    def state_dict(self) -> dict[str, Any]:
        """What the order of samples depends on besides the seed."""
        return {"images": len(self.dataset)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Warn if the training set has changed: allowed, but the result will differ."""
        if state["images"] != len(self.dataset):
            log.warning(
                "the training set has %d images but had %d when the run was saved; the run "
                "continues with the current images, in another order",
                len(self.dataset),
                state["images"],
            )

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of samples, starting with the first one that was not used yet."""
        assert self.trainer is not None
        world = self.trainer.world_size
        start = self.trainer.global_step * self.accumulate * self.images_per_device * world
        sampler = ResumableSampler(
            self.num_samples, start=start, rank=self.trainer.global_rank, world_size=world
        )
        return DataLoader(
            self.dataset,
            batch_size=self.images_per_device,
            sampler=sampler,
            num_workers=self.workers,
            collate_fn=collate,
            persistent_workers=self.workers > 0,
            pin_memory=False,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of indices of this process's validation images."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        indices: Any = range(rank, self.num_validation, world)
        return DataLoader(indices, batch_size=_VALIDATION_BATCH, collate_fn=list)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, _: int) -> Any:
        """Move a training batch to the device; a validation batch holds only indices."""
        if isinstance(batch[0], int):
            return batch
        images, targets = batch
        return [image.to(device) for image in images], [_to(t, device) for t in targets]


def make_dataset(data: CocoData, recipe: Recipe, mask_size: int, seed: int) -> TrainingDataset:
    """The training samples of a recipe; masks are ``mask_size`` pixels wide."""
    return TrainingDataset(
        data,
        recipe.resize,
        recipe.augment,
        mask_size,
        seed=seed,
        skip_empty=recipe.skip_empty,
        input_options=recipe.input,
    )


def split_batch(options: TrainOptions, recipe: Recipe) -> tuple[int, int]:
    """Images per device and batches per update.

    Raises:
        ValueError: if the batch size is not a multiple of both.
    """
    world = options.world_size
    per_device = options.images_per_device or max(recipe.batch_size // world, 1)
    accumulate, remainder = divmod(recipe.batch_size, per_device * world)
    if remainder or not accumulate:
        raise ValueError(
            f"batch_size {recipe.batch_size} is not a multiple of {world} devices times "
            f"{per_device} images_per_device; change one of them."
        )
    return per_device, accumulate


def _to(target: Target, device: torch.device) -> Target:
    has_mask = None if target.has_mask is None else target.has_mask.to(device)
    boxes, labels, masks = (each.to(device) for each in (target.boxes, target.labels, target.masks))
    return Target(boxes, labels, masks, has_mask)
