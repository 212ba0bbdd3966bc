"""``meinst codec evaluate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.output import mask_progress, read_all_and_report
from meinst.cli.parser import parse_command

if TYPE_CHECKING:
    from rich.table import Table

    from meinst.codec_tools.evaluate import CodecScores, ShapeScores

EXAMPLES = """
meinst codec evaluate codec.npz val.json
meinst codec evaluate codec.npz val-1.json val-2.json --output report
"""


@dataclass(frozen=True)
class CodecEvaluateArguments:
    """Measure how well a codec reconstructs the masks of annotations.

    Every instance that is not a crowd is encoded, decoded and compared at the resolution of its
    image, by IoU and boundary IoU. The AP ceiling is COCO's mask AP of the ground truth after
    encoding and decoding: the most that a detector with this codec can reach. All scores are
    between 0 and 1; where there are no objects, they are "-" on the screen and null in files.

    Attributes:
        codec: codec file (.npz), from `meinst codec fit` or the published tool.
        annotations: COCO-format annotation files (JSON); images are not needed.
        output: folder for metrics.json, instances.csv and report.html; by default, scores are only
            printed.
        crowd_as_instances: use crowd regions (iscrowd 1) too; by default they are left out.
    """

    codec: Path
    annotations: tuple[Path, ...]
    output: Path | None = None
    crowd_as_instances: bool = False


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(
        CodecEvaluateArguments, arguments, "codec evaluate", EXAMPLES, ("codec", "annotations")
    )

    from meinst.codec_tools.evaluate import check_scores_folder
    from meinst.files import check_folder
    from meinst.locks import lock_folder

    if options.output is None:
        return _evaluate(options)
    check_folder(options.output)
    check_scores_folder(options.output)
    with lock_folder(options.output):
        return _evaluate(options)


def _evaluate(options: CodecEvaluateArguments) -> int:
    from rich.console import Console

    from meinst.codec_tools.evaluate import evaluate_codec, write_scores
    from meinst.codecs import load_codec

    codec = load_codec(options.codec)
    data = read_all_and_report(options.annotations, crowd_as_instances=options.crowd_as_instances)
    total = sum(int((~instances.crowd).sum()) for file in data for instances in file.instances)
    with mask_progress(total) as advance:
        scores = evaluate_codec(codec, data, advance)
    if scores.unknown_categories:
        names = ", ".join(scores.unknown_categories)
        print(
            f"warning: not measured: categories that are not classes of the codec: {names}",
            file=sys.stderr,
        )
    if options.output is not None:
        write_scores(scores, options.output)
        if find_spec("matplotlib") is None:
            print(
                "report.html was not written; it needs matplotlib: pip install 'meinst[train]'",
                file=sys.stderr,
            )
        else:
            from meinst.codec_tools.report.html import write_report

            write_report(scores, codec, data, options.output)
    console = Console()
    console.print(summary_table(scores))
    if len(scores.class_names) > 1:
        console.print(category_table(scores))
    return 0


def summary_table(scores: CodecScores) -> Table:
    """Scores of all instances and of each size, with overall figures in the title."""
    codec, ceiling = scores.codec, scores.ap_ceiling
    table = _table(
        f"{codec['kind']} codec, K = {codec['n_components']}, S = {codec['mask_size']}: "
        f"{scores.bytes_per_instance} bytes per instance\n"
        f"AP ceiling {_number(ceiling.ap, 4)} (AP50 {_number(ceiling.ap50)}, "
        f"AP75 {_number(ceiling.ap75)}), pooled mIoU {_number(scores.pooled_miou, 4)}"
    )
    ceilings = {"small": ceiling.ap_small, "medium": ceiling.ap_medium, "large": ceiling.ap_large}
    _add_row(table, "all", scores.overall, ceiling.ap)
    for name, group in scores.by_size.items():
        _add_row(table, name, group, ceilings[name])
    return table


def category_table(scores: CodecScores) -> Table:
    """The categories that have instances, by increasing mean IoU."""
    table = _table("categories")
    groups = [
        (group.mean_iou, name, group)
        for name, group in scores.by_category.items()
        if group.mean_iou is not None
    ]
    for _, name, group in sorted(groups, key=lambda entry: entry[:2]):
        _add_row(table, name, group, scores.ap_ceiling.per_class[name].ap)
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


def _add_row(table: Table, name: str, group: ShapeScores, ceiling: float | None) -> None:
    from rich.markup import escape

    values = (
        group.mean_iou,
        group.iou_p1,
        group.iou_p5,
        group.iou_p25,
        group.mean_boundary_iou,
        ceiling,
    )
    table.add_row(escape(name), f"{group.instances:,}", *map(_number, values))


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
