"""Convert soft masks to pixels: RLE, crops, label images or full-size masks.

The ``S x S`` values are stretched over the box: the centre of pixel ``x`` is at
``(x + 0.5 - x1) / (x2 - x1) * S - 0.5``. Values are interpolated bilinearly, with zeros outside
(``grid_sample`` with ``align_corners=False``), and a pixel belongs to the mask at 0.5 or more.
Pixels outside the box never reach 0.5, so only those inside are computed.

The kernels are single-threaded and release the GIL: a mask takes microseconds, and numba's own
threads do not survive a fork, as in data loader workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meinst.ops.rle_kernels import encode_masks, number_masks, paint_masks

MAX_CROP_PIXELS = 2**28
"""Pixels in boxes for which masks are made at once."""

CROPS_AT_ONCE = 2**26
"""Pixels in boxes for which callers that need not hold all masks make them together."""

MAX_RLE_PIXELS = 2**32 - 1
"""Pixels that COCO RLE can count: run lengths are unsigned 32-bit integers in pycocotools."""


def pixel_windows(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Find the pixels whose centres are inside each box, borders included.

    Args:
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels, finite.
        size: height and width of the image.

    Returns:
        ``(N, 4)`` int64, x, y, width and height; zeros where there is no such pixel or the box
        has no area.
    """
    boxes = boxes.astype(np.float64)
    limits = (size[1], size[0])
    first = np.clip(np.ceil(boxes[:, :2] - 0.5), 0, limits)
    last = np.clip(np.floor(boxes[:, 2:] - 0.5) + 1, 0, limits)
    windows = np.concatenate((first, last - first), axis=1).astype(np.int64)
    filled = (windows[:, 2:] > 0).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    windows[~filled] = 0
    return windows


def group_crops(
    boxes: np.ndarray, size: tuple[int, int], count: int, pixels: int = CROPS_AT_ONCE
) -> Iterator[slice]:
    """Divide objects into groups whose masks take little memory.

    Args:
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels, finite.
        size: height and width of the image.
        count: most objects of a group.
        pixels: most pixels in the boxes of a group, unless that of a single object has more.
    """
    areas = pixel_windows(boxes, size)[:, 2:].prod(axis=1)
    total = np.concatenate(([0], np.cumsum(areas)))
    first = 0
    while first < len(areas):
        last = int(np.searchsorted(total, total[first] + pixels, side="right")) - 1
        last = min(max(last, first + 1), first + count, len(areas))
        yield slice(first, last)
        first = last


