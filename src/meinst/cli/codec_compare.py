"""``meinst codec compare``."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.arguments import parse_arguments
from meinst.cli.output import check_each_once, read_all_told, told_warnings

if TYPE_CHECKING:
    from rich.table import Table

    from meinst.data.coco import Report
    from meinst.engine.codec_compare import CompareRow

EXAMPLES = """
meinst codec compare val.json --fit train.json --output sweep
meinst codec compare val.json --kinds pca autoencoder --components 60 --mask-sizes 28 --output ae
"""


@dataclass(frozen=True)
class CompareArguments:
    """Measure mask codecs of several kinds, lengths and mask sizes on the same annotations.

    Writes compare.csv, compare.md, which names the best setting below 1000 bytes an instance,
    and plots (compare.png). The AP ceiling is COCO's mask AP of the ground truth after encoding
    and decoding: what a detector that finds everything would reach.

    Attributes:
        annotations: COCO-format annotation files (JSON) to measure on; images are not needed.
        output: folder for the table and the plots.
        fit: annotation files that learned codecs are fitted on; by default those measured on,
            which flatters them.
        kinds: pca, dct, grid and autoencoder (slow: each is trained for minutes).
        components: numbers for each mask, K; a grid takes the largest square below.
        mask_sizes: sides S of the grid that masks are drawn on.
    """

    annotations: tuple[Path, ...]
    output: Path
    fit: tuple[Path, ...] = ()
    kinds: tuple[str, ...] = ("pca", "dct", "grid")
    components: tuple[int, ...] = (30, 60, 120, 256)
    mask_sizes: tuple[int, ...] = (28, 56)


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(
        CompareArguments, arguments, "codec compare", EXAMPLES, positional="annotations"
    )

    from rich.console import Console
    from rich.progress import Progress

    from meinst.engine.codec_compare import (
        PLOT,
        best_line,
        compare_codecs,
        plan_settings,
        write_rows,
    )
    from meinst.engine.predict import check_folder

    settings = plan_settings(options.kinds, options.components, options.mask_sizes)
    check_each_once(options.fit)
    check_folder(options.output)
    data = read_all_told(options.annotations)
    errors = Console(stderr=True)
    bar = Progress(console=errors, transient=True, disable=not errors.is_terminal)
    with told_warnings(), bar as progress:
        task = progress.add_task("settings", total=len(settings))
        rows: list[CompareRow] = []

        def keep(row: CompareRow) -> None:
            rows.append(row)
            write_rows(rows, options.output)  # learned kinds take minutes each: nothing is lost
            progress.advance(task)

        def tell(path: Path, report: Report) -> None:
            if options.fit and str(report):  # those of the files measured on are told already
                warnings.warn(f"{path}: {report}", stacklevel=2)

        compare_codecs(settings, data, options.fit, keep, tell)
    if not rows:
        print("error: no setting could be fitted", file=sys.stderr)
        return 2
    if find_spec("matplotlib") is None:
        print("for plots: pip install 'meinst[train]'", file=sys.stderr)
    else:
        from meinst.engine.codec_pictures import compare_plot

        compare_plot([asdict(row) for row in rows], options.output / PLOT)
    console = Console()
    console.print(rows_table(rows))
    console.print(best_line(rows), soft_wrap=True, highlight=False)
    return 0 if len(rows) == len(settings) else 1


def rows_table(rows: Sequence[CompareRow]) -> Table:
    """The settings with the numbers that decide; the file has all of them."""
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
