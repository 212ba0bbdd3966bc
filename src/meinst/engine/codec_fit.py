"""Fitting mask codecs on annotation files of any size.

:func:`fit_codec` is the whole way; what follows are its steps. Linear codecs are fitted from
exact sums, counted in one pass; an autoencoder from a sample of the masks.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meinst.codecs import (
    AutoencoderCodec,
    ClassMoments,
    Codec,
    DCTCodec,
    GridCodec,
    LinearCodec,
    Moments,
    PCACodec,
)
from meinst.data.coco import Report
from meinst.data.coco_file import load_document
from meinst.data.mask_stream import MaskFilter, MaskStream
from meinst.engine.config import CodecOptions

# An autoencoder learns in many passes, so its masks are held; more teach it little.
MOST_HELD_MASKS = 200_000


def fit_codec(annotations: Path, options: CodecOptions) -> Codec:
    """Fit a codec on all instances of an annotation file that are not crowds.

    Args:
        annotations: COCO-format JSON; no image is read.
        options: kind, length of the code, side of the mask, variant.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is at fault, or its masks are too few for a codec.
    """
    size = options.mask_size
    codec = unfitted_codec(options)  # before the file is read: it refuses what cannot be
    if isinstance(codec, GridCodec):
        return codec
    if isinstance(codec, LinearCodec):
        counts = count_masks([annotations], [size], per_class=options.per_class)
        moments = counts.moments[size]
        try:
            fitted = fitted_codec(options, moments)
        except ValueError as error:
            raise ValueError(f"{annotations}: no codec can be fitted: {error}") from error
        fitted.moments_ = None  # which every copy of a detector would copy
        return fitted
    masks = sample_masks([annotations], size, MOST_HELD_MASKS, options.seed)
    try:
        return codec.fit(masks)
    except ValueError as error:
        raise ValueError(f"{annotations}: no codec can be fitted: {error}") from error


def unfitted_codec(options: CodecOptions, class_names: tuple[str, ...] | None = None) -> Codec:
    """The codec that the options describe, for the given classes where it keeps them apart."""
    count, size = options.n_components, options.mask_size
    if options.kind == "grid":
        return GridCodec(count, size)
    if options.kind == "autoencoder":
        return AutoencoderCodec(count, size, seed=options.seed)
    if options.kind == "dct":
        return DCTCodec(count, size, sigmoid=options.sigmoid, whiten=options.whiten)
    return PCACodec(
        count,
        size,
        sigmoid=options.sigmoid,
        whiten=options.whiten,
        class_names=class_names,
        shrinkage=options.shrinkage,
    )


def fitted_codec(options: CodecOptions, moments: Moments | ClassMoments) -> LinearCodec:
    """The linear codec that the options describe, fitted from sums.

    Raises:
        ValueError: too few masks for it.
    """
    names = moments.class_names if isinstance(moments, ClassMoments) else None
    codec = unfitted_codec(options, names)
    assert isinstance(codec, LinearCodec)  # only these are fitted from sums
    return codec.fit_moments(moments)


@dataclass(frozen=True, eq=False)
class MaskCounts:
    """Sums over the masks of annotation files.

    Attributes:
        moments: the sums for each mask size.
        reports: for each file what reading it left out or put right.
    """

    moments: dict[int, Moments] | dict[int, ClassMoments]
    reports: tuple[Report, ...]


def count_masks(
    annotations: Sequence[Path],
    mask_sizes: Sequence[int],
    chosen: MaskFilter | None = None,
    *,
    per_class: bool = False,
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
    on_masks: Callable[[int], None] = lambda _: None,
) -> MaskCounts:
    """Sum up the masks of annotation files, for one or several mask sizes at once.

    The sums are the same for any order of files and any number of workers.

    Args:
        annotations: COCO-format JSON files; each is held in memory while it is counted.
        mask_sizes: the ``S``.
        chosen: which annotations count.
        per_class: keep the classes apart; over several files they are matched by name.
        workers: processes, each of which takes whole files.
        share: count every ``n``-th batch of each file, in the first from the ``i``-th on, in each
            after it from one earlier (small files have one batch, and not all are for the same
            process): ``(i, n)``.
        on_masks: called with a number of masks whenever so many more were counted.

    Raises:
        FileNotFoundError: a file does not exist.
        AnnotationError: a file is at fault.
        ValueError: no file is given.
    """
    if not annotations:
        raise ValueError("Masks are counted in at least one annotation file, found none.")
    count = partial(_count_file, mask_sizes=mask_sizes, chosen=chosen, per_class=per_class)
    first, step = share
    shares = [((first - place) % step, step) for place in range(len(annotations))]
    if workers <= 1 or len(annotations) <= 1:
        each = zip(annotations, shares, strict=True)
        return _merged(count(path, its_share, on_masks=on_masks) for path, its_share in each)
    # Forked workers start at once. A fork loses threads: our kernels keep none, and torch, which
    # would wait for its own for ever, is told to use one.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if "fork" in methods else "spawn")
    with ProcessPoolExecutor(
        min(workers, len(annotations)), context, torch.set_num_threads, (1,)
    ) as pool:
        return _merged(_told(pool.map(count, annotations, shares), on_masks))


def _count_file(
    path: Path,
    share: tuple[int, int],
    mask_sizes: Sequence[int],
    chosen: MaskFilter | None,
    per_class: bool,
    on_masks: Callable[[int], None] = lambda _: None,
) -> MaskCounts:
    stream = MaskStream(load_document(path, None), chosen, share)
    moments: dict[int, Moments] | dict[int, ClassMoments]
    if per_class:
        moments = {size: ClassMoments(size, stream.class_names) for size in mask_sizes}
    else:
        moments = {size: Moments(size) for size in mask_sizes}
    for batch in stream:
        labels = torch.from_numpy(batch.labels)
        for size, one in moments.items():
            one.add(torch.from_numpy(batch.masks(size)), labels)
        on_masks(len(batch))
    return MaskCounts(moments, (stream.report,))


def _told(parts: Iterable[MaskCounts], on_masks: Callable[[int], None]) -> Iterator[MaskCounts]:
    for part in parts:
        on_masks(max(one.count for one in part.moments.values()))
        yield part


def _merged(parts: Iterable[MaskCounts]) -> MaskCounts:
    """Add up sums as they come, so that no more than two of them are held."""
    parts = iter(parts)
    total = next(parts)
    reports = list(total.reports)
    for part in parts:
        reports += part.reports
        for size, one in total.moments.items():
            one.merge(part.moments[size])  # type: ignore[arg-type]  # all of one type
    return MaskCounts(total.moments, tuple(reports))


def sum_over_processes(moments: Moments | ClassMoments) -> None:
    """Add up the sums of all processes of torch's default group, in place, in all of them."""
    from torch import distributed

    if isinstance(moments, ClassMoments):
        counts = torch.tensor([0 if one is None else one.count for one in moments.classes])
        distributed.all_reduce(counts)
        for label in counts.nonzero().flatten().tolist():
            sum_over_processes(moments.of_class(label))
        return
    count = torch.tensor(moments.count)
    distributed.all_reduce(count)
    distributed.all_reduce(moments.products)
    moments.count = int(count)


