"""Detections as those of supervision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import supervision

    from meinst.detections.detections import Detections


def to_supervision(
    detections: Detections, crops: Sequence[np.ndarray], corners: np.ndarray
) -> supervision.Detections:
    """See :meth:`meinst.Detections.to_supervision`.

    Args:
        detections: the detections.
        crops: their masks ``(h, w)`` of bool.
        corners: ``(N, 2)`` x and y of the first pixel of each mask in the image.
    """
    try:
        from supervision import CompactMask
        from supervision import Detections as Supervised
    except ImportError as error:
        raise ImportError(
            "to_supervision() needs supervision 0.28 or newer: pip install 'meinst[app]'"
        ) from error
    compact = CompactMask(
        [], np.empty((0, 2), np.int32), np.empty((0, 2), np.int32), detections.image_size
    )
    parts = []
    for crop, (x, y) in zip(crops, corners.tolist(), strict=True):
        pixels = crop if crop.size else np.zeros((1, 1), dtype=np.bool_)
        height, width = pixels.shape
        # The corners of supervision are inclusive.
        whole = np.array([[0, 0, width - 1, height - 1]])
        part = CompactMask.from_dense(pixels[None], whole, (height, width))
        parts.append(part.with_offset(x, y, detections.image_size))
    if parts:
        compact = CompactMask.merge(parts)
    labels = detections.labels.cpu().numpy()
    return Supervised(
        xyxy=detections.boxes.detach().cpu().float().numpy(),
        mask=compact,
        confidence=detections.scores.detach().cpu().float().numpy(),
        class_id=labels,
        data={"class_name": np.array(detections.class_names, dtype=np.str_)[labels]},
    )
