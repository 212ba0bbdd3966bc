"""Exact sums over the masks of annotations, in one pass over any number of files."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch

from meinst.codec_tools.mask_batches import MaskBatches, Source
from meinst.codecs import ClassMoments, Moments
from meinst.data.coco import Report
from meinst.data.mask_stream import MaskFilter


@dataclass(frozen=True, eq=False)
class MaskCounts:
    """Sums over the masks of annotations.

    Attributes:
        moments: the sums for each mask size.
        reports: for each source, the instances left out or repaired.
    """

    moments: dict[int, Moments] | dict[int, ClassMoments]
    reports: tuple[Report, ...]


def count_masks(
    sources: Sequence[Source],
    mask_sizes: Sequence[int],
    mask_filter: MaskFilter | None = None,
    *,
    per_class: bool = False,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
    on_masks: Callable[[int], None] = lambda _: None,
) -> MaskCounts:
    """Sum up the masks of annotations, for one or several mask sizes at once.

    The sums do not depend on the order of sources or the number of workers.

    Args:
        sources: annotation files, of which one per worker is in memory at a time, or their content.
        mask_sizes: the values of ``S``.
        mask_filter: which instances to use; all but crowds if None.
        per_class: keep separate sums for each class; classes of several sources are matched by
            name.
        workers: number of processes; each takes whole sources.
        share: ``(i, n)``, count every ``n``-th batch, starting with the ``i``-th of the first
            source. Each further source starts one batch earlier, since small files have only one
            batch, and these must not all fall to the same process.
        on_masks: called with the number of masks counted since the last call.

    Raises:
        FileNotFoundError: if a file does not exist.
        AnnotationError: if a file is not in COCO format.
        ValueError: if there are no sources.
    """
    if not sources:
        raise ValueError("At least one annotation file is needed, got none.")
    count = partial(_count, mask_sizes=mask_sizes, mask_filter=mask_filter, per_class=per_class)
    first, step = share
    shares = [((first - index) % step, step) for index in range(len(sources))]
    if workers <= 1 or len(sources) <= 1:
        pairs = zip(sources, shares, strict=True)
        return _merge(count(source, share, on_masks=on_masks) for source, share in pairs)
    with _worker_pool(min(workers, len(sources))) as pool:
        return _merge(_report_counts(pool.map(count, sources, shares), on_masks))


def _worker_pool(workers: int) -> ProcessPoolExecutor:
    # Forked workers start at once. Threads do not survive a fork: our kernels keep none, but torch
    # would wait for its threads forever, so it is limited to one.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    return ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,))


def _count(
    source: Source,
    share: tuple[int, int],
    mask_sizes: Sequence[int],
    mask_filter: MaskFilter | None,
    per_class: bool,
    on_masks: Callable[[int], None] = lambda _: None,
) -> MaskCounts:
    batches = MaskBatches(source, mask_filter, share)
    moments: dict[int, Moments] | dict[int, ClassMoments]
    if per_class:
        moments = {size: ClassMoments(size, batches.class_names) for size in mask_sizes}
    else:
        moments = {size: Moments(size) for size in mask_sizes}
    for batch in batches:
        labels = torch.from_numpy(batch.labels)
        for size, sums in moments.items():
            sums.add(torch.from_numpy(batch.masks(size)), labels)
        on_masks(len(batch))
    return MaskCounts(moments, (batches.report,))


def _report_counts(
    parts: Iterable[MaskCounts], on_masks: Callable[[int], None]
) -> Iterator[MaskCounts]:
    for part in parts:
        on_masks(max(sums.count for sums in part.moments.values()))
        yield part


def _merge(parts: Iterable[MaskCounts]) -> MaskCounts:
    """Add up sums as they arrive, so that only two are in memory at a time."""
    parts = iter(parts)
    total = next(parts)
    reports = list(total.reports)
    for part in parts:
        reports += part.reports
        for size, sums in total.moments.items():
            sums.merge(part.moments[size])  # type: ignore[arg-type]  # of the same class
    return MaskCounts(total.moments, tuple(reports))
