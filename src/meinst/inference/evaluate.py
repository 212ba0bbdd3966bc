"""Evaluate a model on annotated images: COCO's average precision of boxes and masks.

Of each image only boxes, scores and run-length-encoded masks are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meinst.data.coco import CocoData, ImageRecord
from meinst.data.ground_truth import ClassMatch, ground_truth, match_classes
from meinst.data.images import ImageError, Picture
from meinst.data.metrics import APSummary, coco_metrics
from meinst.data.regions import RegionImage, open_picture
from meinst.data.summary import commonest_reason
from meinst.detections import Detections
from meinst.detector.passes import NO_TILES, TileOptions
from meinst.detector.predictor import Predictor
from meinst.images.notes import NoteSummary
from meinst.inference.prefetch import predict_iter
from meinst.options import first_few

Result = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """An image that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Metrics:
    """Result of :func:`evaluate`.

    Attributes:
        bbox: average precision of the boxes.
        segm: average precision of the masks.
        max_detections: limit of detections per image, and COCO's limit per image and class.
        images: number of images, failed ones included.
        instances: number of objects to find, without crowds, of the measured categories.
        detections: number of detections.
        classes: which classes were measured.
        failures: images that count as having no detections.
        notes: how images were read and resized, a line for each kind.
        damaged: number of images of which windows could not be read.
    """

    bbox: APSummary
    segm: APSummary
    max_detections: int
    images: int
    instances: int
    detections: int
    classes: ClassMatch
    failures: tuple[Failure, ...]
    notes: tuple[str, ...] = ()
    damaged: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; paths as text."""
        return {
            "bbox": self.bbox.to_dict(),
            "segm": self.segm.to_dict(),
            "max_detections": self.max_detections,
            "images": self.images,
            "instances": self.instances,
            "detections": self.detections,
            "classes_only_in_model": list(self.classes.only_model),
            "classes_only_in_annotations": list(self.classes.only_data),
            "failures": [
                {"file": str(failure.path), "reason": failure.reason} for failure in self.failures
            ],
            "notes": list(self.notes),
            "damaged": self.damaged,
        }


def evaluate(
    model: Predictor,
    data: CocoData,
    *,
    max_detections: int | None = None,
    batch_size: int = 1,
    tiles: TileOptions | None = None,
    on_image: Callable[[], None] | None = None,
) -> Metrics:
    """Run a model on annotated images and compute COCO's metrics.

    Classes are matched to categories by name; others are not measured. Detections of any score
    count. An image that cannot be read counts as one without detections.
    :func:`meinst.diagnose` computes the same and finds why average precision is lost.

    Args:
        model: in evaluation mode.
        data: annotations with their images.
        max_detections: limit of detections per image, and COCO's limit; the model's own if None. An
            image that is predicted in windows has no limit if None.
        batch_size: images per forward pass, where they have the same size.
        tiles: which images are predicted in windows; by default those in which objects would be
            missed because they are shrunk too much for the network.
        on_image: called after each image.

    Raises:
        ValueError: if there is no object of the model's classes, or the limit is below 1.
    """
    return evaluate_with_results(
        model,
        data,
        max_detections=max_detections,
        batch_size=batch_size,
        tiles=tiles,
        on_image=on_image,
    )[0]


def evaluate_with_results(
    model: Predictor,
    data: CocoData,
    *,
    max_detections: int | None = None,
    batch_size: int = 1,
    tiles: TileOptions | None = None,
    on_image: Callable[[], None] | None = None,
) -> tuple[Metrics, list[Result]]:
    """Like :func:`evaluate`, with the detections that were measured, in COCO's format."""
    limit = model.selection.override(max_detections=max_detections).max_detections
    tiles = replace(tiles or TileOptions(), max_detections=max_detections)
    classes = match_measurable(model.class_names, data)
    results: list[Result] = []
    failures, notes, tiled = list[Failure](), NoteSummary(), 0
    for outcome in evaluation_results(
        model, data.images, classes, limit, batch_size, notes, tiles=tiles
    ):
        if isinstance(outcome, Failure):
            failures.append(outcome)
        else:
            results += outcome
            if max_detections is None and notes.tiled > tiled:
                limit = max(limit, len(outcome))
            tiled = notes.tiled
        (on_image or (lambda: None))()
    metrics = coco_metrics(ground_truth(data), results, limit, classes.matched_ids)
    measured = Metrics(
        metrics.bbox,
        metrics.segm,
        max_detections=limit,
        images=len(data.images),
        instances=count_objects(data, classes),
        detections=len(results),
        classes=classes,
        failures=tuple(failures),
        notes=tuple(notes.lines()),
        damaged=notes.damaged,
    )
    return measured, results


def evaluation_results(
    model: Predictor,
    records: Sequence[ImageRecord],
    classes: ClassMatch,
    max_detections: int,
    batch_size: int = 1,
    notes: NoteSummary | None = None,
    *,
    tiles: TileOptions = NO_TILES,
) -> Iterator[list[Result] | Failure]:
    """For each image its detections as COCO results, or why it could not be read.

    Detections of any score are included; those of unmatched classes are not.

    Args:
        model: in evaluation mode.
        records: the images.
        classes: the model's classes as categories.
        max_detections: limit of detections per image.
        batch_size: images per forward pass, where they have the same size.
        notes: collects how the images were read and resized.
        tiles: which images are predicted in windows; by default none.
    """
    selection = model.selection.override(0.0, max_detections)

    def read(record: ImageRecord) -> Picture | RegionImage:
        size = (record.width, record.height)
        return open_picture(_path(record), model.input_options, tiles.fits, size)

    predictions = predict_iter(
        model, records, read, batch_size=batch_size, selection=selection, tiles=tiles
    )
    for prediction in predictions:
        try:
            _, detections = prediction.result()
        except ImageError as error:
            yield Failure(_path(prediction.source), str(error))
        else:
            if notes is not None:
                notes.add(_path(prediction.source), prediction.notes)
            yield _to_results(detections, prediction.source, classes)


def match_measurable(class_names: Sequence[str], data: CocoData) -> ClassMatch:
    """Match a model's classes to categories, of which there must be objects to find.

    Raises:
        ValueError: if no class is a category, or there is no usable object of one, naming the
            commonest reason.
    """
    classes = match_classes(class_names, data)
    if count_objects(data, classes):
        return classes
    others = sum(int((~instances.crowd).sum()) for instances in data.instances)
    reason = (
        f"its {others} usable objects are of other classes ({first_few(classes.only_data)})."
        if others
        else commonest_reason(data)
    )
    raise ValueError(
        f"{data.annotations}: no usable objects of the model's classes to measure: {reason}"
    )


def count_objects(data: CocoData, classes: ClassMatch) -> int:
    """Number of objects to find: instances of matched categories that are not crowds."""
    measured = [data.category_ids.index(category) for category in classes.matched_ids]
    return sum(
        int((np.isin(instances.labels, measured) & ~instances.crowd).sum())
        for instances in data.instances
    )


def _to_results(detections: Detections, record: ImageRecord, classes: ClassMatch) -> list[Result]:
    matched = torch.tensor([category is not None for category in classes.category_ids])
    ids = [category or 0 for category in classes.category_ids]  # unmatched ids are never used
    return detections[matched[detections.labels.cpu()]].to_coco(record.id, ids)


def _path(record: ImageRecord) -> Path:
    if record.path is None:
        raise ValueError(
            f"image {record.id} has no file; read the annotations with their image folder, "
            "read_coco(annotations, images)."
        )
    return record.path
