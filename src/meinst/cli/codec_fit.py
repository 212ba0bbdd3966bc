"""``meinst codec fit``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from meinst.cli.arguments import parse_arguments
from meinst.cli.output import (
    check_each_once,
    check_file,
    mask_progress,
    tell_report,
    told_warnings,
)
from meinst.options import check_range

if TYPE_CHECKING:
    from meinst.codecs import Codec
    from meinst.data.mask_stream import MaskFilter
    from meinst.engine.config import CodecOptions

EXAMPLES = """
meinst codec fit train.json --output codec.npz
meinst codec fit shard*.json --workers 8 --output codec.npz --moments all.moments
meinst codec fit train.json --kind dct --components 120 --mask-size 56 --output dct.npz
meinst codec fit train.json --per-class --output classes.npz
torchrun --nproc-per-node 2 -m meinst codec fit train.json --output codec.npz
"""


@dataclass(frozen=True)
class FitArguments:
    """Fit a mask codec on the masks of COCO-format annotation files.

    One pass of exact sums: the same masks give the same file, in any order, over any number of
    files, workers or machines of one kind, and memory does not grow with their number, only with
    the largest file. An autoencoder is trained instead, on at most 200,000 masks. Images are not
    needed.

    Attributes:
        annotations: COCO-format annotation files (JSON).
        output: file for the codec (.npz).
        kind: pca (principal components, the paper's), dct (low frequencies), grid (the mask,
            smaller) or autoencoder (a small network).
        components: numbers for each mask, K; a square number for a grid.
        mask_size: side S of the grid that masks are drawn on inside their boxes.
        per_class: a basis for each category (pca).
        shrinkage: weight of the average mask in a category's basis, in masks (pca, per class).
        sigmoid: encode logits; else zeros and ones (pca, dct).
        whiten: codes of unit variance, as a detector's training wants them (pca, dct).
        exclude_crowd: leave out regions of many objects.
        min_size: leave out masks whose box is narrower or lower, in pixels.
        workers: processes, each of which takes whole files.
        moments: file for the sums (.moments), for `meinst codec merge`; not written by default.
        seed: start of an autoencoder's training.
    """

    annotations: tuple[Path, ...]
    output: Path
    kind: Literal["pca", "dct", "grid", "autoencoder"] = "pca"
    components: int = 60
    mask_size: int = 28
    per_class: bool = False
    shrinkage: float = 3000.0
    sigmoid: bool = True
    whiten: bool = True
    exclude_crowd: bool = True
    min_size: float = 0.0
    workers: int = 1
    moments: Path | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that count nothing."""
        check_range(self, 1, math.inf, "workers")
        check_range(self, 0, math.inf, "min_size")


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(
        FitArguments, arguments, "codec fit", EXAMPLES, positional="annotations"
    )

    from meinst.data.mask_stream import MaskFilter
    from meinst.engine.codec_fit import unfitted_codec
    from meinst.engine.config import CodecOptions

    check_each_once(options.annotations)
    check_file(options.output, options.annotations)
    wanted = CodecOptions(
        kind=options.kind,
        n_components=options.components,
        mask_size=options.mask_size,
        sigmoid=options.sigmoid,
        whiten=options.whiten,
        per_class=options.per_class,
        shrinkage=options.shrinkage,
        seed=options.seed,
    )
    chosen = MaskFilter(options.exclude_crowd, options.min_size)
    unfitted_codec(wanted)  # refuses what cannot be, before the files are read
    if options.kind in ("pca", "dct"):
        if options.moments is not None:
            check_file(options.moments, (*options.annotations, options.output), "--moments")
        return _fit_by_moments(options, wanted, chosen)
    if options.moments is not None:
        raise ValueError(f"--moments holds what pca and dct learn from; {options.kind} does not.")
    return _fit_on_masks(options, wanted, chosen)


def _fit_by_moments(options: FitArguments, wanted: CodecOptions, chosen: MaskFilter) -> int:
    """Count, over all processes where torchrun started several, and fit; the first one writes."""
    import torch

    from meinst.engine.codec_fit import count_masks, fitted_codec, sum_over_processes

    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    with mask_progress(shown=rank == 0) as advance:
        counts = count_masks(
            options.annotations,
            [options.mask_size],
            chosen,
            per_class=options.per_class,
            workers=options.workers,
            share=(rank, world),
            on_masks=advance,
        )
    for path, report in zip(options.annotations, counts.reports, strict=True):
        tell_report(path, report)  # of a process's own share, where there are several
    moments = counts.moments[options.mask_size]
    if world > 1:
        torch.distributed.init_process_group("gloo")
        sum_over_processes(moments)
        torch.distributed.destroy_process_group()
    if rank:
        return 0
    if options.moments is not None:  # first: with others they may serve where they alone do not
        moments.save(options.moments)
    codec = _fitted(lambda: fitted_codec(wanted, moments), options.annotations)
    return _save(codec, options.output, f" from {moments.count:,} masks")


def _fit_on_masks(options: FitArguments, wanted: CodecOptions, chosen: MaskFilter) -> int:
    from meinst.codecs import AutoencoderCodec
    from meinst.engine.codec_fit import MOST_HELD_MASKS, sample_masks, unfitted_codec

    if int(os.environ.get("RANK", "0")):  # torchrun's other processes have nothing to add
        return 0
    codec = unfitted_codec(wanted)
    if not isinstance(codec, AutoencoderCodec):  # a grid, which learns nothing, and reads nothing
        for path in options.annotations:
            if not path.is_file():
                raise FileNotFoundError(f"{path} does not exist.")
        return _save(codec, options.output, "")
    with mask_progress() as advance:
        masks = sample_masks(
            options.annotations,
            options.mask_size,
            MOST_HELD_MASKS,
            options.seed,
            chosen,
            on_masks=advance,
            on_report=tell_report,
        )
    with mask_progress(codec.iterations, noun="steps") as advance:
        _fitted(lambda: codec.fit(masks, on_step=lambda _: advance(1)), options.annotations)
    return _save(codec, options.output, f" from {len(masks):,} masks")


def _fitted(fit: Callable[[], Codec], annotations: Sequence[Path]) -> Codec:
    """Fit; warnings are told, errors name the files."""
    try:
        with told_warnings():
            return fit()
    except ValueError as error:
        more = f" and {len(annotations) - 1} more" if len(annotations) > 1 else ""
        raise ValueError(f"{annotations[0]}{more}: no codec can be fitted: {error}") from error


def _save(codec: Codec, output: Path, source: str) -> int:
    codec.save(output)
    print(
        f"{codec.kind} codec of {codec.n_components} numbers for masks of "
        f"{codec.mask_size} x {codec.mask_size}{source}: {output}"
    )
    return 0
