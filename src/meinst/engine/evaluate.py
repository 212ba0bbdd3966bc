"""How good a model is: COCO's average precision of its boxes and of its masks.

:func:`coco_metrics` turns ground truth and results into numbers; :func:`evaluate` makes the
results, image by image. Of an image nothing stays but its boxes, scores and run lengths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from meinst.data.coco import CocoData, ImageRecord
from meinst.data.images import ImageError, Pixels, load_image
from meinst.detections import Detections
from meinst.detector.meinst import Predictor
from meinst.engine.stream import find_in_each

if TYPE_CHECKING:
    import hotcoco

Summary = dict[str, Any]

# What an evaluator must not see of a result, or it would take the areas, which decide between
# small, medium and large, of masks from their boxes.
_HIDDEN = {"bbox": "segmentation", "segm": "bbox"}
_KEYS = ("id", "image_id", "category_id", "segmentation", "bbox")
_AT_50, _AT_75 = 0, 5  # places in COCO's ten IoU thresholds 0.50, 0.55, ..., 0.95
_ALL, _SMALL, _MEDIUM, _LARGE = 0, 1, 2, 3  # places in COCO's area ranges


@dataclass(frozen=True)
class ClassMatch:
    """Which classes of a model are which categories of an annotation file, by their names.

    Attributes:
        category_ids: for each class of the model the category's id, or None.
        only_model: classes without a category: their detections do not count.
        only_data: categories without a class: their objects do not count.
    """

    category_ids: tuple[int | None, ...]
    only_model: tuple[str, ...]
    only_data: tuple[str, ...]

    @property
    def matched_ids(self) -> list[int]:
        """Ids of the categories that are measured."""
        return [category for category in self.category_ids if category is not None]

    @property
    def warnings(self) -> list[str]:
        """A line for the classes and one for the categories that are not measured, if any."""
        left_out = (
            (self.only_data, "categories that the model does not know"),
            (self.only_model, "classes of the model without a category"),
        )
        return [f"not measured: {what}: {', '.join(names)}" for names, what in left_out if names]


@dataclass(frozen=True)
class Failure:
    """An image that could not be used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Metrics:
    """What :func:`evaluate` found.

    Attributes:
        bbox: the boxes' summary, as of :func:`coco_metrics`.
        segm: the masks' summary.
        max_detections: the limit for each image, and COCO's for each image and class.
        images: number of images, with those that failed.
        instances: number of objects to find, without crowds, of the measured categories.
        detections: number of results.
        classes: which classes were measured.
        failures: images that count as having no detections.
    """

    bbox: Summary
    segm: Summary
    max_detections: int
    images: int
    instances: int
    detections: int
    classes: ClassMatch
    failures: tuple[Failure, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file; paths as text."""
        return {
            "bbox": self.bbox,
            "segm": self.segm,
            "max_detections": self.max_detections,
            "images": self.images,
            "instances": self.instances,
            "detections": self.detections,
            "classes_only_in_model": list(self.classes.only_model),
            "classes_only_in_annotations": list(self.classes.only_data),
            "failures": [
                {"file": str(failure.path), "reason": failure.reason} for failure in self.failures
            ],
        }


def evaluate(
    model: Predictor,
    data: CocoData,
    *,
    max_detections: int | None = None,
    batch_size: int = 1,
    on_image: Callable[[], None] | None = None,
) -> Metrics:
    """Run a model on annotated images and measure its boxes and masks.

    Classes are matched to categories by name, and only those with a match are measured. Results
    count whatever their score. An image that cannot be read counts as one without detections;
    faulty instances, which the data's report lists, do not count at all.

    Args:
        model: in evaluation mode.
        data: annotations with their images.
        max_detections: most detections of an image, and COCO's limit; the model's own if None.
        batch_size: images that the network takes at once, where they have one size.
        on_image: called after each image, for a progress bar.

    Raises:
        ValueError: if no class of the model is among the categories, or the limit is below 1.
    """
    limit = model.selection.max_detections if max_detections is None else max_detections
    if limit < 1:
        raise ValueError(f"max_detections must be at least 1, got {limit}.")
    classes = match_classes(model.class_names, data)
    truth = ground_truth(data)
    results: list[dict[str, Any]] = []
    failures: list[Failure] = []
    stream = find_in_each(
        model,
        data.images,
        _pixels,
        batch_size=batch_size,
        score_threshold=0.0,
        max_detections=limit,
    )
    for one in stream:
        try:
            results += _results(one.result()[1], one.source, classes)
        except ImageError as error:
            failures.append(Failure(_path(one.source), str(error)))
        if on_image is not None:
            on_image()
    metrics = coco_metrics(truth, results, limit, classes.matched_ids)
    measured = [data.category_ids.index(category) for category in classes.matched_ids]
    return Metrics(
        bbox=metrics["bbox"],
        segm=metrics["segm"],
        max_detections=limit,
        images=len(data.images),
        instances=sum(
            int((np.isin(one.labels, measured) & ~one.crowd).sum()) for one in data.instances
        ),
        detections=len(results),
        classes=classes,
        failures=tuple(failures),
    )


def find_results(
    model: Predictor, record: ImageRecord, classes: ClassMatch, max_detections: int
) -> list[dict[str, Any]]:
    """Detect on one image, whatever the scores: COCO results of the matched classes.

    Raises:
        ImageError: if the image cannot be read, or is not of the annotated size.
    """
    found = model.predict(_pixels(record), score_threshold=0.0, max_detections=max_detections)
    return _results(found, record, classes)


def _pixels(record: ImageRecord) -> Pixels:
    return load_image(_path(record), (record.width, record.height))


def _results(found: Detections, record: ImageRecord, classes: ClassMatch) -> list[dict[str, Any]]:
    matched = torch.tensor([category is not None for category in classes.category_ids])
    ids = [category or 0 for category in classes.category_ids]  # the 0s are of no detection
    return found[matched[found.labels.cpu()]].to_coco(record.id, ids)


def ground_truth(data: CocoData) -> dict[str, Any]:
    """The content of an annotation file without the instances that reading it left out."""
    content: dict[str, Any] = json.loads(data.annotations.read_bytes())
    dropped = data.report.dropped_ids
    kept = [entry for entry in content["annotations"] if entry["id"] not in dropped]
    return {**content, "annotations": kept}


def match_classes(class_names: Sequence[str], data: CocoData) -> ClassMatch:
    """Match a model's classes to an annotation file's categories by their names.

    Raises:
        ValueError: if there is no match at all.
    """
    ids = dict(zip(data.class_names, data.category_ids, strict=True))
    if not ids.keys() & set(class_names):
        raise ValueError(
            f"none of the model's classes ({some_names(class_names)}) is among the categories of "
            f"{data.annotations} ({some_names(data.class_names)}): use annotations with these "
            "names."
        )
    return ClassMatch(
        category_ids=tuple(ids.get(name) for name in class_names),
        only_model=tuple(name for name in class_names if name not in ids),
        only_data=tuple(name for name in data.class_names if name not in class_names),
    )


def some_names(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _path(record: ImageRecord) -> Path:
    if record.path is None:
        raise ValueError(
            f"image {record.id} has no file: read the annotations with their image folder, "
            "read_coco(annotations, images)."
        )
    return record.path


def coco_metrics(
    ground_truth: Mapping[str, Any] | str | Path,
    results: Sequence[Mapping[str, Any]],
    max_detections: int = 100,
    category_ids: Sequence[int] | None = None,
) -> dict[str, Summary]:
    """Measure results in COCO's format; equal to pycocotools with the same limit.

    Areas of masks decide between small, medium and large where masks are measured, areas of
    boxes where boxes are. An annotation without ``area`` or ``bbox`` gets that of its mask, one
    without ``iscrowd`` is no crowd; pycocotools stops at any of these.

    Args:
        ground_truth: the content of an annotation file, or its path.
        results: dicts of ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height
            in pixels) and ``segmentation`` (RLE of the image's size).
        max_detections: of each image and class the best so many count.
        category_ids: the categories to measure; all of the ground truth if None.

    Returns:
        ``{"bbox": summary, "segm": summary}``. A summary holds ``AP`` (IoU 0.50 to 0.95),
        ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` (objects below 32 x 32 pixels, below
        96 x 96, larger), ``AR``, and ``F1_50``, the best F1 at IoU 0.50 (mean of the classes)
        that one score threshold gives, which is ``F1_50_threshold`` (None if nothing is right);
        all 0 to 1 and None where there are no such objects. ``per_class`` has the same of each
        category, by name.

    Raises:
        ValueError: if the limit is below 1 or a result's image is not in the ground truth.
    """
    import hotcoco

    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}.")
    content: Mapping[str, Any]
    if isinstance(ground_truth, Mapping):
        content = ground_truth
    else:
        content = json.loads(Path(ground_truth).read_bytes())
    _check_images(content, results)
    names: dict[int, str] = {entry["id"]: entry["name"] for entry in content["categories"]}
    chosen = sorted(names if category_ids is None else category_ids)
    truth = _load(content)

    metrics = {}
    for kind, hidden in _HIDDEN.items():
        seen = [{key: r[key] for key in r if key != hidden} for r in results]
        evaluation = hotcoco.COCOeval(truth, truth.load_res(seen), kind)
        # One limit, and the tables below read it: pycocotools' and hotcoco's own summaries
        # have 100 written into their "AP".
        evaluation.params.max_dets = [max_detections]
        evaluation.params.cat_ids = chosen
        evaluation.evaluate()
        evaluation.accumulate()
        tables = evaluation.eval
        assert tables is not None  # accumulate() makes them
        precision = tables["precision"][..., 0]  # (thresholds, recalls, C, areas)
        recall = tables["recall"][..., 0]  # (thresholds, C, areas)
        scores = tables["scores"][..., 0]  # as precision
        metrics[kind] = _summary(precision, recall, scores) | {
            "per_class": {
                names[category]: _summary(precision[:, :, [c]], recall[:, [c]], scores[:, :, [c]])
                for c, category in enumerate(chosen)
            }
        }
    return metrics


def _summary(precision: np.ndarray, recall: np.ndarray, scores: np.ndarray) -> Summary:
    """Average tables ``(thresholds, recalls, C, areas)``, ``(thresholds, C, areas)`` of recall."""
    return {
        "AP": _mean(precision[..., _ALL]),
        "AP50": _mean(precision[_AT_50, ..., _ALL]),
        "AP75": _mean(precision[_AT_75, ..., _ALL]),
        "APs": _mean(precision[..., _SMALL]),
        "APm": _mean(precision[..., _MEDIUM]),
        "APl": _mean(precision[..., _LARGE]),
        "AR": _mean(recall[..., _ALL]),
    } | _best_threshold(precision[_AT_50, ..., _ALL], scores[_AT_50, ..., _ALL])


def _best_threshold(precision: np.ndarray, scores: np.ndarray) -> Summary:
    """The score threshold, in hundredths, of the best mean F1 of the classes.

    Args:
        precision: ``(R, C)`` at recalls 0 to 1; -1 for classes without objects.
        scores: ``(R, C)`` that detections need for this recall.
    """
    there = precision[0] > -1
    if not there.any():
        return {"F1_50": None, "F1_50_threshold": None}
    thresholds = np.arange(1, 100) / 100
    reached = (scores[None, :, there] >= thresholds[:, None, None]).sum(1)  # (T, C) recalls
    last = (reached - 1).clip(min=0)
    at_recall = np.linspace(0, 1, len(precision))[last]
    at_precision = np.take_along_axis(precision[:, there], last, axis=0) * (reached > 0)
    f1 = 2 * at_recall * at_precision / np.maximum(at_recall + at_precision, 1e-9)
    mean = f1.mean(1)
    if not mean.any():
        return {"F1_50": 0.0, "F1_50_threshold": None}
    # The tables tell only of scores at which recall rises, so the highest of equals counts: below
    # it there are wrong ones alone.
    best = np.flatnonzero(mean == mean.max())[-1]
    return {"F1_50": float(mean[best]), "F1_50_threshold": float(thresholds[best])}


def _mean(values: np.ndarray) -> float | None:
    """Mean of the entries that were measured; COCO marks the others with -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def _check_images(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse results of images that are not there: they would silently count for nothing."""
    known = {image["id"] for image in ground_truth["images"]}
    unknown = sorted({result["image_id"] for result in results} - known)
    if unknown:
        raise ValueError(
            f"{len(unknown)} image ids of the results are not among the {len(known)} images of "
            f"the annotations, the first is {unknown[0]}: give the annotations of these images."
        )


def _load(content: Mapping[str, Any]) -> hotcoco.COCO:
    """Ground truth for hotcoco, which takes missing values for 0 without a word."""
    import hotcoco

    annotations = [
        {key: entry.get(key) for key in _KEYS}
        | {"iscrowd": int(bool(entry.get("iscrowd"))), "area": _number(entry.get("area"))}
        for entry in content["annotations"]
    ]
    # Nothing else of the file: hotcoco refuses a date that is a number, as CVAT's exports have it.
    images = [{key: entry[key] for key in ("id", "width", "height")} for entry in content["images"]]
    categories = [{key: entry[key] for key in ("id", "name")} for entry in content["categories"]]
    truth = hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})
    missing = [e for e in annotations if e["area"] is None or e["bbox"] is None]
    truth.update_anns([_completed(entry, truth) for entry in missing])
    return truth


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if usable else None


def _completed(annotation: Mapping[str, Any], truth: hotcoco.COCO) -> dict[str, Any]:
    """Area and box of an annotation, taken from its mask, or the area from its box."""
    from hotcoco import mask

    area, box = annotation["area"], annotation["bbox"]
    if annotation["segmentation"]:
        runs = truth.ann_to_rle(dict(annotation))
        area = float(mask.area(runs)) if area is None else area
        box = mask.to_bbox(runs).tolist() if box is None else box
    elif area is None:
        area = box[2] * box[3]
    return {"id": annotation["id"], "area": area, "bbox": box}
