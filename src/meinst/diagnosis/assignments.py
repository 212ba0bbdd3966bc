"""What became of all detections and objects of a data set, in arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco import CocoData
from meinst.data.ground_truth import ClassMatch
from meinst.data.shapes import Instances, read_counts
from meinst.diagnosis.kinds import AIMED, BACKGROUND, ImageErrors, Kind, find_errors
from meinst.diagnosis.overlaps import Overlaps, measure_overlaps
from meinst.ops.mask_iou import boundary_distance, boundary_runs, mask_runs, runs_iou
from meinst.ops.match_kernels import match_greedily

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's IoU thresholds."""


@dataclass(frozen=True, eq=False)
class Assignments:
    """The ``N`` detections and ``G`` objects of a data set at ``T`` IoU thresholds.

    Detections are sorted by score, best first; objects by image. Both are of measured classes only.

    Attributes:
        class_names: names of the ``C`` measured classes.
        working_score: smallest score of the detections that are counted.
        results: ``(N,)`` indices into the results.
        images: ``(N,)`` indices into the images.
        scores: ``(N,)``.
        labels: ``(N,)`` indices into ``class_names``.
        kinds: ``(T, N)`` int8, values of :class:`~meinst.diagnosis.kinds.Kind`.
        targets: ``(T, N)`` indices of objects, -1 for none.
        merges: ``(M, 2)`` pairs of a merging detection and an object that it covers.
        outline_kinds: ``(T, N)`` int8, ``CORRECT``, ``IGNORED`` or ``FALSE``, if the IoU of a pair
            is the smaller of mask IoU and boundary IoU.
        iou: ``(N,)`` mask IoU with the object of the lowest threshold; NaN without one.
        box_iou: ``(N,)`` box IoU with it, likewise.
        boundary_iou: ``(N,)`` boundary IoU with it; NaN where the mask IoU is below the threshold.
        object_images: ``(G,)`` indices into the images.
        object_rows: ``(G,)`` indices into the instances of the image.
        object_labels: ``(G,)`` indices into ``class_names``.
        object_areas: ``(G,)`` square pixels, as COCO's evaluation takes them.
        crowd: ``(G,)`` bool.
        touched: ``(G,)`` bool, whether any detection, whatever its class and score, has a mask IoU
            of at least 0.1 with the object.
    """

    class_names: tuple[str, ...]
    working_score: float
    results: Integers
    images: Integers
    scores: Floats
    labels: Integers
    kinds: NDArray[np.int8]
    targets: Integers
    merges: Integers
    outline_kinds: NDArray[np.int8]
    iou: Floats
    box_iou: Floats
    boundary_iou: Floats
    object_images: Integers
    object_rows: Integers
    object_labels: Integers
    object_areas: Floats
    crowd: NDArray[np.bool_]
    touched: NDArray[np.bool_]

    def objects_per_class(self) -> Integers:
        """Number of objects to find of each class, ``(C,)``."""
        return np.bincount(self.object_labels[~self.crowd], minlength=len(self.class_names))

    def finders(self, level: int = 0) -> Integers:
        """The detection that found each object at a threshold, ``(G,)``; -1 for none."""
        found = np.full(len(self.object_images), -1)
        correct = np.flatnonzero(self.kinds[level] == Kind.CORRECT)
        found[self.targets[level, correct]] = correct
        return found

    @property
    def confident(self) -> NDArray[np.bool_]:
        """Whether detections have at least the working score, ``(N,)``."""
        return self.scores >= self.working_score

    def object_kinds(self, level: int = 0) -> NDArray[np.int8]:
        """The kind of each object, from detections with at least the working score, ``(G,)``."""
        kinds = np.full(len(self.object_images), Kind.MISSED, dtype=np.int8)
        _, objects, causes = self.aims(level)
        # Best detection last, since later values replace earlier ones.
        kinds[objects[::-1]] = causes[::-1]
        kinds[self.found(level)] = Kind.CORRECT
        kinds[self.crowd] = Kind.IGNORED
        return kinds

    def found(self, level: int = 0) -> NDArray[np.bool_]:
        """Whether a detection with at least the working score finds the object, ``(G,)``."""
        return np.append(self.confident, False)[self.finders(level)]  # -1 is none

    def aims(self, level: int) -> tuple[Integers, Integers, NDArray[np.int8]]:
        """Pairs of a detection and an object that it would have found without its error.

        Only detections with at least the working score are aimed at objects.

        Returns:
            Detections, best first, their objects, and the kinds of the errors, each ``(A,)``.
        """
        kinds = self.kinds[level]
        aimed = np.flatnonzero(np.isin(kinds, AIMED) & self.confident)
        merging = np.isin(kinds, (Kind.MERGED, Kind.CORRECT)) & self.confident
        merging = merging[self.merges[:, 0]]
        merging &= self.targets[level, self.merges[:, 0]] != self.merges[:, 1]
        merges = self.merges[merging]
        detections = np.concatenate((aimed, merges[:, 0]))
        objects = np.concatenate((self.targets[level, aimed], merges[:, 1]))
        causes = np.concatenate((kinds[aimed], np.full(len(merges), Kind.MERGED, dtype=np.int8)))
        order = np.argsort(detections, kind="stable")
        return detections[order], objects[order], causes[order]


