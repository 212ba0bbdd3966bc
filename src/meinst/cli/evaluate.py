"""``meinst evaluate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meinst.cli.arguments import parse_arguments

if TYPE_CHECKING:
    from rich.table import Table

    from meinst.engine.evaluate import Metrics

EXAMPLES = """
meinst evaluate --model nuclei --images val --annotations val.json
meinst evaluate --model runs/mine/best.safetensors --images val --annotations val.json \\
    --max-detections 300 --output metrics.json
"""

ROWS = {
    "AP": "AP, IoU 0.50 to 0.95",
    "AP50": "AP, IoU 0.50",
    "AP75": "AP, IoU 0.75",
    "APs": "AP, small (below 32 x 32 px)",
    "APm": "AP, medium (below 96 x 96 px)",
    "APl": "AP, large",
    "AR": "AR, IoU 0.50 to 0.95",
    "F1_50": "best F1, IoU 0.50",
    "F1_50_threshold": "... at the score threshold",
}


@dataclass(frozen=True)
class EvaluateArguments:
    """Measure a model on annotated images: COCO's average precision of boxes and masks.

    Classes are matched to the annotations' categories by their names; only those with a match
    are measured, the others are listed. Results count whatever their score; the threshold that
    balances missed and wrong masks best (F1) comes last, for meinst predict --score-threshold. All
    numbers are 0 to 1; those without any object to find are "-" on the screen and null in the file.

    Attributes:
        model: a shipped model's name (see meinst models), a model file or an exported folder.
        images: folder of the images.
        annotations: their COCO-format annotations (JSON).
        output: file for the numbers (JSON); by default they are only shown.
        max_detections: most detections of an image, and COCO's own limit (usually 100); by
            default the model's own.
        batch_size: images that the network takes at once, where they have one size; meant
            for GPUs.
        device: cpu, cuda or another of torch's; auto takes a GPU where there is one.
    """

    model: str
    images: Path
    annotations: Path
    output: Path | None = None
    max_detections: int | None = None
    batch_size: int = 1
    device: str = "auto"


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(EvaluateArguments, arguments, "evaluate", EXAMPLES)

    from rich.console import Console
    from rich.progress import Progress

    from meinst.cli.device import find_device
    from meinst.cli.output import check_file, read_told
    from meinst.engine.evaluate import evaluate
    from meinst.engine.memory import keep_for_reuse
    from meinst.engine.runtime import load
    from meinst.files import write_atomically

    if options.output is not None:
        check_file(options.output, [options.annotations, Path(options.model)])
    data = read_told(options.annotations, options.images)
    keep_for_reuse()
    model = load(options.model).to(find_device(options.device))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=len(data.images))
        metrics = evaluate(
            model,
            data,
            max_detections=options.max_detections,
            batch_size=options.batch_size,
            on_image=lambda: progress.advance(task),
        )
    console = Console()
    console.print(summary_table(metrics))
    if len(metrics.bbox["per_class"]) > 1:
        console.print(class_table(metrics))
    code = _report(metrics)
    if options.output is not None:
        content = {"model": options.model, **metrics.to_dict()}
        write_atomically(options.output, json.dumps(content, indent=2).encode())
    return code


def _report(metrics: Metrics) -> int:
    """Warn of classes and images that were left out; returns the exit code."""
    for line in metrics.classes.warnings:
        print("warning:", line, file=sys.stderr)
    for failure in metrics.failures:
        print("error:", failure.reason, file=sys.stderr)
    if metrics.failures:
        count = f"{len(metrics.failures)} of {metrics.images} images"
        print(f"error: {count} count as having no detections", file=sys.stderr)
    return 1 if metrics.failures else 0


def summary_table(metrics: Metrics) -> Table:
    """The metrics of all classes together; its title tells the limit."""
    from rich.table import Table

    table = Table(
        title=f"COCO metrics, at most {metrics.max_detections} detections an image\n"
        f"{metrics.images} images, {metrics.instances} instances, "
        f"{len(metrics.bbox['per_class'])} classes",
    )
    table.add_column("")
    table.add_column("box", justify="right")
    table.add_column("mask", justify="right")
    for name, text in ROWS.items():
        table.add_row(text, _number(metrics.bbox[name]), _number(metrics.segm[name]))
    return table


def class_table(metrics: Metrics) -> Table:
    """AP and AP50 of each class that has objects to find."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="classes")
    table.add_column("")
    for column in ("box AP", "box AP50", "mask AP", "mask AP50"):
        table.add_column(column, justify="right")
    for name, box in metrics.bbox["per_class"].items():
        mask = metrics.segm["per_class"][name]
        values = (box["AP"], box["AP50"], mask["AP"], mask["AP50"])
        if any(value is not None for value in values):
            table.add_row(escape(name), *map(_number, values))
    return table


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
