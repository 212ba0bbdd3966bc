"""The kinds of errors: every detection and every unfound object has exactly one.

The kinds extend those of TIDE (Bolya et al., ECCV 2020, arXiv 2008.08115) to masks. Detections are
matched to objects as COCO does: within a class, best score first, if the IoU of the masks is at
least ``t``. A detection without a match is of the first kind whose condition holds:

====================  ==============================================================================
kind                  condition
====================  ==============================================================================
``double``            mask IoU of at least ``t`` with an object of its class, which a detection of a
                      higher score has found
``wrong class``       mask IoU of at least ``t`` with an object of another class
``merged``            it covers at least half of each of two or more objects of its class
``split``             one of several pieces of an object of its class: at least half of it is inside
                      the object, their mask IoU is at least 0.1, and so it is for another detection
                      of this class with at least the working score, and the two share less than
                      half of the smaller one
``poor outline``      box IoU of at least ``t`` with the nearest object of its class: the box is
                      right, the mask is not
``loose box``         mask IoU of at least 0.1 with an object of its class
``both``              mask IoU of at least 0.1 with an object of another class
``false``             none of these: nothing of a measured class is there
====================  ==============================================================================

The nearest object is that of largest mask IoU; if all are 0, of largest box IoU. Crowd regions are
left out of all conditions; a detection whose only match is a crowd region is ignored.

An object that no detection of at least the working score finds has the kind of the best such
detection that is aimed at it (``wrong class``, ``merged``, ``split``, ``poor outline``,
``loose box``; a detection that was matched to one object and covers others has ``merged`` those).
Without any, it is ``missed``.

TIDE's localisation errors are ``loose box``, ``poor outline``, ``merged`` and ``split`` together,
and its background errors are ``false``. It has the same classes ``double``, ``wrong class``,
``both`` and ``missed``, up to detections that fit several: TIDE prefers localisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.diagnosis.overlaps import Overlaps, shared_pixels
from meinst.ops.match_kernels import match_greedily

COVERED = 0.5
"""Share of an object that a merging detection covers, and of a piece that is in its object."""
BACKGROUND = 0.1
"""Smallest mask IoU at which a detection is aimed at an object, as in TIDE."""


_TIE = 1e-9  # weight of the box IoU, which decides between equal mask IoUs


class Kind(IntEnum):
    """What became of a detection or an object."""

    CORRECT = 0
    IGNORED = 1
    DOUBLE = 2
    WRONG_CLASS = 3
    MERGED = 4
    SPLIT = 5
    POOR_OUTLINE = 6
    LOOSE_BOX = 7
    BOTH = 8
    FALSE = 9
    MISSED = 10

    @property
    def title(self) -> str:
        """The name in tables and plots."""
        return self.name.lower().replace("_", " ")


ERRORS = tuple(kind for kind in Kind if kind >= Kind.DOUBLE)
AIMED = (Kind.WRONG_CLASS, Kind.SPLIT, Kind.POOR_OUTLINE, Kind.LOOSE_BOX)
"""Kinds of detections that are aimed at one object; ``merged`` ones are aimed at several."""


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The kinds of one image's ``N`` detections at ``T`` IoU thresholds.

    Attributes:
        kinds: ``(T, N)`` int8, values of :class:`Kind`.
        targets: ``(T, N)`` int64, the object that a detection found or was aimed at; -1 for none.
        merges: ``(M, 2)`` int64, pairs of a merging detection and an object that it covers.
    """

    kinds: NDArray[np.int8]
    targets: NDArray[np.int64]
    merges: NDArray[np.int64]