def assign(
    data: CocoData,
    results: Sequence[Mapping[str, Any]],
    classes: ClassMatch,
    working_score: float,
    thresholds: Floats = THRESHOLDS,
) -> Assignments:
    """Find what became of every detection and object.

    One image is compared at a time, from run lengths: memory does not grow with pixels.

    Args:
        data: the annotations.
        results: detections in COCO's format, with ``bbox`` and ``segmentation`` (compressed RLE).
        classes: the measured categories.
        working_score: the smallest score of detections that are counted.
        thresholds: ``(T,)`` IoU thresholds.
    """
    ids = sorted(classes.matched_ids)
    label_of = {category: label for label, category in enumerate(ids)}
    of_image: dict[int, list[int]] = {}
    for n, result in enumerate(results):
        of_image.setdefault(result["image_id"], []).append(n)
    new_labels = np.array([label_of.get(category, -1) for category in data.category_ids])
    gathered = _Gathered()
    # By id, since ids decide between equal scores in COCO's evaluation.
    for index in sorted(range(len(data)), key=lambda i: data.images[i].id):
        record = data.images[index]
        size = record.height, record.width
        rows, objects = _measured(data.instances[index], new_labels)
        found = _ImageResults.of(results, of_image.get(record.id, []), label_of)
        overlaps = measure_overlaps(found.masks, found.boxes, found.labels, objects, size)
        errors = find_errors(overlaps, found.scores, thresholds, working_score)
        gathered.add_detections(index, found)
        gathered.add_pairs(overlaps, errors, thresholds, size)
        areas = data.fields[index].areas[rows]
        areas = np.where(np.isnan(areas), overlaps.object_areas, areas)
        gathered.add_objects(index, rows, objects, areas)
    names = dict(zip(data.category_ids, data.class_names, strict=True))
    return gathered.result(tuple(names[category] for category in ids), working_score)


def _measured(instances: Instances, new_labels: Integers) -> tuple[Integers, Instances]:
    """The instances of measured classes: their indices, and themselves with new labels."""
    rows = np.flatnonzero(new_labels[instances.labels] >= 0)
    chosen = instances.select(rows)
    labels = new_labels[chosen.labels]
    return rows, Instances(chosen.boxes, labels, chosen.shapes, chosen.crowd)


