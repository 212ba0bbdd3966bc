"""``meinst codec fit``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.codec_options import parse_with_codec_options
from meinst.cli.output import (
    check_distinct,
    check_file,
    mask_progress,
    print_report,
    print_warnings,
)
from meinst.codecs.options import CodecOptions
from meinst.options import check_range

if TYPE_CHECKING:
    from meinst.data.coco import CocoData

EXAMPLES = """
meinst codec fit my-data --output codec.npz
meinst codec fit train.json --output codec.npz
meinst codec fit shard*.json --workers 8 --output codec.npz --moments all.moments
meinst codec fit train.json --kind dct --n-components 120 --mask-size 56 --output dct.npz
meinst codec fit train.json --per-class --output classes.npz
torchrun --nproc-per-node 2 -m meinst codec fit train.json --output codec.npz
"""


@dataclass(frozen=True)
class FitArguments:
    """Fit a mask codec on the masks of data sets; of COCO files, images are not needed.

    Codecs of kinds pca and dct are fitted from exact sums in one pass: the file is the same, bit
    for bit, for any order and number of files, workers and machines of one type, and memory grows
    only with the largest file. An autoencoder is trained on at most 200,000 masks.

    Attributes:
        annotations: COCO-format annotation files (JSON), or data sets of any layout (folders or
            data.yaml; see `meinst data`), of which the training part is used.
        output: file for the codec (.npz).
        moments: file for the sums (.moments), as input for `meinst codec merge`; not written by
            default.
        crowd_as_instances: use crowd regions (iscrowd 1) too; by default they are left out.
        min_size: leave out masks whose box is narrower or shorter than this many pixels.
        workers: number of processes; each takes whole files.
    """

    annotations: tuple[Path, ...]
    output: Path
    moments: Path | None = None
    crowd_as_instances: bool = False
    min_size: float = 0.0
    workers: int = 1

    def __post_init__(self) -> None:
        """Reject values that are out of range."""
        check_range(self, 1, math.inf, "workers")
        check_range(self, 0, math.inf, "min_size")


def _source(path: Path) -> Path | CocoData:
    """A COCO file, which is streamed, or the training part of a data set."""
    if not path.is_dir() and path.suffix.lower() not in (".yaml", ".yml"):
        return path
    from meinst.data.datasets.dataset import open_dataset

    dataset = open_dataset(path)
    print(dataset, file=sys.stderr)
    return dataset.read(dataset.training_part())


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options, codec_options = parse_with_codec_options(
        FitArguments, arguments, "codec fit", EXAMPLES, ("annotations",)
    )

    from meinst.codec_tools.distributed import rank_and_world_size
    from meinst.codec_tools.fit import fit_codec_with_details
    from meinst.data.mask_stream import MaskFilter
    from meinst.locks import lock_file

    check_distinct(options.annotations)
    check_file(options.output, options.annotations)
    if options.moments is not None:
        check_file(options.moments, (*options.annotations, options.output), "--moments")
    first_process = rank_and_world_size()[0] == 0
    lock = lock_file(options.output) if first_process else nullcontext()
    with lock, print_warnings():
        fit = fit_codec_with_details(
            [_source(path) for path in options.annotations],
            CodecOptions(**codec_options),
            mask_filter=MaskFilter(not options.crowd_as_instances, options.min_size),
            workers=options.workers,
            moments_path=options.moments,
            distributed=True,
            progress=partial(mask_progress, shown=first_process),
            on_report=print_report,
        )
        if fit is None:  # another process writes the file
            return 0
        fit.codec.save(options.output)
    codec = fit.codec
    source = f", fitted on {fit.n_masks:,} masks" if fit.n_masks else ""
    print(
        f"{codec.kind} codec with {codec.n_components} components for "
        f"{codec.mask_size} x {codec.mask_size} masks{source}: {options.output}"
    )
    return 0
