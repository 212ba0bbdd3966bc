"""Check image files by their headers, before a long run that needs them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from meinst.data.coco import CocoData, ImageRecord
from meinst.data.images import ImageError, check_header
from meinst.options import first_few

TOO_MANY = 0.5
"""Share of unusable image files from which a data set is rejected."""

_THREADS = 8  # headers are read, hardly anything is computed


def unusable_images(data: CocoData) -> list[ImageError]:
    """Errors of all image files that are missing, no images, or of another size than declared.

    Only headers are read, so files that are damaged further on are not found.

    Args:
        data: annotations with their images.
    """

    def check(record: ImageRecord) -> ImageError | None:
        assert record.path is not None
        try:
            check_header(record.path, (record.width, record.height))
        except ImageError as error:
            return error
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        return [error for error in pool.map(check, data.images) if error is not None]


def check_usable(data: CocoData, errors: Sequence[ImageError]) -> None:
    """Reject a data set of which most image files are unusable.

    Raises:
        ValueError: with the number of files and the first few errors.
    """
    if len(errors) > TOO_MANY * len(data):
        raise ValueError(f"{data.annotations}: {describe(data, errors)}")


def describe(data: CocoData, errors: Sequence[ImageError]) -> str:
    """The number of unusable image files, and the first few errors."""
    listed = first_few([str(error).rstrip(".") for error in errors], 3, "; ")
    return f"{len(errors)} of {len(data)} images cannot be used: {listed}"