@dataclass(frozen=True, eq=False)
class _ImageResults:
    """The ``N`` detections of an image, best first; ``rows`` are indices into all results."""

    rows: Integers
    scores: Floats
    labels: Integers
    boxes: Floats
    masks: list[Mapping[str, Any]]

    @classmethod
    def of(
        cls, results: Sequence[Mapping[str, Any]], rows: list[int], label_of: Mapping[int, int]
    ) -> _ImageResults:
        rows = sorted(rows, key=lambda n: -results[n]["score"])
        boxes = np.array([results[n]["bbox"] for n in rows], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return cls(
            rows=np.array(rows, dtype=np.int64),
            scores=np.array([results[n]["score"] for n in rows], dtype=np.float64),
            labels=np.array([label_of[results[n]["category_id"]] for n in rows], dtype=np.int64),
            boxes=boxes,
            masks=[results[n]["segmentation"] for n in rows],
        )


@dataclass
class _Gathered:
    """The arrays of :class:`Assignments`, image by image; indices become those of the data set."""

    detections: int = 0
    objects: int = 0
    parts: dict[str, list[NDArray[Any]]] = field(default_factory=dict)

    def _append(self, **arrays: NDArray[Any]) -> None:
        for name, array in arrays.items():
            self.parts.setdefault(name, []).append(array)

    def add_detections(self, image: int, found: _ImageResults) -> None:
        images = np.full(len(found.rows), image)
        self._append(results=found.rows, images=images, scores=found.scores, labels=found.labels)

    def add_pairs(
        self, overlaps: Overlaps, errors: ImageErrors, thresholds: Floats, size: tuple[int, int]
    ) -> None:
        """Add kinds, and the IoU of each detection with its object."""
        boundary = boundary_overlaps(overlaps, float(thresholds[0]), size)
        targets = errors.targets[0]
        self._append(
            kinds=errors.kinds.T,
            targets=np.where(errors.targets >= 0, errors.targets + self.objects, -1).T,
            merges=errors.merges + np.array([self.detections, self.objects]),
            outline_kinds=_outline_kinds(overlaps, boundary, thresholds).T,
            iou=_with_target(overlaps.iou, targets),
            box_iou=_with_target(overlaps.box_iou, targets),
            boundary_iou=_with_target(boundary, targets),
            touched=np.any(overlaps.iou >= BACKGROUND, axis=0, keepdims=True)[0],
        )
        self.detections += len(targets)

    def add_objects(self, image: int, rows: Integers, objects: Instances, areas: Floats) -> None:
        self._append(
            object_images=np.full(len(rows), image),
            object_rows=rows,
            object_labels=objects.labels,
            object_areas=areas,
            crowd=objects.crowd,
        )
        self.objects += len(rows)

    def result(self, class_names: tuple[str, ...], working_score: float) -> Assignments:
        """The arrays of all images, detections sorted by score."""
        joined = {name: np.concatenate(parts) for name, parts in self.parts.items()}
        order = np.argsort(-joined["scores"], kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        merges = joined["merges"]
        merges[:, 0] = rank[merges[:, 0]]
        of_objects = {"merges", "touched", "crowd"}
        for name, array in joined.items():
            if name not in of_objects and not name.startswith("object_"):
                joined[name] = array[order]
        for name in ("kinds", "targets", "outline_kinds"):
            joined[name] = np.ascontiguousarray(joined[name].T)
        return Assignments(class_names=class_names, working_score=working_score, **joined)


def _with_target(values: Floats, targets: Integers) -> Floats:
    """The value of each detection with its target, ``(N,)``; NaN without one."""
    chosen = np.full(len(targets), np.nan)
    aimed = np.flatnonzero(targets >= 0)
    chosen[aimed] = values[aimed, targets[aimed]]
    return chosen


def _outline_kinds(overlaps: Overlaps, boundary: Floats, thresholds: Floats) -> NDArray[np.int8]:
    """``Assignments.outline_kinds`` of an image."""
    quality = np.where(np.isnan(boundary), -1.0, np.minimum(overlaps.iou, boundary))
    matches = match_greedily(quality, overlaps.crowd, thresholds)
    crowd = np.append(overlaps.crowd, False)[matches]  # -1 is none
    return np.select(
        [crowd, matches >= 0], [np.int8(Kind.IGNORED), np.int8(Kind.CORRECT)], np.int8(Kind.FALSE)
    )


def boundary_overlaps(overlaps: Overlaps, least: float, size: tuple[int, int]) -> Floats:
    """Boundary IoU ``(N, G)`` of the pairs of one class whose mask IoU is at least ``least``.

    It is NaN for other pairs, which cannot match, and infinite for crowds.
    """
    height, width = size
    distance = boundary_distance(height, width)
    values = np.full(overlaps.iou.shape, np.nan)
    values[overlaps.same_class & overlaps.crowd] = np.inf
    pairs = np.argwhere(overlaps.same_class & ~overlaps.crowd & (overlaps.iou >= least))

    def edges(masks: Sequence[Mapping[str, Any]], chosen: Integers) -> dict[int, NDArray[Any]]:
        return {
            n: boundary_runs(mask_runs(_counts(masks[n])), height, distance)
            for n in np.unique(chosen).tolist()
        }

    found, truth = edges(overlaps.masks, pairs[:, 0]), edges(overlaps.object_masks, pairs[:, 1])
    values[pairs[:, 0], pairs[:, 1]] = [runs_iou(found[n], truth[g]) for n, g in pairs.tolist()]
    return values


def _counts(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    counts = rle["counts"]
    return read_counts(counts.decode() if isinstance(counts, bytes) else counts)
