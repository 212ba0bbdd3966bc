"""Sizes of image files, for labels that do not state them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from meinst.data.images import ImageError, upright_size

UNREADABLE = "image that cannot be read, its labels are not used"


def image_sizes(paths: Sequence[Path]) -> Iterator[tuple[int, int] | None]:
    """Width and height of each image, turned upright; None if it cannot be read.

    Headers are parsed in Python, so threads would make it slower.
    """
    return map(_size, paths)


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return upright_size(path)
    except ImageError:
        return None
