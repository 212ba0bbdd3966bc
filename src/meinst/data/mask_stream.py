"""The masks of annotation files, some thousands at a time: memory does not grow with the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meinst.data.coco import Report, report_of
from meinst.data.coco_file import image_sizes
from meinst.data.instance_batch import BatchReader, InstanceBatch

# Annotations looked at together: enough for array operations to pay, a few MB of numbers.
_BATCH = 4096


@dataclass(frozen=True)
class MaskFilter:
    """Which annotations count.

    Attributes:
        exclude_crowd: leave out regions of many objects.
        min_size: leave out instances whose box is narrower or lower, in pixels.
    """

    exclude_crowd: bool = True
    min_size: float = 0.0


class MaskStream:
    """The usable instances of one annotation file, batch by batch.

    Attributes:
        class_names: the categories' names, by ascending category id; labels index them.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        chosen: MaskFilter | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Begin at the first batch.

        Args:
            document: what :func:`meinst.data.coco_file.load_document` returned.
            chosen: which instances count.
            share: take every ``n``-th batch, from the ``i``-th on, given as ``(i, n)``.
        """
        categories = sorted(document["categories"], key=lambda category: int(category["id"]))
        self.class_names: tuple[str, ...] = tuple(category["name"] for category in categories)
        self._entries: Sequence[dict[str, Any]] = document["annotations"]
        self._reader = BatchReader(image_sizes(document), [one["id"] for one in categories])
        self._chosen = chosen or MaskFilter()
        self._share = share

    def __iter__(self) -> Iterator[InstanceBatch]:
        """The batches, once; :attr:`report` grows with them."""
        first, step = self._share
        for start in range(first * _BATCH, len(self._entries), step * _BATCH):
            batch = self._reader.read(self._entries[start : start + _BATCH])
            sides = batch.boxes[:, 2:] - batch.boxes[:, :2]
            keep = np.asarray((sides >= self._chosen.min_size).all(axis=1))
            if self._chosen.exclude_crowd:
                keep &= ~batch.crowd
            yield batch if keep.all() else batch.select(keep)

    @property
    def report(self) -> Report:
        """What reading has left out and put right so far; the filter's choice is not in it."""
        return report_of(self._reader)
