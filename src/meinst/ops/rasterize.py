"""Convert instances to small binary masks, whose grids are stretched over the boxes.

Polygons are rasterised as in COCO (``rleFrPoly`` of pycocotools), bitmaps as in Detectron2
(aligned RoIAlign with an adaptive number of samples, thresholded at one half).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from meinst.ops.bitmap_kernels import fill_from_bitmap
from meinst.ops.polygon_kernels import fill_polygons

# Smaller sides of boxes are treated as this long.
_SMALLEST_SIDE = 0.1


def rasterize_polygons(
    polygons: Sequence[Sequence[NDArray[np.float64]]], boxes: NDArray[np.float64], size: int
) -> NDArray[np.uint8]:
    """Rasterise polygons inside their boxes, exactly as pycocotools does on a small canvas.

    Polygons are shifted by the corner of the box, scaled by ``S / max(side, 0.1)`` along each axis
    and rasterised as in COCO. The mask is the union of the parts; parts of fewer than three points
    are empty.

    Args:
        polygons: the parts of each of ``G`` instances, each flat ``x0 y0 x1 y1 ...`` in the unit
            of ``boxes``.
        boxes: ``(G, 4)`` ``x1 y1 x2 y2``, in any unit.
        size: mask side ``S``.

    Returns:
        ``(G, S, S)`` uint8 of 0 and 1.

    Raises:
        ValueError: if the numbers of polygons and boxes differ, a part has an odd number of
            coordinates, or a coordinate is not finite.
    """
    boxes = _checked_boxes(boxes, len(polygons), "polygons")
    parts = [part for instance in polygons for part in instance]
    lengths = np.fromiter((len(part) for part in parts), dtype=np.int64, count=len(parts))
    if np.any(lengths % 2):
        bad = int(np.flatnonzero(lengths % 2)[0])
        raise ValueError(
            f"Polygons must be flat lists x0 y0 x1 y1 ... of even length; part {bad} has "
            f"{lengths[bad]} numbers."
        )
    coordinates = np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
    if not np.isfinite(coordinates).all():
        bad = int(np.searchsorted(np.cumsum(lengths), np.argmin(np.isfinite(coordinates)), "right"))
        raise ValueError(
            f"Coordinates must be finite; part {bad} contains NaN or infinity. Remove such "
            "polygons first."
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
    """Like :func:`rasterize_polygons`, for polygons in one array; without checks.

    Args:
        coordinates: finite float64, ``x y x y ...`` of all parts, concatenated.
        part_starts: ``(Q + 1,)`` start of each part in ``coordinates``, and the end.
        instance_starts: ``(G + 1,)`` start of each instance in ``part_starts``, and the end.
        boxes: ``(G, 4)`` ``x1 y1 x2 y2``, finite.
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
    """Sample bitmaps inside boxes; equal to ``roi_align`` of the full-size bitmap ``>= 0.5``.

    Bitmaps may be crops; everything outside is background. They are neither copied nor converted.

    Args:
        bitmaps: ``G`` arrays ``(h, w)``, zero for background.
        offsets: ``(G, 2)`` x, y of each bitmap's first pixel in its image.
        boxes: ``(G, 4)`` ``x1 y1 x2 y2`` in pixels of the image.
        size: mask side ``S``.
        image_sizes: ``(G, 2)`` height and width of each image. With them, samples in the outer
            half of a border pixel take its value, as in ``roi_align``; without them, they are
            interpolated with background.

    Returns:
        ``(G, S, S)`` uint8 of 0 and 1.

    Raises:
        ValueError: if the numbers of bitmaps, offsets, boxes and sizes differ, a bitmap is not a
            2-D bool or uint8 array, or a box is not finite.
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
                f"Bitmaps must be 2-D bool or uint8 arrays; bitmap {g} is "
                f"{bitmap.dtype} of shape {bitmap.shape}."
            )
        pixels = np.ascontiguousarray(bitmap).view(np.uint8)
        left, top = offsets[g]
        height, width = image_sizes[g]
        fill_from_bitmap(pixels, left, top, boxes[g], width, height, masks[g])
    return masks


def piece_starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Start of each of consecutive pieces of the given lengths, and the end of the last."""
    starts = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def _checked_boxes(boxes: NDArray[np.float64], count: int, name: str) -> NDArray[np.float64]:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.shape != (count, 4):
        raise ValueError(
            f"Each instance needs one box: boxes must be ({count}, 4) for {count} {name}, got "
            f"{boxes.shape}."
        )
    if not np.isfinite(boxes).all():
        bad = int(np.flatnonzero(~np.isfinite(boxes).all(axis=1))[0])
        raise ValueError(
            f"Boxes must be finite; box {bad} is {boxes[bad].tolist()}. Remove such instances "
            "first."
        )
    return boxes


def _checked_pairs(pairs: NDArray[np.int64], count: int, name: str) -> NDArray[np.int64]:
    pairs = np.asarray(pairs, dtype=np.int64)
    if pairs.shape != (count, 2):
        raise ValueError(f"{name} must be ({count}, 2) for {count} bitmaps, got {pairs.shape}.")
    return pairs
