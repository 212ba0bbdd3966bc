"""Label images strip by strip, at any scale, so that no whole image is ever held."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from meinst.detections import Detections
from meinst.inference.writers.base import CHUNK
from meinst.ops.paste import paste_labels, pixel_windows

Labels: TypeAlias = "NDArray[np.uint16 | np.uint32]"

log = logging.getLogger("meinst")


class LabelStrips:
    """Rasterises detections: pixels hold the number of their object, 0 is background.

    The ``n``-th detection has the number ``n``, from 1 on. Where masks overlap, the higher score
    wins, or the lower number if scores are equal. A reduced copy is rasterised from the same
    masks: its pixels hold what is at their centre.

    Args:
        detections: the detections.
        reduction: factor by which the sides of the image are divided, rounded up.

    Attributes:
        size: height and width of the label image.
        dtype: uint16, or uint32 for more than 65,535 objects.
    """

    def __init__(self, detections: Detections, reduction: int = 1) -> None:
        height, width = detections.image_size
        self.size = (-(-height // reduction), -(-width // reduction))
        self.dtype = label_dtype(len(detections))
        self._detections = detections
        self._boxes = detections.boxes / reduction
        windows = pixel_windows(self._boxes.numpy(), self.size)
        self._first, self._last = windows[:, 1], windows[:, 1] + windows[:, 3]
        self._order = np.argsort(-detections.scores.numpy(), kind="stable")[::-1]

    def __getitem__(self, rows: slice) -> Labels:
        """Some rows of the label image, ``(h, W)``."""
        top, bottom, _ = rows.indices(self.size[0])
        strip: Labels = np.zeros((bottom - top, self.size[1]), self.dtype)
        first, last = self._first[self._order], self._last[self._order]
        chosen = self._order[(first < bottom) & (last > top)]
        for start in range(0, len(chosen), CHUNK):
            some = chosen[start : start + CHUNK]
            soft = self._detections[some].soft_masks()
            numbers = (some + 1).astype(self.dtype)
            paste_labels(soft, self._boxes[some.copy()], self.size, numbers, strip, top)
        return strip

    def tiles(self, side: int) -> Iterator[Labels]:
        """Square tiles, row by row; those at the right and bottom are filled with zeros."""
        height, width = self.size
        for top in range(0, height, side):
            strip = self[top : top + side]
            for left in range(0, width, side):
                tile = strip[:, left : left + side]
                missing = side - tile.shape[0], side - tile.shape[1]
                yield np.pad(tile, ((0, missing[0]), (0, missing[1]))) if any(missing) else tile


def label_dtype(count: int) -> type[np.uint16] | type[np.uint32]:
    """The smallest type of 16 or 32 bits that can number so many objects."""
    return np.uint32 if count > np.iinfo(np.uint16).max else np.uint16


def report_depth(file: object, detections: Detections) -> None:
    """Log that a label image has 32 bits, which not all programs read."""
    if label_dtype(len(detections)) is np.uint32:
        log.warning(
            "%s has 32 bits per pixel, because %d objects do not fit into 16", file, len(detections)
        )


def reductions(size: tuple[int, int], largest: int) -> list[int]:
    """Factors 1, 2, 4, ... of a pyramid, up to the first level whose sides are within a limit."""
    factors = [1]
    while max(size) / factors[-1] > largest:
        factors.append(2 * factors[-1])
    return factors
