"""The data of a training run: read, checked and described before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from meinst.data.coco import CocoData, read_coco
from meinst.data.image_check import check_usable, describe, unusable_images
from meinst.data.summary import DataSummary, check_learnable, summarize
from meinst.models.recipe import Recipe
from meinst.training.options import TrainOptions

log = logging.getLogger("meinst")


def read_data(options: TrainOptions, recipe: Recipe) -> tuple[CocoData, CocoData]:
    """Read and check the training and validation data, and log what they hold.

    Raises:
        FileNotFoundError: if a file or folder does not exist.
        AnnotationError: if an annotation file is not valid.
        ValueError: if nothing can be learned, most images cannot be read, or there are fewer
            validation images than processes.
    """
    train_data = _read(options.train_annotations, options.train_images, options)
    val_data = _read(options.val_annotations, options.val_images, options)
    for data in (train_data, val_data):
        _log_report(data)
    if options.minutes is None or options.resume:  # otherwise the recipe is not planned yet
        log_sizes((train_data, val_data), recipe)
    check_learnable(train_data, _summary(train_data, recipe))
    if len(val_data) < options.world_size:
        raise ValueError(
            f"{val_data.annotations}: {len(val_data)} images for {options.world_size} processes, "
            "but each process needs at least one; add images or use fewer --devices."
        )
    for data in (train_data, val_data):
        errors = unusable_images(data)
        check_usable(data, errors)
        if errors:
            log.warning("%s: %s", data.annotations, describe(data, errors))
    return train_data, val_data


def _read(annotations: Path, images: Path, options: TrainOptions) -> CocoData:
    return read_coco(
        annotations,
        images,
        crowd_as_instances=options.crowd_as_instances,
        allow_outside=options.allow_outside,
    )


def log_sizes(parts: Iterable[CocoData], recipe: Recipe) -> None:
    """Log what data sets hold, as a network with a recipe's input sees it."""
    for data in parts:
        log.info("%s:\n%s", data.annotations, _summary(data, recipe))


def _log_report(data: CocoData) -> None:
    """Log what was left out or repaired in a data set."""
    report = data.report
    if str(report):
        level = logging.WARNING if report.dropped or report.repaired else logging.INFO
        log.log(level, "%s:\n%s", data.annotations, report)


def _summary(data: CocoData, recipe: Recipe) -> DataSummary:
    return summarize(data, recipe.resize, recipe.model.strides[0], recipe.selection.max_detections)