def crop_masks(
    soft: Tensor, boxes: Tensor, size: tuple[int, int]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Convert soft masks to boolean masks cropped to their boxes.

    Args:
        soft: ``(N, S, S)`` values of 0 to 1.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in the image's pixels.
        size: height and width of the image.

    Returns:
        ``N`` bool arrays ``(h, w)``, empty if no pixel centre is inside the box, and ``(N, 2)``
        int64, x and y of their first pixels in the image.

    Raises:
        ValueError: If a shape is wrong, a box is not finite, or the boxes have more than
            ``MAX_CROP_PIXELS`` pixels together.
    """
    values, corners, windows = _prepare(soft, boxes, size)
    ends = np.concatenate(([0], np.cumsum(windows[:, 2] * windows[:, 3])))
    if ends[-1] > MAX_CROP_PIXELS:
        raise ValueError(
            f"{len(windows)} boxes have {ends[-1]} pixels, masks are limited to {MAX_CROP_PIXELS} "
            "at once; use run lengths, fewer detections, or detections resized to a smaller image."
        )
    canvas = np.zeros(ends[-1], dtype=np.bool_)
    paint_masks(values, corners, windows, ends[:-1], windows[:, 2].copy(), canvas)
    crops = [
        canvas[ends[n] : ends[n + 1]].reshape(height, width)  # (h, w)
        for n, (_, _, width, height) in enumerate(windows.tolist())
    ]
    return crops, windows[:, :2].copy()


def paste_masks(soft: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert soft masks to full-size boolean masks, one byte per pixel and mask.

    Args:
        soft: ``(N, S, S)`` values of 0 to 1.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in the image's pixels.
        size: height ``H`` and width ``W`` of the image.

    Returns:
        ``(N, H, W)`` bool on the device of ``soft``.

    Raises:
        ValueError: If a shape is wrong or a box is not finite.
    """
    values, corners, windows = _prepare(soft, boxes, size)
    height, width = size
    canvas = np.zeros((len(values), height, width), dtype=np.bool_)
    firsts = (np.arange(len(values)) * height + windows[:, 1]) * width + windows[:, 0]
    strides = np.full(len(values), width, dtype=np.int64)
    paint_masks(values, corners, windows, firsts, strides, canvas.reshape(-1))
    return torch.from_numpy(canvas).to(soft.device)


def soft_masks_to_rle(soft: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Convert soft masks to compressed COCO RLE, without full-size masks.

    The result is identical to ``pycocotools.mask.encode`` of :func:`paste_masks`.

    Args:
        soft: ``(N, S, S)`` values of 0 to 1.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in the image's pixels.
        size: height ``H`` and width ``W`` of the image.

    Returns:
        ``N`` dicts of ``size`` (``[H, W]``) and ``counts`` (``str``, ready for JSON).

    Raises:
        ValueError: If a shape is wrong, a box is not finite, or the image has more pixels than the
            format counts.
    """
    values, corners, windows = _prepare(soft, boxes, size)
    height, width = map(int, size)  # ready for JSON
    if height * width > MAX_RLE_PIXELS:
        raise ValueError(
            f"COCO RLE is limited to images of {MAX_RLE_PIXELS} pixels, got {height} x {width}; "
            "use polygons or crops."
        )
    text, begins = encode_masks(values, corners, windows, height, width)
    return [
        {"size": [height, width], "counts": text[begin:end].tobytes().decode("ascii")}
        for begin, end in pairwise(begins.tolist())
    ]


def paste_labels(
    soft: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    numbers: np.ndarray,
    canvas: np.ndarray,
    top: int = 0,
) -> None:
    """Write the numbers of masks into some rows of a label image; later masks cover earlier ones.

    The pixels of a mask are those of :func:`paste_masks`.

    Args:
        soft: ``(N, S, S)`` values of 0 to 1.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in the image's pixels.
        size: height ``H`` and width ``W`` of the image.
        numbers: ``(N,)`` of the type of ``canvas``.
        canvas: ``(h, W)`` whole numbers, the rows from ``top`` on; changed in place.
        top: the first row of ``canvas`` in the image.

    Raises:
        ValueError: If a shape is wrong or a box is not finite.
    """
    values, corners, windows = _prepare(soft, boxes, size)
    if canvas.ndim != 2 or canvas.shape[1] != size[1] or not 0 <= top <= size[0] - len(canvas):
        raise ValueError(
            f"the canvas must be some of the {size[0]} rows of {size[1]} pixels, got the shape "
            f"{canvas.shape} from row {top} on"
        )
    first = np.maximum(windows[:, 1], top)
    last = np.minimum(windows[:, 1] + windows[:, 3], top + len(canvas))
    windows[:, 1], windows[:, 3] = first, last - first
    windows[windows[:, 3] <= 0] = 0
    number_masks(values, corners, windows, numbers.astype(canvas.dtype), top, canvas)


def _prepare(
    soft: Tensor, boxes: Tensor, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check the arguments and return values and boxes as float32 arrays, and windows."""
    if soft.ndim != 3 or soft.shape[1] != soft.shape[2]:
        raise ValueError(f"soft masks must have the shape (N, S, S), got {tuple(soft.shape)}")
    if tuple(boxes.shape) != (len(soft), 4):
        raise ValueError(
            f"boxes must have the shape ({len(soft)}, 4), one for each soft mask, "
            f"got {tuple(boxes.shape)}"
        )
    if min(size) < 1:
        raise ValueError(f"the image must be at least 1 x 1 pixels, got {size[0]} x {size[1]}")
    values, corners = (
        np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())
        for tensor in (soft, boxes)
    )
    if not np.isfinite(corners).all():
        raise ValueError("boxes must be finite, got NaN or infinity; drop these boxes first")
    return values, corners, pixel_windows(corners, size)