def sample_masks(
    annotations: Sequence[Path],
    mask_size: int,
    limit: int,
    seed: int,
    chosen: MaskFilter | None = None,
    on_masks: Callable[[int], None] = lambda _: None,
    on_report: Callable[[Path, Report], None] = lambda *_: None,
) -> Tensor:
    """At most ``limit`` masks of annotation files, each as likely as any other.

    Args:
        annotations: COCO-format JSON files.
        mask_size: ``S``.
        limit: bounds the memory, ``S * S`` bytes for each mask.
        seed: the same gives the same masks.
        chosen: which annotations count.
        on_masks: called with a number of masks whenever so many more were read.
        on_report: called after each file with what reading it left out or put right.

    Returns:
        ``(N, S, S)`` uint8, in the order of the files where none had to be left out.
    """
    generator = np.random.default_rng(seed)
    held = np.empty((limit, mask_size, mask_size), dtype=np.uint8)
    seen = 0
    for path in annotations:
        stream = MaskStream(load_document(path, None), chosen)
        for batch in stream:
            # Reservoir sampling (Vitter 1985, algorithm R): mask n takes one of n + 1 rows, of
            # which the first ones are held.
            number = np.arange(seen, seen + len(batch))
            row = np.where(number < limit, number, generator.integers(0, number + 1))
            new = row < limit
            held[row[new]] = batch.select(new).masks(mask_size)  # the last one stays in a row
            seen += len(batch)
            on_masks(len(batch))
        on_report(path, stream.report)
        del stream  # and its file, before the next is read
    return torch.from_numpy(held[:seen])
