"""The figures of a diagnosis: errors, sizes, classes, and the pictures and labels to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.metrics import APSummary
from meinst.diagnosis.assignments import Assignments
from meinst.diagnosis.kinds import ERRORS, Kind
from meinst.diagnosis.repairs import (
    average_precision,
    without_false_negatives,
    without_false_positives,
)

Floats = NDArray[np.float64]

_ROUNDING = 1e-9  # of averages
_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of areas, in pixels


@dataclass(frozen=True)
class ErrorSummary:
    """Errors of one kind.

    Attributes:
        kind: name of the kind; see :mod:`meinst.diagnosis.kinds`.
        detections: number of detections of this kind, of those with at least the working score, at
            mask IoU 0.5.
        objects: number of objects that such errors hide, or that are missed.
        share: their share of all such detections and objects together.
        dap: AP that is gained if this kind alone is repaired; see :mod:`meinst.diagnosis.repairs`.
        dap50: the same of the AP at IoU 0.5.
        dap_by_iou: the same at each of COCO's ten IoU thresholds.
        lost: share of the lost AP, ``1 - AP``, that is regained if this kind is repaired after all
            kinds before it in the list; these shares add up to 1.
        dap_per_class: ``dap`` of each class that has objects, by name.
    """

    kind: str
    detections: int
    objects: int
    share: float | None
    dap: float
    dap50: float
    dap_by_iou: tuple[float, ...]
    lost: float | None
    dap_per_class: dict[str, float]


@dataclass(frozen=True)
class ClassSummary:
    """Figures of one class; None where there is nothing to measure.

    Attributes:
        name: of the class.
        objects: number of objects to find.
        found: number of those found with at least the working score.
        detections: number of detections with at least this score.
        recall: share of the objects that are found.
        precision: share of these detections that are correct.
        ap: mask AP.
        ap50: mask AP at IoU 0.5.
        main_loss: the kind of error whose repair gains most AP, if any does.
    """

    name: str
    objects: int
    found: int
    detections: int
    recall: float | None
    precision: float | None
    ap: float | None
    ap50: float | None
    main_loss: str | None


@dataclass(frozen=True)
class SizeSummary:
    """Figures of objects of one size, by COCO's limits of 32 x 32 and 96 x 96 pixels.

    Attributes:
        name: ``small``, ``medium`` or ``large``.
        objects: number of objects to find.
        found: number of those found with at least the working score.
        recall: share of these.
        box_ap: box AP.
        mask_ap: mask AP.
        ap_ceiling: mask AP of the annotated masks after encoding and decoding.
        mean_iou: mean mask IoU of the objects that are found.
        mean_boundary_iou: their mean boundary IoU.
        hidden: objects that were not found, by kind of error.
    """

    name: str
    objects: int
    found: int
    recall: float | None
    box_ap: float | None
    mask_ap: float | None
    ap_ceiling: float | None
    mean_iou: float | None
    mean_boundary_iou: float | None
    hidden: dict[str, int]


@dataclass(frozen=True)
class PictureSummary:
    """Errors in one picture, of detections with at least the working score.

    Attributes:
        image_id: its id in the annotations.
        file: name of its file, or None.
        objects: number of objects to find.
        found: number of those found.
        false: number of detections that are not correct.
    """

    image_id: int
    file: str | None
    objects: int
    found: int
    false: int

    @property
    def errors(self) -> int:
        """Objects that were not found, and detections that are not correct."""
        return self.objects - self.found + self.false


def summarise_errors(assignments: Assignments) -> tuple[tuple[ErrorSummary, ...], float]:
    """Count the errors of each kind and compute what their repairs gain.

    Returns:
        The kinds, and the AP before repairs.
    """
    base = average_precision(assignments)  # (T, C)
    before = _mean(base)
    confident = assignments.confident
    detections = np.bincount(assignments.kinds[0, confident], minlength=len(Kind))
    objects = np.bincount(assignments.object_kinds(), minlength=len(Kind))
    total = sum(int(detections[kind] + objects[kind]) for kind in ERRORS)
    summaries, reached = [], before
    for count, kind in enumerate(ERRORS, start=1):
        gain = average_precision(assignments, [kind]) - base
        after = _mean(average_precision(assignments, ERRORS[:count]))
        number = int(detections[kind] + objects[kind])
        summaries.append(
            ErrorSummary(
                kind=kind.title,
                detections=int(detections[kind]),
                objects=int(objects[kind]),
                share=number / total if total else None,
                dap=_mean(gain),
                dap50=_mean(gain[:1]),
                dap_by_iou=tuple(np.nanmean(gain, axis=1).tolist()),
                lost=(after - reached) / (1 - before) if before < 1 else None,
                dap_per_class={
                    name: float(value)
                    for name, value in zip(assignments.class_names, gain.mean(0), strict=True)
                    if not np.isnan(value)
                },
            )
        )
        reached = after
    return tuple(summaries), before


def count_found_below(assignments: Assignments) -> int:
    """Number of missed objects that a detection below the working score finds."""
    missed = assignments.object_kinds() == Kind.MISSED
    return int((missed & (assignments.finders() >= 0)).sum())


def false_positive_gain(assignments: Assignments, before: float) -> float:
    """AP that is gained without any detection that is not correct."""
    return _mean(without_false_positives(assignments)) - before


def false_negative_gain(assignments: Assignments, before: float) -> float:
    """AP that is gained if objects that are not found do not count."""
    return _mean(without_false_negatives(assignments)) - before


def summarise_classes(
    assignments: Assignments,
    metrics: Mapping[str, APSummary],
    errors: tuple[ErrorSummary, ...],
) -> tuple[ClassSummary, ...]:
    """Figures of each class, in the order of ``class_names``."""
    classes = len(assignments.class_names)
    confident = assignments.confident
    counted = confident & (assignments.kinds[0] != Kind.IGNORED)
    detections = np.bincount(assignments.labels[counted], minlength=classes)
    found = np.bincount(
        assignments.object_labels[assignments.object_kinds() == Kind.CORRECT],
        minlength=classes,
    )
    objects = assignments.objects_per_class()
    summaries = []
    for label, name in enumerate(assignments.class_names):
        gains = {each.kind: each.dap_per_class.get(name, 0.0) for each in errors}
        largest = max(gains, key=lambda kind: gains[kind])
        summaries.append(
            ClassSummary(
                name=name,
                objects=int(objects[label]),
                found=int(found[label]),
                detections=int(detections[label]),
                recall=_ratio(found[label], objects[label]),
                precision=_ratio(found[label], detections[label]),
                ap=metrics[name].ap,
                ap50=metrics[name].ap50,
                main_loss=largest if gains[largest] > _ROUNDING else None,
            )
        )
    return tuple(summaries)


def summarise_sizes(
    assignments: Assignments,
    box: APSummary,
    mask: APSummary,
    ceiling: APSummary,
) -> tuple[SizeSummary, ...]:
    """Figures of small, medium and large objects."""
    kinds = assignments.object_kinds()
    finders = assignments.finders()
    summaries = []
    for index, name in enumerate(("small", "medium", "large")):
        size = np.digitize(assignments.object_areas, (_SMALL, _MEDIUM)) == index
        own = size & ~assignments.crowd
        found = own & (kinds == Kind.CORRECT)
        hidden = np.bincount(kinds[own], minlength=len(Kind))
        summaries.append(
            SizeSummary(
                name=name,
                objects=int(own.sum()),
                found=int(found.sum()),
                recall=_ratio(found.sum(), own.sum()),
                box_ap=getattr(box, f"ap_{name}"),
                mask_ap=getattr(mask, f"ap_{name}"),
                ap_ceiling=getattr(ceiling, f"ap_{name}"),
                mean_iou=mean_or_none(assignments.iou[finders[found]]),
                mean_boundary_iou=mean_or_none(assignments.boundary_iou[finders[found]]),
                hidden={kind.title: int(hidden[kind]) for kind in ERRORS if hidden[kind]},
            )
        )
    return tuple(summaries)


def mean_or_none(values: Floats) -> float | None:
    """The mean of ``(N,)`` values; None for none."""
    return float(values.mean()) if len(values) else None


def plain(summary: Any) -> dict[str, Any]:
    """A summary as plain values, ready for JSON."""
    return asdict(summary)


def _ratio(part: Any, whole: Any) -> float | None:
    return float(part / whole) if whole else None


def _mean(table: Floats) -> float:
    """Mean of ``(T, C)`` over thresholds and the classes that have objects."""
    return float(np.nanmean(table))
