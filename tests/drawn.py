"""Detections whose masks are drawn, so that every pixel is known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meinst.codecs.packed import PackedMaskCodec
from meinst.detections import Detections
from meinst.inference.journal import Row
from meinst.inference.writers.base import PredictedImage

SIDE = 24  # of the drawn masks, in pixels of the image
NAMES = ("cell", "bläschen, klein")


def detections_of(
    masks: Sequence[np.ndarray],
    corners: Sequence[tuple[int, int]],
    size: tuple[int, int],
    labels: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
) -> Detections:
    """Square masks ``(S, S)`` at corners x, y of an image of ``size`` (H, W), best score first.

    A box of ``S x S`` whole pixels samples a mask at its values, so nothing is interpolated.
    """
    count = len(masks)
    side = masks[0].shape[0] if count else SIDE
    codec = PackedMaskCodec(side)
    soft = torch.from_numpy(np.array(masks, dtype=np.float32).reshape(count, side, side))
    boxes = torch.tensor([(x, y, x + side, y + side) for x, y in corners], dtype=torch.float32)
    ranked = np.linspace(0.9, 0.5, count) if scores is None else np.array(scores)
    return Detections(
        boxes=boxes.reshape(count, 4),
        scores=torch.from_numpy(ranked.astype(np.float32)),
        labels=torch.tensor(labels if labels is not None else [0] * count, dtype=torch.int64),
        codes=codec.encode(soft),
        image_size=size,
        codec=codec,
        class_names=NAMES,
    )


def shapes() -> list[np.ndarray]:
    """Masks of all kinds: a disc, a ring, two parts, touching corners, one pixel, none, all."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    radius = np.hypot(x - 12, y - 12)
    disc, ring = radius < 9.3, (radius < 11) & (radius > 5)
    island = ring | (radius < 2)
    parts = ((x < 8) & (y < 20)) | ((x > 14) & (y > 5))
    corners = (x < 12) == (y < 12)
    lattice = (x.astype(int) % 3 > 0) | (y.astype(int) % 3 > 0)
    pixel = np.zeros((SIDE, SIDE), bool)
    pixel[7, 19] = True
    line = np.zeros((SIDE, SIDE), bool)
    line[3:22, 5] = True
    nothing, everything = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)
    return [disc, ring, island, parts, corners, lattice, pixel, line, nothing, everything]


def drawn() -> Detections:
    """All shapes in an image of 100 x 130, some of them cut by its border or overlapping."""
    masks = shapes()
    corners = [(5, 5), (35, 4), (65, 6), (-10, 40), (30, 45), (60, 40), (90, 30), (100, 70)]
    corners += [(80, 10), (118, 88)]
    labels = [k % 2 for k in range(len(masks))]
    return detections_of(masks, corners, (100, 130), labels)


def nothing() -> Detections:
    """No detections in an image of 40 x 50."""
    return detections_of([], [], (40, 50))


def predicted(
    detections: Detections,
    source: Path = Path("a.tif"),
    name: str = "a",
    image_id: int = 1,
    **options: Any,
) -> PredictedImage:
    """The detections as writers get them, on a black image."""
    height, width = detections.image_size
    pixels = options.pop("pixels", np.zeros((height, width, 3), np.uint8))
    entry = {"id": image_id, "file_name": str(source), "width": width, "height": height}
    row = Row(entry, detections=len(detections))
    return PredictedImage(source, name, pixels, detections, row, **options)
