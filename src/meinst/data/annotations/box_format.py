"""Recognise boxes that are written in another format than COCO's ``x y width height``."""

from __future__ import annotations

import numpy as np

from meinst.data.shapes import Floats

SAMPLE = 1000
"""Number of annotations by which the format is recognised."""

# Median IoUs of boxes and the bounds of masks. Boxes may be much larger than what is visible.
_TRUSTED = 0.9  # from here on, no other format is tried
_RECOGNISED = 0.75  # of another format
_UNRELATED = 0.1  # below, boxes of no known format are not used


def box_format_fault(boxes: Floats, bounds: Floats, sizes: Floats) -> str | None:
    """What boxes appear to be if they are not ``x y width height``.

    Boxes and masks of a few annotations may differ; only the median counts.

    Args:
        boxes: ``(N, 4)`` as in the file, finite.
        bounds: ``(N, 4)`` tight ``x1 y1 x2 y2`` of the masks in pixels.
        sizes: ``(N, 2)`` height and width of the images.

    Returns:
        The format in words; None if the boxes fit their masks, or there are none.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # huge but finite numbers
        return _fault(boxes, bounds, sizes)


def _fault(boxes: Floats, bounds: Floats, sizes: Floats) -> str | None:
    own = _median_iou(_from_corner_and_size(boxes), bounds) if len(boxes) else 1.0
    if own >= _TRUSTED:
        return None
    scale = np.concatenate((sizes[:, ::-1], sizes[:, ::-1]), axis=1)
    candidates = {
        "appear to be x1 y1 x2 y2": boxes,
        "appear to be the centre, width and height": _from_centre(boxes),
        "appear to be normalised by the image size": _from_corner_and_size(boxes) * scale,
        "appear to be x1 y1 x2 y2, normalised by the image size": boxes * scale,
        "appear to be in YOLO format (normalised centre, width and height)": _from_centre(boxes)
        * scale,
    }
    scores = {name: _median_iou(corners, bounds) for name, corners in candidates.items()}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] >= max(_RECOGNISED, own):
        return best
    return "do not fit the masks" if own < _UNRELATED else None


def _from_corner_and_size(boxes: Floats) -> Floats:
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _from_centre(boxes: Floats) -> Floats:
    half = boxes[:, 2:] / 2
    return np.concatenate((boxes[:, :2] - half, boxes[:, :2] + half), axis=1)


def _median_iou(corners: Floats, bounds: Floats) -> float:
    """Median IoU of pairs of boxes ``x1 y1 x2 y2``; boxes of no area have an IoU of 0."""
    low = np.maximum(corners[:, :2], bounds[:, :2])
    high = np.minimum(corners[:, 2:], bounds[:, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=1)
    areas = [np.maximum(b[:, 2:] - b[:, :2], 0).prod(axis=1) for b in (corners, bounds)]
    union = np.maximum(areas[0] + areas[1] - overlap, np.finfo(np.float64).tiny)
    return float(np.median(overlap / union))
