"""``meinst codec compare``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.output import check_distinct, print_warnings, read_all_and_report
from meinst.cli.parser import parse_command

if TYPE_CHECKING:
    from rich.table import Table

    from meinst.codec_tools.compare import CompareRow
    from meinst.data.coco import Report

EXAMPLES = """
meinst codec compare val.json --fit train.json --output sweep
meinst codec compare val.json --kinds pca autoencoder --n-components 60 --mask-sizes 28 --output ae
"""


@dataclass(frozen=True)
class CompareArguments:
    """Measure mask codecs of several kinds, code lengths and mask sizes on the same annotations.

    Writes a table (compare.csv), a Markdown page that also names the best setting below 1000 bytes
    per instance (compare.md), and plots (compare.png). The AP ceiling is COCO's mask AP of the
    ground truth after encoding and decoding: the most that a detector can reach.

    Attributes:
        annotations: COCO-format annotation files (JSON) to measure on; images are not needed.
        output: folder for the table and the plots.
        fit: annotation files to fit codecs on; by default the files to measure on, which gives
            optimistic figures.
        kinds: kinds of codecs: pca, dct, grid, autoencoder (which takes minutes per setting).
        n_components: lengths of a mask's code, K; rounded down to a square number for a grid.
        mask_sizes: sides S of the grid on which masks are rasterised inside their boxes.
    """

    annotations: tuple[Path, ...]
    output: Path
    fit: tuple[Path, ...] = ()
    kinds: tuple[str, ...] = ("pca", "dct", "grid")
    n_components: tuple[int, ...] = (30, 60, 120, 256)
    mask_sizes: tuple[int, ...] = (28, 56)


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(
        CompareArguments, arguments, "codec compare", EXAMPLES, ("annotations",)
    )

    from rich.console import Console
    from rich.progress import Progress

    from meinst.codec_tools.compare import (
        PLOT,
        best_line,
        compare_codecs,
        plan_settings,
        write_rows,
    )
    from meinst.files import check_folder
    from meinst.locks import lock_folder

    settings = plan_settings(options.kinds, options.n_components, options.mask_sizes)
    check_distinct(options.fit)
    check_folder(options.output)
    data = read_all_and_report(options.annotations)
    errors = Console(stderr=True)
    bar = Progress(console=errors, transient=True, disable=not errors.is_terminal)
    with lock_folder(options.output), print_warnings(), bar as progress:
        task = progress.add_task("settings", total=len(settings))
        rows: list[CompareRow] = []

        def keep(row: CompareRow) -> None:
            rows.append(row)
            write_rows(rows, options.output)  # after each row, since a fit can take minutes
            progress.advance(task)

        compare_codecs(settings, data, options.fit, keep, _warn)
    if not rows:
        print("error: none of the codecs could be fitted; see the warnings above", file=sys.stderr)
        return 2
    _plot(rows, options.output / PLOT)
    console = Console()
    console.print(rows_table(rows))
    console.print(best_line(rows), soft_wrap=True, highlight=False)
    return 0 if len(rows) == len(settings) else 1


def _warn(path: Path, report: Report) -> None:
    """Warn of what is wrong with the annotations of a file."""
    faults = replace(report, noted=())
    if str(faults):
        warnings.warn(f"{path}: {faults}", stacklevel=2)


def _plot(rows: Sequence[CompareRow], path: Path) -> None:
    if find_spec("matplotlib") is None:
        print(
            "compare.png was not drawn; it needs matplotlib: pip install 'meinst[train]'",
            file=sys.stderr,
        )
        return
    from meinst.codec_tools.report.plots import compare_plot

    compare_plot([asdict(row) for row in rows], path)


def rows_table(rows: Sequence[CompareRow]) -> Table:
    """The settings with the most important scores; the file has all scores."""
    from rich.table import Table

    table = Table(title="mask codecs")
    table.add_column("kind")
    columns = ("K", "S", "bytes", "mean\nIoU", "IoU\n1%", "IoU\n5%", "boundary\nIoU", "AP\nceiling")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        values = (row.mean_iou, row.iou_p1, row.iou_p5, row.mean_boundary_iou, row.ap_ceiling)
        table.add_row(
            row.kind,
            *map(str, (row.n_components, row.mask_size, row.bytes)),
            *("-" if value is None else f"{value:.4f}" for value in values),
        )
    return table
