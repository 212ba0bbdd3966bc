"""Stream the masks of an annotation file in batches, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from meinst.data.annotations.instance_batch import BatchReader, InstanceBatch
from meinst.data.coco import Report, report_of

# Annotations per batch: enough for efficient array operations, a few MB of memory.
_BATCH = 4096


@dataclass(frozen=True)
class MaskFilter:
    """Which instances to use.

    Attributes:
        exclude_crowd: drop crowd regions.
        min_size: drop instances whose box has a smaller side, in pixels.
    """

    exclude_crowd: bool = True
    min_size: float = 0.0


class MaskStream:
    """Iterate over the usable instances of an annotation file in batches.

    Attributes:
        class_names: names of the categories, by ascending category id; labels index them.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        chosen: MaskFilter | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Prepare to read; nothing is read yet.

        Args:
            document: the result of :func:`meinst.data.annotations.coco_file.load_document`.
            chosen: which instances to use.
            share: ``(i, n)`` to read every ``n``-th batch from the ``i``-th on.
        """
        categories = sorted(document["categories"], key=lambda category: int(category["id"]))
        self.class_names: tuple[str, ...] = tuple(category["name"] for category in categories)
        self._entries: Sequence[dict[str, Any]] = document["annotations"]
        self._reader = BatchReader.for_document(document)
        self._chosen = chosen or MaskFilter()
        self._share = share

    def __iter__(self) -> Iterator[InstanceBatch]:
        """Read the batches and add to :attr:`report`; iterate only once."""
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
        """Instances dropped or repaired so far, not counting those that the filter excludes."""
        return report_of(self._reader)
