"""Recognise masks that are written in an unusual form, and rewrite them as COCO's."""

from __future__ import annotations

from itertools import chain
from typing import Any

FLAT = "polygon that is not nested in a list"
POINTS = "polygon given as a list of points"
COUNTS = "run lengths in place of polygons"

_SHORTEST = 6  # numbers of the smallest polygon, three points


def rewrite_mask(mask: Any, height: int, width: int) -> tuple[Any, str | None]:
    """Rewrite a mask of an unusual but unambiguous form.

    Args:
        mask: the ``segmentation`` of an annotation.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        The mask in COCO's form and the form it had: :data:`FLAT`, :data:`POINTS` or
        :data:`COUNTS`. The form is None, and the mask the same, if it is COCO's or unknown.
    """
    if not isinstance(mask, list) or not mask:
        return mask, None
    if _is_number(mask[0]):
        if _are_counts(mask, height, width):
            return {"size": [height, width], "counts": mask}, COUNTS
        whole = len(mask) >= _SHORTEST and all(map(_is_number, mask))
        return ([mask], FLAT) if whole else (mask, None)
    if not isinstance(mask[0], list) or not mask[0]:
        return mask, None
    if _is_number(mask[0][0]):
        if len(mask) == 1:
            if not _are_counts(mask[0], height, width):
                return mask, None
            return {"size": [height, width], "counts": mask[0]}, COUNTS
        if len(mask[0]) != 2:
            return mask, None
    outline = _points(mask)
    if outline is not None:
        return [outline], POINTS
    parts = [_points(part) for part in mask]
    return (mask, None) if None in parts else (parts, POINTS)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _are_counts(values: list[Any], height: int, width: int) -> bool:
    """Whether a list holds the run lengths of an image, and no points within it."""
    if not all(type(value) is int and value >= 0 for value in values):
        return False
    points = len(values) % 2 == 0 and max(values) <= max(height, width)
    return not points and sum(values) == height * width


def _points(values: Any) -> list[Any] | None:
    """``x0 y0 x1 y1 ...`` of a list of at least three points; None if it is no such list."""
    if not isinstance(values, list) or len(values) < _SHORTEST // 2:
        return None
    # OpenCV's contours hold every point in a list of its own.
    pairs = [v[0] if isinstance(v, list) and len(v) == 1 else v for v in values]
    if all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        numbers = list(chain.from_iterable(pairs))
        if all(map(_is_number, numbers)):
            return numbers
    return None
