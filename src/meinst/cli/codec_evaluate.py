"""``meinst codec evaluate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.arguments import parse_arguments
from meinst.cli.output import mask_progress, read_all_told

if TYPE_CHECKING:
    from rich.table import Table

    from meinst.engine.codec_evaluate import CodecScores, ShapeScores

EXAMPLES = """
meinst codec evaluate codec.npz val.json
meinst codec evaluate codec.npz val-1.json val-2.json --output report
"""


@dataclass(frozen=True)
class CodecEvaluateArguments:
    """Measure what masks lose when a codec encodes and decodes them.

    Every instance that is no crowd is compared with its decoded mask at the resolution of its
    image: IoU and boundary IoU. The AP ceiling is COCO's mask AP of the decoded ground truth:
    what a detector that finds everything would reach with this codec. All numbers are 0 to 1;
    those without any object are "-" on the screen and null in the file.

    Attributes:
        codec: a codec file (.npz), also one of the published tool.
        annotations: COCO-format annotation files (JSON); images are not needed.
        output: folder for metrics.json, instances.csv and the page report.html; by default the
            numbers are only shown.
    """

    codec: Path
    annotations: tuple[Path, ...]
    output: Path | None = None


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(
        CodecEvaluateArguments, arguments, "codec evaluate", EXAMPLES, ("codec", "annotations")
    )

    from rich.console import Console

    from meinst.codecs import load_codec
    from meinst.engine.codec_evaluate import check_scores_folder, evaluate_codec, write_scores
    from meinst.engine.predict import check_folder

    if options.output is not None:
        check_folder(options.output)
        check_scores_folder(options.output)
    codec = load_codec(options.codec)
    data = read_all_told(options.annotations)
    total = sum(int((~each.crowd).sum()) for one in data for each in one.instances)
    with mask_progress(total) as advance:
        scores = evaluate_codec(codec, data, advance)
    if scores.unknown_categories:
        names = ", ".join(scores.unknown_categories)
        print(f"warning: not measured, the codec does not know them: {names}", file=sys.stderr)
    if options.output is not None:
        write_scores(scores, options.output)
        if find_spec("matplotlib") is None:
            print("for the page with pictures: pip install 'meinst[train]'", file=sys.stderr)
        else:
            from meinst.engine.codec_report import write_report

            write_report(scores, codec, data, options.output)
    console = Console()
    console.print(summary_table(scores))
    if len(scores.class_names) > 1:
        console.print(category_table(scores))
    return 0


def summary_table(scores: CodecScores) -> Table:
    """All instances and those of each size; the numbers of the whole stand in the title."""
    codec, ceiling = scores.codec, scores.ap_ceiling
    table = _table(
        f"{codec['kind']} codec, K = {codec['n_components']}, S = {codec['mask_size']}: "
        f"{scores.bytes_per_instance} bytes an instance\n"
        f"AP ceiling {_number(ceiling['AP'], 4)} (AP50 {_number(ceiling['AP50'])}, "
        f"AP75 {_number(ceiling['AP75'])}), pooled mIoU {_number(scores.pooled_miou, 4)}"
    )
    sizes = {"small": "APs", "medium": "APm", "large": "APl"}
    _add_row(table, "all", scores.overall, ceiling["AP"])
    for name, one in scores.by_size.items():
        _add_row(table, name, one, ceiling[sizes[name]])
    return table


def category_table(scores: CodecScores) -> Table:
    """The categories that have instances, the worst kept first."""
    table = _table("categories")
    known = [
        (one.mean_iou, name, one)
        for name, one in scores.by_category.items()
        if one.mean_iou is not None
    ]
    for _, name, one in sorted(known, key=lambda entry: entry[:2]):
        _add_row(table, name, one, scores.ap_ceiling["per_class"][name]["AP"])
    return table


def _table(title: str) -> Table:
    from rich.table import Table

    table = Table(title=title)
    table.add_column("")
    columns = (
        "masks",
        "mean\nIoU",
        "IoU\n1%",
        "IoU\n5%",
        "IoU\n25%",
        "boundary\nIoU",
        "AP\nceiling",
    )
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _add_row(table: Table, name: str, one: ShapeScores, ceiling: float | None) -> None:
    from rich.markup import escape

    values = (one.mean_iou, one.iou_p1, one.iou_p5, one.iou_p25, one.mean_boundary_iou, ceiling)
    table.add_row(escape(name), f"{one.instances:,}", *map(_number, values))


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
