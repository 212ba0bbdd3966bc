"""Checks of the fields of detections."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from meinst.detections.detections import Detections

_MAX_COORDINATE = 2**24  # up to here, float32 holds every integer


def check_fields(detections: Detections) -> None:
    """Reject fields that do not fit together.

    Raises:
        ValueError: naming the first one.
    """
    _check_tensors(detections)
    sides = tuple(detections.image_size)
    if len(sides) != 2 or not all(isinstance(side, Integral) and side >= 1 for side in sides):
        raise ValueError(
            "Detections: image_size must be a height and a width, integers of at least 1, "
            f"got {detections.image_size}"
        )
    if detections.codec.class_names not in (None, detections.class_names):
        raise ValueError(
            f"Detections: the codec has bases for the classes {detections.codec.class_names}, but "
            f"class_names are {detections.class_names}; use codec.for_classes(class_names)"
        )


def _check_tensors(detections: Detections) -> None:
    """Reject tensors of a wrong shape, type or range."""
    count = len(detections.scores) if detections.scores.ndim else 0
    shapes = {
        "scores": (count,),
        "boxes": (count, 4),
        "labels": (count,),
        "codes": (count, detections.codec.n_components),
        "track_ids": (count,),
    }
    for name, shape in shapes.items():
        value: Tensor | None = getattr(detections, name)
        if value is None:  # no tracks
            continue
        if tuple(value.shape) != shape:
            raise ValueError(
                f"Detections: {name} must have the shape {shape} for {count} scores and a "
                f"codec of {detections.codec.n_components} components, got {tuple(value.shape)}"
            )
        whole = {"labels": torch.int64, "track_ids": torch.int64}
        dtypes = whole | {"codes": detections.codec.code_dtype}
        dtype = dtypes.get(name, torch.float32)
        if value.is_floating_point() != dtype.is_floating_point:
            expected = str(dtype).removeprefix("torch.")
            raise ValueError(f"Detections: {name} must be {expected}, got {value.dtype}")
    # Written so that NaN is rejected too.
    if count and not bool((detections.boxes.abs() <= _MAX_COORDINATE).all()):
        raise ValueError(
            f"Detections: coordinates of boxes must be within {_MAX_COORDINATE} pixels, got "
            f"{float(detections.boxes.abs().max())}"
        )
    if count:
        low, high = (int(value) for value in detections.labels.aminmax())
        if low < 0 or high >= len(detections.class_names):
            raise ValueError(
                f"Detections: labels must be indices into {len(detections.class_names)} class "
                f"names, got {low} to {high}"
            )