def find_errors(
    overlaps: Overlaps,
    scores: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    working_score: float,
) -> ImageErrors:
    """Find the kind of each detection of an image; see the module.

    Args:
        overlaps: of the image's detections, best first, and its objects.
        scores: ``(N,)``, descending.
        thresholds: ``(T,)`` IoU thresholds ``t``.
        working_score: the smallest score of detections that count as pieces of an object.
    """
    shape = (len(thresholds), len(scores))
    if not overlaps.iou.size:
        kinds = np.full(shape, Kind.FALSE, dtype=np.int8)
        return ImageErrors(kinds, np.full(shape, -1), np.empty((0, 2), dtype=np.int64))
    iou, same = overlaps.iou, overlaps.same_class
    own, other = same & ~overlaps.crowd, ~same & ~overlaps.crowd
    matches = match_greedily(np.where(same, iou, -1.0), overlaps.crowd, thresholds)  # (T, N)
    nearest = np.where(own, iou + _TIE * overlaps.box_iou, -1.0).argmax(1)
    mistaken = np.where(other, iou, -1.0).argmax(1)
    near, near_box = (_values(each, nearest, own) for each in (iou, overlaps.box_iou))
    far = _values(iou, mistaken, other)
    covered = own & (overlaps.shared >= COVERED * overlaps.object_areas)
    merging = covered.sum(1) >= 2
    piece_of = _find_pieces(overlaps, own, scores >= working_score)

    level, none = thresholds[:, None], np.full(len(scores), -1)
    conditions = (
        (np.append(overlaps.crowd, False)[matches], Kind.IGNORED, none),  # -1 is no match
        (matches >= 0, Kind.CORRECT, matches),
        (near >= level, Kind.DOUBLE, nearest),
        (far >= level, Kind.WRONG_CLASS, mistaken),
        (merging, Kind.MERGED, none),
        (piece_of >= 0, Kind.SPLIT, piece_of),
        (near_box >= level, Kind.POOR_OUTLINE, nearest),
        (near >= BACKGROUND, Kind.LOOSE_BOX, nearest),
        (far >= BACKGROUND, Kind.BOTH, mistaken),
        (True, Kind.FALSE, none),
    )
    kinds, targets = _first_that_holds(conditions, shape)
    return ImageErrors(kinds, targets, merges=np.argwhere(covered & merging[:, None]))


def _first_that_holds(
    conditions: Sequence[tuple[Any, Kind, NDArray[np.int64]]], shape: tuple[int, int]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Kinds and targets, ``(T, N)``, of the first condition that holds for each detection."""
    tests = [np.broadcast_to(test, shape) for test, _, _ in conditions]
    targets = [np.broadcast_to(target, shape) for _, _, target in conditions]
    kinds = np.select(tests, [np.int8(kind) for _, kind, _ in conditions])
    return kinds.astype(np.int8), np.select(tests, targets)


def _values(
    table: NDArray[np.float64], index: NDArray[np.int64], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The indexed value of each row, ``(N,)``; -1 where it is not chosen."""
    rows = np.arange(len(table))
    return np.where(chosen[rows, index], table[rows, index], -1.0)


def _find_pieces(
    overlaps: Overlaps,
    own: NDArray[np.bool_],
    confident: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """The object that each detection is one of several pieces of, ``(N,)``; -1 for none."""
    areas = overlaps.detection_areas[:, None]
    inside = own & (overlaps.shared >= COVERED * areas) & (overlaps.iou >= BACKGROUND)
    pieces = np.full(len(own), -1)
    candidates = np.flatnonzero(inside.any(1))
    objects = np.where(inside, overlaps.iou, -1).argmax(1)[candidates]
    # Most objects have a single candidate: compare the others only.
    several = np.bincount(objects, minlength=own.shape[1])[objects] >= 2
    candidates, objects = candidates[several], objects[several]
    if not len(candidates):
        return pieces
    chosen = [overlaps.masks[n] for n in candidates]
    areas = overlaps.detection_areas[candidates]
    smaller = np.minimum(areas[:, None], areas)
    apart = shared_pixels(chosen, chosen) < COVERED * smaller
    partners = (objects[:, None] == objects) & apart & confident[candidates]
    split = partners.any(1)
    pieces[candidates[split]] = objects[split]
    return pieces
