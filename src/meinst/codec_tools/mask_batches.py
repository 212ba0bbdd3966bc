"""The masks of annotations, some thousands at a time, from files or from annotations in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import numpy as np

from meinst.data.annotations.coco_file import load_document
from meinst.data.annotations.instance_batch import InstanceBatch
from meinst.data.coco import CocoData, Report
from meinst.data.mask_stream import MaskFilter, MaskStream
from meinst.data.shapes import Instances

Source: TypeAlias = "CocoData | Path"
"""Annotations: the path of a COCO-format JSON file, or the content of such a file."""

_BATCH = 4096  # instances per batch of annotations in memory


class MaskBatches:
    """The usable instances of one source, batch by batch; iterate only once.

    Attributes:
        class_names: names of the categories, by ascending category id; labels index them.
    """

    def __init__(
        self,
        source: Source,
        mask_filter: MaskFilter | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Open the source.

        Args:
            source: the annotations.
            mask_filter: which instances to use; all but crowds if None.
            share: ``(i, n)``, use every ``n``-th batch, starting with the ``i``-th.

        Raises:
            FileNotFoundError: if the file does not exist.
            AnnotationError: if the file is not in COCO format.
        """
        self._filter = mask_filter or MaskFilter()
        self._share = share
        self._source: CocoData | MaskStream
        if isinstance(source, CocoData):
            self._source = source
        else:
            self._source = MaskStream(load_document(source, None), self._filter, share)
        self.class_names = self._source.class_names

    def __iter__(self) -> Iterator[InstanceBatch | Instances]:
        if isinstance(self._source, MaskStream):
            return iter(self._source)
        first, step = self._share
        return islice(self._chunks(self._source.instances), first, None, step)

    def _chunks(self, images: Sequence[Instances]) -> Iterator[Instances]:
        """Join the instances of several images that pass the filter."""
        chunk: list[Instances] = []
        count = 0
        for instances in images:
            sides = instances.boxes[:, 2:] - instances.boxes[:, :2]
            keep = (sides >= self._filter.min_size).all(axis=1) & instances.has_mask
            if self._filter.exclude_crowd:
                keep &= ~instances.crowd
            chunk.append(instances.select(np.flatnonzero(keep)))
            count += len(chunk[-1])
            if count >= _BATCH:
                yield _join(chunk)
                chunk, count = [], 0
        if chunk:
            yield _join(chunk)

    @property
    def report(self) -> Report:
        """Instances that reading has left out or repaired so far, apart from the filter."""
        return self._source.report


def select(batch: InstanceBatch | Instances, keep: np.ndarray) -> InstanceBatch | Instances:
    """The instances of a batch for which ``keep``, ``(N,)`` bool, is True."""
    if isinstance(batch, Instances):
        return batch.select(np.flatnonzero(keep))
    return batch.select(keep)


def source_path(source: Source) -> Path:
    """The path of the annotation file."""
    return source.annotations if isinstance(source, CocoData) else source


def _join(chunk: Sequence[Instances]) -> Instances:
    return Instances(
        boxes=np.concatenate([each.boxes for each in chunk]),
        labels=np.concatenate([each.labels for each in chunk]),
        shapes=tuple(chain.from_iterable(each.shapes for each in chunk)),
        crowd=np.concatenate([each.crowd for each in chunk]),
    )
