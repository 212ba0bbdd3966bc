"""The data of a training run: read, checked and described before anything is trained."""

from __future__ import annotations

import logging
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
    check_learnable(train_data, _log_content(train_data, recipe))
    _log_content(val_data, recipe)
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


def _log_content(data: CocoData, recipe: Recipe) -> DataSummary:
    """Log what was left out or repaired in a data set, and what it holds."""
    report = data.report
    if str(report):
        level = logging.WARNING if report.dropped or report.repaired else logging.INFO
        log.log(level, "%s:\n%s", data.annotations, report)
    model = recipe.model
    summary = summarize(data, recipe.resize, model.strides[0], recipe.selection.max_detections)
    log.info("%s:\n%s", data.annotations, summary)
    return summary
