"""Shared pixels of detections and annotated objects, computed from run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from meinst.data.shapes import Bitmap, Instances, Shape

RLE: TypeAlias = "Mapping[str, Any]"
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How the ``N`` detections and the ``G`` objects of an image overlap.

    Attributes:
        masks: the masks of the detections as compressed RLE.
        object_masks: the masks of the objects, likewise.
        shared: ``(N, G)`` float64, pixels in both masks.
        iou: ``(N, G)`` IoU of the masks; for crowds the share of the detection that is inside.
        box_iou: ``(N, G)`` IoU of the boxes.
        detection_areas: ``(N,)`` float64, pixels.
        object_areas: ``(G,)`` float64, pixels.
        same_class: ``(N, G)`` bool.
        crowd: ``(G,)`` bool.
    """

    masks: Sequence[RLE]
    object_masks: Sequence[RLE]
    shared: Floats
    iou: Floats
    box_iou: Floats
    detection_areas: Floats
    object_areas: Floats
    same_class: NDArray[np.bool_]
    crowd: NDArray[np.bool_]


def measure_overlaps(
    masks: Sequence[RLE],
    boxes: Floats,
    labels: NDArray[np.int64],
    objects: Instances,
    image_size: tuple[int, int],
) -> Overlaps:
    """Compare the detections of an image with its annotated objects.

    Args:
        masks: ``N`` compressed RLE.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels.
        labels: ``(N,)`` indices into the class names of ``objects``.
        objects: the ``G`` objects.
        image_size: height and width.
    """
    truth = [shape_rle(shape, image_size) for shape in objects.shapes]
    shared = shared_pixels(masks, truth)
    areas, object_areas = mask_areas(masks), mask_areas(truth)
    union = np.where(objects.crowd, areas[:, None], areas[:, None] + object_areas - shared)
    return Overlaps(
        masks=masks,
        object_masks=truth,
        shared=shared,
        iou=shared / np.maximum(union, 1),
        box_iou=pairwise_iou(boxes, objects.boxes),
        detection_areas=areas,
        object_areas=object_areas,
        same_class=labels[:, None] == objects.labels,
        crowd=objects.crowd,
    )


def shared_pixels(first: Sequence[RLE], second: Sequence[RLE]) -> Floats:
    """Pixels in both masks of all pairs, ``(N, M)``."""
    from pycocotools import mask as coco_mask

    if not len(first) or not len(second):
        return np.zeros((len(first), len(second)))
    # For crowds, pycocotools divides the shared pixels by the area of the first mask.
    shares = coco_mask.iou(list(first), list(second), [1] * len(second))
    shared: Floats = np.rint(shares * mask_areas(first)[:, None])
    return shared


def mask_areas(masks: Sequence[RLE]) -> Floats:
    """Pixels of each mask, ``(N,)``.

    By hotcoco, because pycocotools 2.0.11 fails on NumPy 2 for more than 255 masks.
    """
    from hotcoco import mask as hotcoco_mask

    known = [dict(mask) for mask in masks]
    return np.array(hotcoco_mask.area(known) if known else [], dtype=np.float64)


def shape_rle(shape: Shape, image_size: tuple[int, int]) -> dict[str, Any]:
    """An annotated mask as compressed RLE; the union of all polygons."""
    from pycocotools import mask as coco_mask

    if isinstance(shape, Bitmap):
        counts = {"size": list(shape.image_size), "counts": shape.image_counts()}
        rle: dict[str, Any] = coco_mask.frPyObjects(counts, *image_size)
        return rle
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(list(shape), *image_size))
    return merged


def pairwise_iou(first: Floats, second: Floats) -> Floats:
    """IoU ``(N, M)`` of boxes ``x1 y1 x2 y2``; 0 for two boxes of no area."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - shared
    iou: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou
