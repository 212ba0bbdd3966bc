"""Sizes of image files, for labels that do not state them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from meinst.data.images import ImageError, upright_size

_THREADS = 4  # headers are read, hardly anything is computed
_AT_ONCE = 1000

UNREADABLE = "image that cannot be read, its labels are not used"


def image_sizes(paths: Sequence[Path]) -> Iterator[tuple[int, int] | None]:
    """Width and height of each image, turned upright; None if it cannot be read."""
    for start in range(0, len(paths), _AT_ONCE):
        with ThreadPoolExecutor(_THREADS) as pool:  # closed before anything is yielded
            sizes = list(pool.map(_size, paths[start : start + _AT_ONCE]))
        yield from sizes


def _size(path: Path) -> tuple[int, int] | None:
    try:
        return upright_size(path)
    except ImageError:
        return None
