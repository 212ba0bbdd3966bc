"""Diagnose a model: evaluate it, and find why average precision is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from meinst.codec_tools.evaluate import score_codec
from meinst.codec_tools.ground_truth import join_ground_truth
from meinst.codecs import Codec
from meinst.codecs.grid import GridCodec
from meinst.data.coco import CocoData
from meinst.data.ground_truth import boxes_as_crowds
from meinst.data.metrics import APSummary
from meinst.detector.passes import TileOptions
from meinst.detector.predictor import Predictor
from meinst.diagnosis.assignments import THRESHOLDS, Assignments, assign
from meinst.diagnosis.findings import (
    ClassSummary,
    ErrorSummary,
    PictureSummary,
    SizeSummary,
    count_found_below,
    false_negative_gain,
    false_positive_gain,
    mean_or_none,
    plain,
    summarise_classes,
    summarise_errors,
    summarise_sizes,
)
from meinst.diagnosis.kinds import Kind
from meinst.diagnosis.repairs import outline_precision
from meinst.diagnosis.scores import Calibration, calibrate, confusion_matrix
from meinst.images.intensity import InputOptions
from meinst.inference.evaluate import Metrics, Result, evaluate_with_results
from meinst.options import check_number

ROUGH = 0.5
"""Boundary IoU below which the outline of a correct detection is rough."""


@dataclass(frozen=True)
class Outlines:
    """How well the masks of correct detections fit, of those with at least the working score.

    Attributes:
        boundary_ap: AP with the smaller of mask IoU and boundary IoU as the IoU of a pair.
        mean_iou: mean mask IoU; None without correct detections, as all others.
        mean_box_iou: mean box IoU.
        mean_boundary_iou: mean boundary IoU.
        rough: number of correct detections whose boundary IoU is below 0.5.
        codec_ceiling: mask AP of the annotated masks after encoding and decoding by the model's
            codec: the most that the codes allow.
        refined_ceiling: for models with mask refinement, the same for masks of ``S x S`` pixels;
            otherwise None.
    """

    boundary_ap: float
    mean_iou: float | None
    mean_box_iou: float | None
    mean_boundary_iou: float | None
    rough: int
    codec_ceiling: APSummary
    refined_ceiling: APSummary | None

    @property
    def ceiling(self) -> APSummary:
        """The most that this model's masks can reach."""
        return self.codec_ceiling if self.refined_ceiling is None else self.refined_ceiling

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        refined = self.refined_ceiling
        return {
            **{key: value for key, value in vars(self).items() if not key.endswith("_ceiling")},
            "codec_ceiling": self.codec_ceiling.to_dict(),
            "refined_ceiling": None if refined is None else refined.to_dict(),
        }


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis:
    """Result of :func:`diagnose`; :func:`meinst.write_report` draws it.

    Errors are counted at mask IoU 0.5 among detections with at least the working score. Gains are
    of COCO's AP, over ten IoU thresholds. :mod:`meinst.diagnosis.kinds` defines the kinds, and
    :mod:`meinst.diagnosis.repairs` what their repair is.

    Attributes:
        metrics: COCO's metrics, as of :func:`meinst.evaluate`.
        working_score: the score threshold that maximises F1; the model's own if nothing is correct.
        errors: the kinds of errors.
        found_below: number of missed objects that a detection of a lower score finds.
        false_positives: AP that is gained without any detection that is not correct.
        false_negatives: AP that is gained if objects that are not found do not count.
        classes: figures of each class.
        sizes: figures of small, medium and large objects.
        outlines: how well masks fit, and the ceilings.
        calibration: reliability of the scores.
        confusion: ``(C + 1, C + 1)``; see :func:`meinst.diagnosis.scores.confusion_matrix`.
        pictures: the pictures, most errors first.
        total_images: number of pictures that the measured ones were sampled from.
        seed: seed of the sample; None if all pictures were measured.
        data: the measured pictures and their annotations.
        results: the detections in COCO's format.
        assignments: what became of every detection and object.
        input_options: how the model reads images.
    """

    metrics: Metrics
    working_score: float
    errors: tuple[ErrorSummary, ...]
    found_below: int
    false_positives: float
    false_negatives: float
    classes: tuple[ClassSummary, ...]
    sizes: tuple[SizeSummary, ...]
    outlines: Outlines
    calibration: Calibration
    confusion: NDArray[np.int64]
    pictures: tuple[PictureSummary, ...]
    total_images: int
    seed: int | None
    data: CocoData
    results: Sequence[Result]
    assignments: Assignments
    input_options: InputOptions

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values, ready for JSON."""
        return {
            "metrics": self.metrics.to_dict(),
            "working_score": self.working_score,
            "iou_thresholds": THRESHOLDS.round(2).tolist(),
            "errors": [plain(each) for each in self.errors],
            "found_below_working_score": self.found_below,
            "false_positives_dap": self.false_positives,
            "false_negatives_dap": self.false_negatives,
            "sizes": [plain(each) for each in self.sizes],
            "classes": [plain(each) for each in self.classes],
            "confusion": {
                "names": [*self.assignments.class_names, "background"],
                "cells": [
                    [row, column, int(self.confusion[row, column])]
                    for row, column in np.argwhere(self.confusion).tolist()
                ],
            },
            "calibration": self.calibration.to_dict(),
            "outlines": self.outlines.to_dict(),
            "pictures": [plain(each) for each in self.pictures],
            "total_images": self.total_images,
            "seed": self.seed,
        }


def diagnose(
    model: Predictor,
    data: CocoData,
    *,
    max_detections: int | None = None,
    batch_size: int = 1,
    tiles: TileOptions | None = None,
    max_images: int | None = None,
    seed: int = 0,
    on_image: Callable[[], None] | None = None,
) -> Diagnosis:
    """Evaluate a model and find why average precision is lost.

    Args:
        model: in evaluation mode.
        data: annotations with their images.
        max_detections: limit of detections per image, and COCO's limit; the model's own if None.
        batch_size: images per forward pass, where they have the same size.
        tiles: which images are predicted in windows, as in :func:`meinst.evaluate`.
        max_images: of more images, this many are chosen at random; all are measured if None.
        seed: seed of this choice.
        on_image: called after each image.

    Raises:
        ValueError: if there is no object of the model's classes, or a limit is below 1.

    Examples:
        >>> import meinst
        >>> model = meinst.load("photos").fuse()  # doctest: +SKIP
        >>> data = meinst.read_coco("val.json", "val")  # doctest: +SKIP
        >>> diagnosis = meinst.diagnose(model, data)  # doctest: +SKIP
        >>> [(error.kind, error.dap) for error in diagnosis.errors]  # doctest: +SKIP
        >>> meinst.write_report(diagnosis, "report")  # doctest: +SKIP
    """
    total, chosen = len(data), data
    if max_images is not None:
        check_number("max_images", max_images, 1, np.inf, whole=True)
        chosen = sample_images(data, max_images, seed)
    settings: dict[str, Any] = {"batch_size": batch_size, "tiles": tiles, "on_image": on_image}
    settings["max_detections"] = max_detections
    metrics, results = evaluate_with_results(model, chosen, **settings)
    diagnosis = explain(model, chosen, metrics, results)
    if len(chosen) == total:
        return diagnosis
    return replace(diagnosis, total_images=total, seed=seed)


def explain(
    model: Predictor, data: CocoData, metrics: Metrics, results: Sequence[Result]
) -> Diagnosis:
    """Find why average precision is lost, from the detections of a model.

    Objects without a mask count as crowd regions.

    Args:
        model: the model.
        data: the measured annotations.
        metrics: its metrics on these data.
        results: its detections in COCO's format, as they were measured.
    """
    data = boxes_as_crowds(data)
    best = metrics.segm.f1_threshold
    score = model.selection.threshold if best is None else best
    assignments = assign(data, results, metrics.classes, score)
    errors, before = summarise_errors(assignments)
    outlines = _measure_outlines(model, data, assignments)
    ceiling = outlines.ceiling
    return Diagnosis(
        metrics=metrics,
        working_score=score,
        errors=errors,
        found_below=count_found_below(assignments),
        false_positives=false_positive_gain(assignments, before),
        false_negatives=false_negative_gain(assignments, before),
        classes=summarise_classes(assignments, metrics.segm.per_class, errors),
        sizes=summarise_sizes(assignments, metrics.bbox, metrics.segm, ceiling),
        outlines=outlines,
        calibration=calibrate(assignments),
        confusion=confusion_matrix(assignments),
        pictures=rank_pictures(data, assignments),
        total_images=len(data),
        seed=None,
        data=data,
        results=results,
        assignments=assignments,
        input_options=model.input_options,
    )


def sample_images(data: CocoData, count: int, seed: int) -> CocoData:
    """Choose at most ``count`` images at random, in the order of the file."""
    if len(data) <= count:
        return data
    chosen = np.sort(np.random.default_rng(seed).permutation(len(data))[:count]).tolist()
    return replace(
        data,
        images=tuple(data.images[index] for index in chosen),
        instances=tuple(data.instances[index] for index in chosen),
        fields=tuple(data.fields[index] for index in chosen),
    )


def rank_pictures(data: CocoData, assignments: Assignments) -> tuple[PictureSummary, ...]:
    """The pictures by number of errors, most first; the earlier one first at equal numbers."""
    images = len(data)
    false = assignments.confident & (assignments.kinds[0] >= Kind.DOUBLE)
    falses = np.bincount(assignments.images[false], minlength=images)
    found = assignments.object_kinds() == Kind.CORRECT
    founds = np.bincount(assignments.object_images[found], minlength=images)
    objects = np.bincount(assignments.object_images[~assignments.crowd], minlength=images)
    order = np.argsort(-(objects - founds + falses), kind="stable")
    return tuple(
        PictureSummary(
            image_id=record.id,
            file=None if record.path is None else record.path.name,
            objects=int(objects[index]),
            found=int(founds[index]),
            false=int(falses[index]),
        )
        for index, record in ((index, data.images[index]) for index in order.tolist())
    )


def _measure_outlines(model: Predictor, data: CocoData, assignments: Assignments) -> Outlines:
    correct = assignments.confident & (assignments.kinds[0] == Kind.CORRECT)
    boundary = assignments.boundary_iou[correct]
    refined = None
    if model.refiner is not None:
        size = model.codec.mask_size
        refined = ap_ceiling(GridCodec(size**2, size), data, assignments.class_names)
    return Outlines(
        boundary_ap=float(np.nanmean(outline_precision(assignments))),
        mean_iou=mean_or_none(assignments.iou[correct]),
        mean_box_iou=mean_or_none(assignments.box_iou[correct]),
        mean_boundary_iou=mean_or_none(boundary),
        rough=int((boundary < ROUGH).sum()),
        codec_ceiling=ap_ceiling(model.codec, data, assignments.class_names),
        refined_ceiling=refined,
    )


@torch.no_grad()
def ap_ceiling(codec: Codec, data: CocoData, class_names: Sequence[str]) -> APSummary:
    """Mask AP of the annotated masks of some classes after encoding and decoding."""
    truth = join_ground_truth([data], class_names)
    return score_codec(codec, truth, truth.images()).ap_ceiling
