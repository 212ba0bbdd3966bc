"""The data of a training run: read, checked and described before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial

from lightning.pytorch.utilities import rank_zero_only

from meinst.data.coco import CocoData, read_coco
from meinst.data.datasets.dataset import check_same_classes, open_dataset
from meinst.data.datasets.parts import VAL
from meinst.data.datasets.split import SPLIT, read_split, split, write_split
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
    train_data, val_data = _read_files(options) if options.data is None else _read_dataset(options)
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


def _read_files(options: TrainOptions) -> tuple[CocoData, CocoData]:
    train, val = (
        read_coco(
            annotations or "",
            images,
            crowd_as_instances=options.crowd_as_instances,
            boxes_alone=options.boxes_alone,
            allow_outside=options.allow_outside,
        )
        for annotations, images in (
            (options.train_annotations, options.train_images),
            (options.val_annotations, options.val_images),
        )
    )
    return train, val


def _read_dataset(options: TrainOptions) -> tuple[CocoData, CocoData]:
    """Read a data set of any layout, and divide it if it has no validation part."""
    dataset = open_dataset(options.data or "")
    log.info("%s", dataset)
    read = partial(
        dataset.read,
        crowd_as_instances=options.crowd_as_instances,
        boxes_alone=options.boxes_alone,
        allow_outside=options.allow_outside,
    )
    data = read(dataset.training_part())
    if VAL in dataset.parts:
        val = read(VAL)
        check_same_classes(data, val)
        return data, val
    path = options.output / SPLIT
    if options.resume and path.is_file():
        parts = read_split(path, data)
    else:
        parts = split(data, seed=options.seed)
        rank_zero_only(write_split)(path, data, parts, seed=options.seed)
    log.info(
        "no validation part: %d of %d images drawn for it, listed in %s",
        len(parts.val),
        len(data),
        path,
    )
    return data.select(parts.train), data.select(parts.val)


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
