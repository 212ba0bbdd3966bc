"""Reliability of scores, and which classes are mistaken for which."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.diagnosis.assignments import Assignments
from meinst.diagnosis.kinds import Kind

_BINS = 10


@dataclass(frozen=True)
class ScoreBin:
    """Detections of similar scores.

    Attributes:
        low: smallest score.
        high: largest score; belongs to the next bin, except in the last.
        detections: number of detections.
        mean_score: their mean score; None without detections.
        precision: share of correct ones; None without detections.
    """

    low: float
    high: float
    detections: int
    mean_score: float | None
    precision: float | None


@dataclass(frozen=True)
class Calibration:
    """How well scores predict the share of correct detections (mask IoU of at least 0.5).

    Attributes:
        bins: detections by score.
        error: expected calibration error: the difference between mean score and precision of the
            bins, averaged over detections (Naeini et al., AAAI 2015; Küppers et al., CVPR 2020
            workshops, for detectors). None without detections.
        working_error: the same for detections of at least the working score.
        working_score: that score.
    """

    bins: tuple[ScoreBin, ...]
    error: float | None
    working_error: float | None
    working_score: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def calibrate(assignments: Assignments) -> Calibration:
    """Compare scores with the share of correct detections, in ten bins of equal width."""
    counted = assignments.kinds[0] != Kind.IGNORED
    correct = (assignments.kinds[0] == Kind.CORRECT)[counted]
    scores = assignments.scores[counted]
    bins = score_bins(scores, correct)
    chosen = assignments.confident[counted]
    return Calibration(
        bins,
        expected_error(bins),
        expected_error(score_bins(scores[chosen], correct[chosen])),
        assignments.working_score,
    )


def score_bins(scores: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[ScoreBin, ...]:
    """Group ``(N,)`` detections by score."""
    index = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    counts, sums, right = (
        np.bincount(index, weights=weights, minlength=_BINS) for weights in (None, scores, correct)
    )
    return tuple(
        ScoreBin(
            k / _BINS,
            (k + 1) / _BINS,
            int(counts[k]),
            float(sums[k] / counts[k]) if counts[k] else None,
            float(right[k] / counts[k]) if counts[k] else None,
        )
        for k in range(_BINS)
    )


def expected_error(bins: tuple[ScoreBin, ...]) -> float | None:
    """The expected calibration error of :class:`Calibration`."""
    filled = [each for each in bins if each.mean_score is not None and each.precision is not None]
    total = sum(each.detections for each in filled)
    if not total:
        return None
    gaps = [
        each.detections * abs(each.mean_score - each.precision)  # type: ignore[operator]
        for each in filled
    ]
    return float(sum(gaps) / total)


def confusion_matrix(assignments: Assignments) -> NDArray[np.int64]:
    """Count classes of objects against classes of detections of at least the working score.

    An object counts for the class of the detection that found it; otherwise for that of the best
    detection of another class with a mask IoU of at least 0.5; otherwise it is background. So is
    the object of every other detection.

    Returns:
        ``(C + 1, C + 1)``; rows are classes of objects, columns classes of detections, and the last
        of each is background.
    """
    background = len(assignments.class_names)
    confident = assignments.confident
    found = assignments.object_kinds()
    labels = assignments.object_labels
    matrix = np.zeros((background + 1, background + 1), dtype=np.int64)
    correct = labels[found == Kind.CORRECT]
    np.add.at(matrix, (correct, correct), 1)
    wrong = np.flatnonzero(confident & (assignments.kinds[0] == Kind.WRONG_CLASS))
    targets = assignments.targets[0, wrong]
    open_ = ~np.isin(found[targets], (Kind.CORRECT, Kind.IGNORED))
    objects, first = np.unique(targets[open_], return_index=True)
    mistaken = wrong[open_][first]
    np.add.at(matrix, (labels[objects], assignments.labels[mistaken]), 1)
    left = ~np.isin(found, (Kind.CORRECT, Kind.IGNORED))
    left[objects] = False
    matrix[:-1, -1] = np.bincount(labels[left], minlength=background)
    false = confident & (assignments.kinds[0] >= Kind.DOUBLE)
    false[mistaken] = False
    matrix[-1, :-1] = np.bincount(assignments.labels[false], minlength=background)
    return matrix
