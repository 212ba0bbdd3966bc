"""Fit mask codecs on annotations of any size.

Linear codecs are fitted from exact sums over the masks, computed in one pass; an autoencoder is
trained on a sample of the masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from meinst.codec_tools.count import count_masks
from meinst.codec_tools.distributed import rank_and_world_size, sum_over_processes
from meinst.codec_tools.mask_batches import Source, source_path
from meinst.codec_tools.sample import MAX_SAMPLE, sample_masks
from meinst.codecs import (
    AutoencoderCodec,
    ClassMoments,
    Codec,
    LinearCodec,
    Moments,
    codec_from_options,
    load_moments,
)
from meinst.codecs.options import CodecOptions
from meinst.data.coco import CocoData, Report
from meinst.data.mask_stream import MaskFilter


class Progress(Protocol):
    """Opens a progress bar."""

    def __call__(
        self, total: int | None = None, *, noun: str = "masks"
    ) -> AbstractContextManager[Callable[[int], None]]:
        """Open a bar; the context is a function to call with the number of further items done."""


@dataclass(frozen=True, eq=False)
class CodecFit:
    """Result of :func:`fit_codec_with_details`.

    Attributes:
        codec: the fitted codec.
        n_masks: number of masks that it was fitted on; 0 for a codec that learns nothing.
    """

    codec: Codec
    n_masks: int


def _no_progress(
    total: int | None = None,  # noqa: ARG001
    *,
    noun: str = "masks",  # noqa: ARG001
) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda _: None)


def fit_codec(
    data: CocoData | str | Path | Sequence[CocoData | str | Path],
    options: CodecOptions | None = None,
    *,
    mask_filter: MaskFilter | None = None,
    workers: int = 1,
) -> Codec:
    """Fit a mask codec on annotations.

    Codecs of kinds pca and dct are the same, bit for bit, for any order and split of the masks and
    any number of workers, whether from files or from annotations in memory.

    Args:
        data: COCO-format annotation files, or their content from :func:`meinst.read_coco`; one or
            several. Files are streamed: memory grows only with the largest file.
        options: kind of codec and hyper-parameters.
        mask_filter: which instances to use; all but crowds if None.
        workers: number of processes; each takes whole files.

    Raises:
        FileNotFoundError: if a file does not exist.
        AnnotationError: if a file is not in COCO format.
        ValueError: if an option is out of range, or the masks are too few for the codec.

    Warns:
        UserWarning: if the masks span fewer directions than the codec has components, or a class
            has no masks.
    """
    fit = fit_codec_with_details(data, options, mask_filter=mask_filter, workers=workers)
    assert fit is not None  # not distributed
    return fit.codec


def fit_codec_with_details(
    data: CocoData | str | Path | Sequence[CocoData | str | Path],
    options: CodecOptions | None = None,
    *,
    mask_filter: MaskFilter | None = None,
    workers: int = 1,
    moments_path: Path | None = None,
    distributed: bool = False,
    progress: Progress = _no_progress,
    on_report: Callable[[Path, Report], None] = lambda *_: None,
) -> CodecFit | None:
    """Fit a mask codec on annotations; :func:`fit_codec` with more inputs and outputs.

    Args:
        data: as in :func:`fit_codec`, like the next three arguments.
        options: kind of codec and hyper-parameters.
        mask_filter: which instances to use.
        workers: number of processes.
        moments_path: file for the sums over the masks; not written by default.
        distributed: split the masks between the processes that torchrun has started, if any.
        progress: opens a progress bar for each stage.
        on_report: called for each file with the instances left out or repaired.

    Returns:
        The fit; None in all processes but the first.

    Raises:
        ValueError: also if the codec is not fitted from sums, but ``moments_path`` is given.
    """
    options = options or CodecOptions()
    sources = _sources(data)
    # Check the options before reading files, which may take an hour.
    codec = codec_from_options(options, class_names=("unknown",))
    rank, world_size = rank_and_world_size() if distributed else (0, 1)
    if not isinstance(codec, LinearCodec):
        if moments_path is not None:
            raise ValueError(
                f"--moments {moments_path}: a codec of kind {options.kind} is not fitted from "
                "sums over masks; leave out --moments, or use kind pca or dct."
            )
        if rank:
            return None
        return _fit_on_sample(codec, sources, mask_filter, options.seed, progress, on_report)
    with progress() as on_masks:
        counts = count_masks(
            sources,
            [options.mask_size],
            mask_filter,
            per_class=options.per_class,
            workers=workers,
            share=(rank, world_size),
            on_masks=on_masks,
        )
    for source, report in zip(sources, counts.reports, strict=True):
        on_report(source_path(source), report)
    moments = counts.moments[options.mask_size]
    if world_size > 1:
        sum_over_processes(moments)
    return None if rank else _fit_on_sums(moments, options, sources, moments_path)


def fit_from_moments(moments: Moments | ClassMoments, options: CodecOptions) -> LinearCodec:
    """Fit a linear codec from sums over masks.

    Args:
        moments: the sums; of separate classes if ``options.per_class``.
        options: kind of codec and hyper-parameters.

    Raises:
        ValueError: if the kind is not linear, an option is out of range, or the masks are too few.

    Warns:
        UserWarning: as :func:`fit_codec`.
    """
    names = moments.class_names if isinstance(moments, ClassMoments) else None
    codec = codec_from_options(options, names)
    if not isinstance(codec, LinearCodec):
        raise ValueError(
            f"A codec of kind {options.kind} is not fitted from sums over masks; use kind pca or "
            "dct."
        )
    return codec.fit_moments(moments)


def load_and_merge(paths: Sequence[Path]) -> Moments | ClassMoments:
    """Read files of sums over masks and add them up.

    Raises:
        FileNotFoundError: if a file does not exist.
        CodecFileError: if a file does not hold sums.
        ValueError: if the sums differ in mask size, or only some are of separate classes.
    """
    moments = load_moments(paths[0])
    for path in paths[1:]:
        other = load_moments(path)
        if type(other) is not type(moments):
            raise ValueError(
                f"{path} holds {other.kind}, {paths[0]} holds {moments.kind}; compute all with "
                "--per-class, or all without."
            )
        try:
            moments.merge(other)  # type: ignore[arg-type]  # of the same class
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return moments


def _fit_on_sums(
    moments: Moments | ClassMoments,
    options: CodecOptions,
    sources: Sequence[Source],
    moments_path: Path | None,
) -> CodecFit:
    # Save the sums before the fit: even if they are too few, they can be merged with others.
    if moments_path is not None:
        moments.save(moments_path)
    with _naming_files(sources):
        return CodecFit(fit_from_moments(moments, options), moments.count)


def _fit_on_sample(
    codec: Codec,
    sources: Sequence[Source],
    mask_filter: MaskFilter | None,
    seed: int,
    progress: Progress,
    on_report: Callable[[Path, Report], None],
) -> CodecFit:
    """Fit a codec on a sample of the masks; one that learns nothing reads nothing."""
    if codec.fitted:
        for source in sources:
            if isinstance(source, Path) and not source.is_file():
                raise FileNotFoundError(f"{source} does not exist.")
        return CodecFit(codec, 0)
    with progress() as on_masks:
        masks = sample_masks(
            sources, codec.mask_size, MAX_SAMPLE, seed, mask_filter, on_masks, on_report
        )
    steps = codec.iterations if isinstance(codec, AutoencoderCodec) else 1
    with progress(steps, noun="steps") as advance, _naming_files(sources):
        if isinstance(codec, AutoencoderCodec):
            codec.fit(masks, on_step=lambda _: advance(1))
        else:
            codec.fit(masks)
    return CodecFit(codec, len(masks))


def _sources(data: CocoData | str | Path | Sequence[CocoData | str | Path]) -> list[Source]:
    several = [data] if isinstance(data, (CocoData, str, Path)) else data
    if not several:
        raise ValueError("At least one annotation file is needed, got none.")
    return [each if isinstance(each, CocoData) else Path(each) for each in several]


@contextmanager
def _naming_files(sources: Sequence[Source]) -> Iterator[None]:
    """Add the names of the files to the message of a failed fit."""
    try:
        yield
    except ValueError as error:
        more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
        path = source_path(sources[0])
        raise ValueError(f"{path}{more}: cannot fit a codec: {error}") from error
