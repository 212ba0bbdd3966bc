"""Instances to small binary masks: the grid of a mask is stretched over the instance's box.

The rule for polygons is COCO's (``rleFrPoly`` of pycocotools), the rule for bitmaps is
Detectron2's (RoIAlign, aligned, adaptive number of samples, then one half).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meinst.ops.bitmap_kernels import fill_from_bitmap
from meinst.ops.polygon_kernels import fill_polygons

# Boxes narrower than this many pixels are taken to be this wide.
_SMALLEST_SIDE = 0.1


def rasterize_polygons(
    polygons: Sequence[Sequence[NDArray[np.float64]]], boxes: NDArray[np.float64], size: int
) -> NDArray[np.uint8]:
    """Rasterise polygons inside their boxes, exactly as pycocotools does on a small canvas.

    A polygon is shifted by the box's corner, scaled by ``S / max(side, 0.1)`` along each axis
    and rasterised by COCO's rule (boundary walked on a grid five times finer); the parts of an
    instance are merged by union. A part of fewer than three points encloses nothing.

    Args:
        polygons: for each of ``G`` instances its parts, each flat ``x0 y0 x1 y1 ...`` in the
            frame of ``boxes``.
        boxes: ``(G, 4)`` xyxy, in any unit.
        size: mask side ``S``.

    Returns:
        ``(G, S, S)`` uint8 of 0 and 1.

    Raises:
        ValueError: numbers of polygons and boxes differ, a part has an odd number of
            coordinates, or a coordinate is not finite.
    """
    boxes = _checked_boxes(boxes, len(polygons), "polygons")
    parts = [part for instance in polygons for part in instance]
    lengths = np.fromiter((len(part) for part in parts), dtype=np.int64, count=len(parts))
    if np.any(lengths % 2):
        bad = int(np.flatnonzero(lengths % 2)[0])
        raise ValueError(
            f"A polygon is a flat list x0 y0 x1 y1 ..., so its length is even; "
            f"part {bad} has {lengths[bad]} numbers."
        )
    coordinates = np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
    if not np.isfinite(coordinates).all():
        bad = int(np.searchsorted(np.cumsum(lengths), np.argmin(np.isfinite(coordinates)), "right"))
        raise ValueError(
            f"Coordinates must be finite numbers; part {bad} holds NaN or infinity. "
            f"Remove such polygons first."
        )
    counts = np.fromiter((len(p) for p in polygons), dtype=np.int64, count=len(polygons))
    return rasterize_flat(coordinates, piece_starts(lengths), piece_starts(counts), boxes, size)


def rasterize_flat(
    coordinates: NDArray[np.float64],
    part_starts: NDArray[np.int64],
    instance_starts: NDArray[np.int64],
    boxes: NDArray[np.float64],
    size: int,
) -> NDArray[np.uint8]:
    """The same for polygons that lie in one array; nothing is checked.

    Args:
        coordinates: finite float64, ``x y x y ...`` of all parts, one after the other.
        part_starts: ``(Q + 1,)`` where each part begins in ``coordinates``, and the end.
        instance_starts: ``(G + 1,)`` where each instance begins in ``part_starts``.
        boxes: ``(G, 4)`` xyxy, finite.
        size: mask side ``S``.

    Returns:
        ``(G, S, S)`` uint8 of 0 and 1.
    """
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], _SMALLEST_SIDE)
    masks = np.zeros((len(boxes), size, size), dtype=np.uint8)  # (G, S, S)
    corners = np.ascontiguousarray(boxes[:, :2])
    fill_polygons(coordinates, part_starts, instance_starts, corners, size / sides, masks)
    return masks


def sample_bitmaps(
    bitmaps: Sequence[NDArray[np.bool_] | NDArray[np.uint8]],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float64],
    size: int,
    image_sizes: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Sample bitmaps inside boxes; equal to ``roi_align`` on the full-size bitmap, ``>= 0.5``.

    A bitmap may be a cut-out: beyond it everything is background. No bitmap is copied or
    converted.

    Args:
        bitmaps: ``G`` arrays ``(h, w)``, zero for background.
        offsets: ``(G, 2)`` x, y of each bitmap's corner in its picture, in whole pixels.
        boxes: ``(G, 4)`` xyxy in the picture's pixels.
        size: mask side ``S``.
        image_sizes: ``(G, 2)`` height and width of each picture. Samples in the outer half of
            a border pixel then see that pixel alone, as with ``roi_align``; without sizes they
            see background beyond it, which differs in a corner's cells at most.

    Returns:
        ``(G, S, S)`` uint8 of 0 and 1.

    Raises:
        ValueError: the numbers of bitmaps, offsets, boxes and sizes differ, a bitmap is not
            boolean or uint8 with two axes, or a box is not finite.
    """
    boxes = _checked_boxes(boxes, len(bitmaps), "bitmaps").astype(np.float32)
    offsets = _checked_pairs(offsets, len(bitmaps), "offsets")
    if image_sizes is None:
        image_sizes = np.full((len(bitmaps), 2), -1, dtype=np.int64)
    image_sizes = _checked_pairs(image_sizes, len(bitmaps), "image sizes")
    masks = np.zeros((len(bitmaps), size, size), dtype=np.uint8)  # (G, S, S)
    for g, bitmap in enumerate(bitmaps):
        if bitmap.ndim != 2 or bitmap.dtype not in (np.bool_, np.uint8):
            raise ValueError(
                f"Bitmaps are boolean or uint8 arrays of two axes; bitmap {g} is "
                f"{bitmap.dtype} of shape {bitmap.shape}."
            )
        pixels = np.ascontiguousarray(bitmap).view(np.uint8)
        left, top = offsets[g]
        height, width = image_sizes[g]
        fill_from_bitmap(pixels, left, top, boxes[g], width, height, masks[g])
    return masks


def piece_starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where consecutive pieces of the given lengths begin, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _checked_boxes(boxes: NDArray[np.float64], count: int, name: str) -> NDArray[np.float64]:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.shape != (count, 4):
        raise ValueError(
            f"Each instance needs one box: {count} {name} call for boxes of shape "
            f"({count}, 4), found {boxes.shape}."
        )
    if not np.isfinite(boxes).all():
        bad = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise ValueError(
            f"Boxes must be finite numbers; box {bad} is {boxes[bad].tolist()}. "
            f"Remove such instances first."
        )
    return boxes


def _checked_pairs(pairs: NDArray[np.int64], count: int, name: str) -> NDArray[np.int64]:
    pairs = np.asarray(pairs, dtype=np.int64)
    if pairs.shape != (count, 2):
        raise ValueError(f"{count} bitmaps call for {name} ({count}, 2), found {pairs.shape}.")
    return pairs
