"""Masks of instances in the forms that layouts need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.ground_truth import segmentation
from meinst.data.shapes import Bitmap, Polygons, Shape
from meinst.ops.outlines import mask_to_polygons


def outlines(shape: Shape) -> list[list[float]]:
    """Polygons ``x0 y0 x1 y1 ...`` in pixels; run lengths become polygons of the same pixels."""
    if isinstance(shape, Bitmap):
        return mask_to_polygons(shape.array().astype(bool), shape.offset)
    return [part.tolist() for part in shape]


def joined_outline(shape: Shape) -> list[float]:
    """One polygon for all parts of a mask, joined by lines that are walked forth and back."""
    first, *others = outlines(shape)
    outline = list(first)
    for part in others:
        outline += [*first[:2], *part, *part[:2]]
    return outline + first[:2] if others else outline


def as_polygons(parts: Sequence[Sequence[float]]) -> Polygons:
    """Flat lists ``x0 y0 x1 y1 ...`` as the shape of an object."""
    return tuple(np.array(part, dtype=np.float64) for part in parts)


def pixels(shape: Shape, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of a mask, ``(H, W)``, as COCO's tools fill polygons."""
    if isinstance(shape, Bitmap):
        mask = np.zeros((height, width), dtype=np.bool_)
        x1, y1, x2, y2 = shape.box
        mask[y1:y2, x1:x2] = shape.array()
        return mask
    from pycocotools import mask as coco_mask

    runs = coco_mask.frPyObjects(outlines(shape), height, width)
    filled: NDArray[Any] = coco_mask.decode(coco_mask.merge(runs))
    return filled.astype(np.bool_)


def coco_segmentation(shape: Shape) -> Any:
    """Polygons as a list, run lengths as COCO's compressed RLE."""
    mask = segmentation(shape)
    if not isinstance(shape, Bitmap):
        return mask
    from pycocotools import mask as coco_mask

    runs = coco_mask.frPyObjects(mask, *shape.image_size)
    return {**mask, "counts": runs["counts"].decode("ascii")}
