"""COCO's average precision, computed by hotcoco and equal to pycocotools."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import hotcoco

# The field of a result to hide from each evaluation: with both present, the evaluator would take
# the area of a mask, which decides between small, medium and large, from its box.
_HIDDEN = {"bbox": "segmentation", "segm": "bbox"}
_ANNOTATION_KEYS = ("id", "image_id", "category_id", "segmentation", "bbox")
_AT_50, _AT_75 = 0, 5  # indices into COCO's ten IoU thresholds 0.50, 0.55, ..., 0.95
_ALL, _SMALL, _MEDIUM, _LARGE = 0, 1, 2, 3  # indices into COCO's area ranges


@dataclass(frozen=True)
class APSummary:
    """Average precision of boxes or masks, 0 to 1; None if there are no such objects.

    Attributes:
        ap: mean over IoU thresholds 0.50 to 0.95.
        ap50: at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of objects smaller than 32 x 32 pixels.
        ap_medium: of objects smaller than 96 x 96 pixels.
        ap_large: of larger objects.
        ar: average recall over IoU thresholds 0.50 to 0.95.
        f1: best F1 score at IoU 0.50 (mean over classes) for a single score threshold.
        f1_threshold: that threshold; None if no detection is correct.
        per_class: the same values for each category, by name; empty in these entries themselves.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float | None
    f1: float | None
    f1_threshold: float | None
    per_class: dict[str, APSummary] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values under COCO's names (``AP``, ``AP50``, ``APs``, ...), ready for JSON."""
        figures: dict[str, Any] = {
            "AP": self.ap,
            "AP50": self.ap50,
            "AP75": self.ap75,
            "APs": self.ap_small,
            "APm": self.ap_medium,
            "APl": self.ap_large,
            "AR": self.ar,
            "F1_50": self.f1,
            "F1_50_threshold": self.f1_threshold,
        }
        if self.per_class:
            figures["per_class"] = {name: each.to_dict() for name, each in self.per_class.items()}
        return figures


@dataclass(frozen=True)
class CocoMetrics:
    """Result of :func:`coco_metrics`.

    Attributes:
        bbox: metrics of the boxes.
        segm: metrics of the masks.
    """

    bbox: APSummary
    segm: APSummary


def coco_metrics(
    ground_truth: Mapping[str, Any] | str | Path,
    results: Sequence[Mapping[str, Any]],
    max_detections: int = 100,
    category_ids: Sequence[int] | None = None,
) -> CocoMetrics:
    """Compute average precision; equal to pycocotools with the same limit of detections.

    Small, medium and large refer to the areas of masks for masks and of boxes for boxes. An
    annotation without ``area`` or ``bbox`` gets that of its mask, and one without ``iscrowd`` is
    not a crowd; pycocotools raises an error in each of these cases. Objects with a box and no mask
    are measured as boxes only: masks found in their boxes are neither right nor wrong.

    Args:
        ground_truth: the content of a COCO annotation file, or its path.
        results: dicts of ``image_id``, ``category_id``, ``score``, ``bbox`` (x, y, width, height
            in pixels) and ``segmentation`` (RLE of the image's size).
        max_detections: only this many detections per image and class count, best first.
        category_ids: the categories to measure; all categories if None.

    Raises:
        ValueError: if the limit is below 1 or a result's image is not in the ground truth.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections must be at least 1, got {max_detections}.")
    content: Mapping[str, Any]
    if isinstance(ground_truth, Mapping):
        content = ground_truth
    else:
        content = json.loads(Path(ground_truth).read_bytes())
    _check_images(content, results)
    names: dict[int, str] = {entry["id"]: entry["name"] for entry in content["categories"]}
    categories = sorted(names if category_ids is None else category_ids)

    truths, summaries = _load_for_both(content), {}
    for iou_type, hidden in _HIDDEN.items():
        visible = [{key: r[key] for key in r if key != hidden} for r in results]
        truth = truths[iou_type]
        precision, recall, scores = _tables(truth, visible, iou_type, max_detections, categories)
        per_class = {
            names[category]: _summary(precision[:, :, [c]], recall[:, [c]], scores[:, :, [c]])
            for c, category in enumerate(categories)
        }
        summaries[iou_type] = _summary(precision, recall, scores, per_class)
    return CocoMetrics(**summaries)


def _tables(
    truth: hotcoco.COCO,
    results: list[dict[str, Any]],
    iou_type: str,
    max_detections: int,
    categories: list[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and scores, see :func:`_summary`."""
    import hotcoco

    evaluation = hotcoco.COCOeval(truth, truth.load_res(results), iou_type)
    # The summaries of pycocotools and hotcoco hard-code a limit of 100 for AP, so the tables are
    # computed for a single limit and summarised here.
    evaluation.params.max_dets = [max_detections]
    evaluation.params.cat_ids = categories
    evaluation.evaluate()
    evaluation.accumulate()
    tables = evaluation.eval
    assert tables is not None  # set by accumulate()
    return tables["precision"][..., 0], tables["recall"][..., 0], tables["scores"][..., 0]


def _summary(
    precision: np.ndarray,
    recall: np.ndarray,
    scores: np.ndarray,
    per_class: dict[str, APSummary] | None = None,
) -> APSummary:
    """Average the tables of an evaluation.

    Args:
        precision: ``(thresholds, recalls, C, areas)``.
        recall: ``(thresholds, C, areas)``.
        scores: ``(thresholds, recalls, C, areas)``.
        per_class: summaries of the classes.
    """
    f1, threshold = _best_f1(precision[_AT_50, ..., _ALL], scores[_AT_50, ..., _ALL])
    return APSummary(
        ap=_mean(precision[..., _ALL]),
        ap50=_mean(precision[_AT_50, ..., _ALL]),
        ap75=_mean(precision[_AT_75, ..., _ALL]),
        ap_small=_mean(precision[..., _SMALL]),
        ap_medium=_mean(precision[..., _MEDIUM]),
        ap_large=_mean(precision[..., _LARGE]),
        ar=_mean(recall[..., _ALL]),
        f1=f1,
        f1_threshold=threshold,
        per_class=per_class or {},
    )


def _best_f1(precision: np.ndarray, scores: np.ndarray) -> tuple[float | None, float | None]:
    """The best F1 (mean over classes) and its score threshold, in hundredths.

    Args:
        precision: ``(R, C)`` at recalls 0 to 1; -1 for classes without objects.
        scores: ``(R, C)``, the score at which each recall is reached.
    """
    measured = precision[0] > -1
    if not measured.any():
        return None, None
    thresholds = np.arange(1, 100) / 100
    reached = (scores[None, :, measured] >= thresholds[:, None, None]).sum(1)  # (T, C) recalls
    last = (reached - 1).clip(min=0)
    at_recall = np.linspace(0, 1, len(precision))[last]
    at_precision = np.take_along_axis(precision[:, measured], last, axis=0) * (reached > 0)
    f1 = 2 * at_recall * at_precision / np.maximum(at_recall + at_precision, 1e-9)
    mean = f1.mean(1)
    if not mean.any():
        return 0.0, None
    # The tables contain only scores at which recall increases. Choose the highest of equally good
    # thresholds, since lower ones only add false positives.
    best = np.flatnonzero(mean == mean.max())[-1]
    return float(mean[best]), float(thresholds[best])


def _mean(values: np.ndarray) -> float | None:
    """Mean over the valid entries; COCO marks all others with -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None


def _check_images(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> None:
    """Reject results of unknown images, which would be silently ignored."""
    known = {image["id"] for image in ground_truth["images"]}
    unknown = sorted({result["image_id"] for result in results} - known)
    if unknown:
        raise ValueError(
            f"{len(unknown)} image ids of the results, the first {unknown[0]}, are not among the "
            f"{len(known)} images of the annotations; use the annotations of the predicted "
            "images."
        )


def _load(content: Mapping[str, Any]) -> hotcoco.COCO:
    """Load ground truth into hotcoco, with missing areas and boxes filled in."""
    import hotcoco

    annotations = [
        {key: entry.get(key) for key in _ANNOTATION_KEYS}
        | {"iscrowd": int(bool(entry.get("iscrowd"))), "area": _number(entry.get("area"))}
        for entry in content["annotations"]
    ]
    # Pass only these keys: hotcoco rejects dates that are numbers, as in exports of CVAT.
    images = [{key: entry[key] for key in ("id", "width", "height")} for entry in content["images"]]
    categories = [{key: entry[key] for key in ("id", "name")} for entry in content["categories"]]
    truth = hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})
    missing = [e for e in annotations if e["area"] is None or e["bbox"] is None]
    truth.update_anns([_completed(entry, truth) for entry in missing])
    return truth


def _load_for_both(content: Mapping[str, Any]) -> dict[str, hotcoco.COCO]:
    """Ground truth for boxes and for masks, which is the same if all objects have a mask."""
    truth, with_crowds = _load(content), _boxes_as_crowds(content)
    return {"bbox": truth, "segm": truth if with_crowds is content else _load(with_crowds)}


def _boxes_as_crowds(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Ground truth in which objects without a mask are crowd regions that fill their boxes."""
    if all(entry.get("segmentation") for entry in content["annotations"]):
        return content
    annotations = []
    for entry in content["annotations"]:
        if not entry.get("segmentation") and entry.get("bbox"):
            x, y, width, height = entry["bbox"]
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            entry = {**entry, "segmentation": [corners], "iscrowd": 1}
        annotations.append(entry)
    return {**content, "annotations": annotations}


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if usable else None


def _completed(annotation: Mapping[str, Any], truth: hotcoco.COCO) -> dict[str, Any]:
    """Fill in the area and box of an annotation from its mask, or the area from its box."""
    from hotcoco import mask

    area, box = annotation["area"], annotation["bbox"]
    if annotation["segmentation"]:
        runs = truth.ann_to_rle(dict(annotation))
        area = float(mask.area(runs)) if area is None else area
        box = mask.to_bbox(runs).tolist() if box is None else box
    elif area is None:
        area = box[2] * box[3]
    return {"id": annotation["id"], "area": area, "bbox": box}
