"""Average precision after errors are repaired, in the way of TIDE (arXiv 2008.08115, section 2.2).

=================================================  =================================================
kind of error                                      repair
=================================================  =================================================
``wrong class``, ``split``, ``poor outline``,      the detection becomes correct, with its score, if
``loose box``                                      its object has not been found; of several the one
                                                   of best score. Otherwise it is removed.
``merged``                                         the same with each object that it covers
``double``, ``both``, ``false``                    the detection is removed
``missed``                                         the object no longer counts
=================================================  =================================================

Detections below the working score find nothing by a repair: they are removed when their kind is
repaired, and objects that only they find or are aimed at are missed. TIDE repairs detections of any
score, so that in its figures little is missed and much loose.

With all kinds repaired, average precision is 1. The gains of single repairs do not add up to what
is lost, because precision is not linear in errors.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from meinst.diagnosis.assignments import Assignments
from meinst.diagnosis.kinds import Kind
from meinst.ops.match_kernels import interpolate_precision

Floats = NDArray[np.float64]


def precision_table(assignments: Assignments, repaired: Collection[Kind] = ()) -> Floats:
    """Interpolated precision ``(T, C, 101)`` after repairs; NaN for classes without objects.

    Args:
        assignments: of a data set.
        repaired: the kinds of errors to repair.
    """
    levels = range(len(assignments.kinds))
    return np.stack([_precision(assignments, level, set(repaired)) for level in levels])


def average_precision(assignments: Assignments, repaired: Collection[Kind] = ()) -> Floats:
    """Average precision ``(T, C)`` after repairs; NaN for classes without objects."""
    mean: Floats = precision_table(assignments, repaired).mean(-1)
    return mean


def outline_precision(assignments: Assignments) -> Floats:
    """Boundary AP, ``(T, C)``: with the smaller of mask IoU and boundary IoU as the IoU of a pair.

    As proposed with boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562).
    """
    objects = assignments.objects_per_class()
    ranks = np.arange(len(assignments.scores))
    tables = []
    for kinds in assignments.outline_kinds:
        keep = kinds != Kind.IGNORED
        correct = kinds[keep] == Kind.CORRECT
        tables.append(
            _interpolate(ranks[keep], assignments.labels[keep], correct, objects, objects)
        )
    mean: Floats = np.stack(tables).mean(-1)
    return mean


def without_false_positives(assignments: Assignments) -> Floats:
    """Average precision ``(T, C)`` if every detection that is not correct is removed."""
    return _with_correct_only(assignments, everything=False)


def without_false_negatives(assignments: Assignments) -> Floats:
    """Average precision ``(T, C)`` if objects that were not found no longer count."""
    return _with_correct_only(assignments, everything=True)


def _with_correct_only(assignments: Assignments, *, everything: bool) -> Floats:
    """Count all detections and the found objects only, or correct detections and all objects."""
    objects = assignments.objects_per_class()
    ranks = np.arange(len(assignments.scores))
    tables = []
    for kinds in assignments.kinds:
        correct = kinds == Kind.CORRECT
        keep = kinds != Kind.IGNORED if everything else correct
        labels = assignments.labels
        found = np.bincount(labels[correct], minlength=len(objects))
        left = found if everything else objects
        tables.append(_interpolate(ranks[keep], labels[keep], correct[keep], left, objects))
    mean: Floats = np.stack(tables).mean(-1)
    return mean


def _precision(assignments: Assignments, level: int, repaired: set[Kind]) -> Floats:
    """Interpolated precision ``(C, 101)`` at one threshold."""
    kinds, labels = assignments.kinds[level], assignments.labels
    objects = assignments.objects_per_class()
    missed = np.zeros(len(assignments.crowd), dtype=np.bool_)
    if Kind.MISSED in repaired:
        missed = assignments.object_kinds(level) == Kind.MISSED
    left = objects - np.bincount(assignments.object_labels[missed], minlength=len(objects))
    detections, aimed_at, causes = assignments.aims(level)
    free = np.isin(causes, list(repaired)) & ~assignments.found(level)[aimed_at]
    found, first = np.unique(aimed_at[free], return_index=True)  # the best detection of each
    new = detections[free][first]
    # What finds these objects with a score below the working score is not needed any more.
    replaced = missed.copy()
    replaced[found] = True
    removed = np.isin(kinds, [Kind.IGNORED, *repaired])
    removed |= (kinds == Kind.CORRECT) & np.append(replaced, False)[assignments.targets[level]]
    ranks = np.flatnonzero(~removed)
    correct = kinds[ranks] == Kind.CORRECT
    return _interpolate(
        np.concatenate((ranks, new)),
        np.concatenate((labels[ranks], assignments.object_labels[found])),
        np.concatenate((correct, np.ones(len(new), dtype=np.bool_))),
        left,
        objects,
    )


def _interpolate(
    ranks: NDArray[np.int64],
    labels: NDArray[np.int64],
    correct: NDArray[np.bool_],
    left: NDArray[np.int64],
    objects: NDArray[np.int64],
) -> Floats:
    """Interpolated precision ``(C, 101)`` of detections in any order.

    Args:
        ranks: ``(M,)``, 0 for the detection of the best score.
        labels: ``(M,)`` classes.
        correct: ``(M,)``.
        left: ``(C,)`` objects that count. If none of a class does, precision is 1 without
            detections of this class and 0 with any.
        objects: ``(C,)`` objects before repairs; classes without any are not measured.
    """
    order = np.lexsort((ranks, labels))
    counts = np.bincount(labels, minlength=len(objects))
    starts = np.concatenate(([0], np.cumsum(counts)))
    table: Floats = interpolate_precision(correct[order], starts, left)
    table[(left == 0) & (counts == 0)] = 1.0
    table[objects == 0] = np.nan
    return table
