"""From soft masks to pixels: RLE, crops and, where a caller wants them, full-size masks.

The rule (docs/method.md; ``grid_sample`` with ``align_corners=False``): the
``S x S`` values are stretched on the box, so the centre of pixel ``x`` falls at
``(x + 0.5 - x1) / (x2 - x1) * S - 0.5`` among them; bilinear between values, zeros outside,
and a pixel belongs to the mask at 0.5 or more. With values of 0 to 1 this cannot happen
outside the box, so nothing is computed there.

The kernels run on one thread without the GIL: they take microseconds for a mask, and threads
of numba's own do not survive a fork, as in the workers of a data loader.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meinst.ops.rle_kernels import encode_masks, paint_masks


def pixel_windows(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an image whose centres lie in each box, borders included.

    Args:
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels, finite.
        size: height and width of the image.

    Returns:
        ``(N, 4)`` int64, x, y, width and height; four zeros where there is no such pixel or
        the box has no area.
    """
    boxes = boxes.astype(np.float64)
    limits = (size[1], size[0])
    first = np.clip(np.ceil(boxes[:, :2] - 0.5), 0, limits)
    last = np.clip(np.floor(boxes[:, 2:] - 0.5) + 1, 0, limits)
    windows = np.concatenate((first, last - first), axis=1).astype(np.int64)
    filled = (windows[:, 2:] > 0).all(axis=1) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    windows[~filled] = 0
    return windows


def crop_masks(
    soft: Tensor, boxes: Tensor, size: tuple[int, int]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Boolean masks cut to the pixels of their boxes.

    Args:
        soft: ``(N, S, S)`` values of 0 to 1.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in the image's pixels.
        size: height and width of the image.

    Returns:
        ``N`` arrays ``(h, w)`` of bool, of no pixels where no pixel centre lies in the box,
        and ``(N, 2)`` int64, x and y of their first pixels in the image.

    Raises:
        ValueError: If a shape is wrong or a box is not finite.
    """
    values, corners, windows = _prepare(soft, boxes, size)
    ends = np.concatenate(([0], np.cumsum(windows[:, 2] * windows[:, 3])))
    canvas = np.zeros(ends[-1], dtype=np.bool_)
    paint_masks(values, corners, windows, ends[:-1], windows[:, 2].copy(), canvas)
    crops = [
        canvas[ends[n] : ends[n + 1]].reshape(height, width)  # (h, w)
        for n, (_, _, width, height) in enumerate(windows.tolist())
    ]
    return crops, windows[:, :2].copy()


def paste_masks(soft: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Full-size boolean masks: one byte for each pixel of the image and detection.

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
    """Compressed COCO RLE of whole-image masks, made without such masks.

    Equal to ``pycocotools.mask.encode`` of :func:`paste_masks`, character for character.

    Args:
        soft: ``(N, S, S)`` values of 0 to 1.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in the image's pixels.
        size: height ``H`` and width ``W`` of the image.

    Returns:
        ``N`` dicts of ``size`` (``[H, W]``) and ``counts`` (``str``, ready for JSON).

    Raises:
        ValueError: If a shape is wrong or a box is not finite.
    """
    values, corners, windows = _prepare(soft, boxes, size)
    height, width = map(int, size)  # ready for JSON
    text, begins = encode_masks(values, corners, windows, height, width)
    return [
        {"size": [height, width], "counts": text[begin:end].tobytes().decode("ascii")}
        for begin, end in pairwise(begins.tolist())
    ]


def _prepare(
    soft: Tensor, boxes: Tensor, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Check the arguments; return values and boxes as float32 arrays, and the windows."""
    if soft.ndim != 3 or soft.shape[1] != soft.shape[2]:
        raise ValueError(f"soft masks must have the shape (N, S, S), got {tuple(soft.shape)}")
    if tuple(boxes.shape) != (len(soft), 4):
        raise ValueError(
            f"boxes must have the shape ({len(soft)}, 4), one for each soft mask, "
            f"got {tuple(boxes.shape)}"
        )
    if min(size) < 1:
        raise ValueError(f"an image size must be at least 1 x 1, got {size[0]} x {size[1]}")
    values, corners = (
        np.ascontiguousarray(tensor.detach().to("cpu", torch.float32).numpy())
        for tensor in (soft, boxes)
    )
    if not np.isfinite(corners).all():
        raise ValueError("boxes must be finite; drop or clip the others before pasting")
    return values, corners, pixel_windows(corners, size)
