"""``meinst evaluate``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meinst.cli.main import print_error
from meinst.cli.parser import parse_command

if TYPE_CHECKING:
    from rich.table import Table

    from meinst.data.coco import CocoData
    from meinst.detector.predictor import Predictor
    from meinst.diagnosis.diagnose import Diagnosis
    from meinst.inference.evaluate import Metrics

EXAMPLES = """
meinst evaluate my-data --model runs/mine/best.safetensors
meinst evaluate my-data --part test --model runs/mine/best.safetensors
meinst evaluate --model nuclei --images val --annotations val.json
meinst evaluate --model runs/mine/best.safetensors --images val --annotations val.json \\
    --max-detections 300 --output metrics.json --report report
"""

# Fields of APSummary, and how the table names them.
ROWS = {
    "ap": "AP, IoU 0.50 to 0.95",
    "ap50": "AP, IoU 0.50",
    "ap75": "AP, IoU 0.75",
    "ap_small": "AP, small (below 32 x 32 px)",
    "ap_medium": "AP, medium (below 96 x 96 px)",
    "ap_large": "AP, large",
    "ar": "AR, IoU 0.50 to 0.95",
    "f1": "best F1, IoU 0.50",
    "f1_threshold": "... at the score threshold",
}


@dataclass(frozen=True)
class EvaluateArguments:
    """Evaluate a model on annotated images: COCO's average precision of boxes and masks.

    Classes are matched to the categories of the annotations by name; those without a match are
    listed and not measured. Detections of any score count. The last row is the score threshold that
    maximises F1, for meinst predict --score-threshold. All figures are between 0 and 1; where there
    are no objects, they are "-" on the screen and null in the file.

    Attributes:
        model: a shipped model's name (see meinst models), a model file or an exported folder.
        data: a data set: a folder, a YOLO description (data.yaml) or a COCO annotation file. Its
            layout is detected; see `meinst data`.
        part: which part of the data set to measure on: train, val, test, or all if it is not
            divided; by default val, or else test.
        images: folder of the images; by default, that of DATA.
        annotations: COCO annotations (JSON) of the images; by default, those of DATA.
        output: file for the figures (JSON); by default they are only printed.
        report: folder for report.html, which shows why average precision is lost (kinds of errors
            and what each costs, plots, the worst pictures, suspicious labels), and report.json; by
            default there is none.
        max_detections: limit of detections per image, and COCO's own limit (usually 100); by
            default the model's own, and none for images that are predicted in windows.
        intensity: for images of more than 8 bits, the values that become 0 and 255: percentile
            (percentiles 0.1 and 99.9 of the image), full (its smallest and greatest value) or
            LOW:HIGH (with = if negative: --intensity=-500:900); by default the model's own, which
            is percentile unless it was trained otherwise.
        channels: numbers, from 0, of the channels of microscopy images that become red, green and
            blue, such as 2,0,0, or of the one that becomes grey; by default the model's own.
        tile: auto predicts those images in overlapping windows in which objects would be missed,
            because they are much larger than the network's input; off predicts each as a whole; a
            number is the side of the windows in pixels, for all images with a longer side.
        pixel_size: micrometres that a pixel of the network's input shows; images are resized to it
            by the pixel size in their file (OME-TIFF, resolution tags). By default the model's
            own, if it has one.
        batch_size: images per forward pass, where they have the same size, or windows; useful on
            GPUs.
        device: cpu, cuda or another torch device; auto uses a GPU if there is one.
        crowd_as_instances: measure crowd regions (iscrowd 1) as ordinary instances; some tools mark
            every mask that was drawn with a brush as a crowd.
        boxes_alone: measure objects that have a box and no mask, too, as boxes; masks found in
            their boxes are neither right nor wrong.
        allow_outside: allow file names that lead out of the image folder.
    """

    model: str
    data: Path | None = None
    part: str | None = None
    images: Path | None = None
    annotations: Path | None = None
    output: Path | None = None
    report: Path | None = None
    max_detections: int | None = None
    intensity: str | None = None
    channels: str | None = None
    tile: str = "auto"
    pixel_size: float | None = None
    batch_size: int = 1
    device: str = "auto"
    crowd_as_instances: bool = False
    boxes_alone: bool = False
    allow_outside: bool = False

    def __post_init__(self) -> None:
        """Reject data given twice or not at all."""
        files = (self.images, self.annotations)
        if (self.data is None) == (None in files) or (self.data and any(files)):
            raise ValueError(
                "give the data once: either a data set (DATA), or both --images and --annotations."
            )
        if self.part is not None and self.data is None:
            raise ValueError("--part is one of a data set; give DATA.")


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(EvaluateArguments, arguments, "evaluate", EXAMPLES, ("data",))

    from rich.console import Console
    from rich.progress import Progress

    from meinst.cli.device import find_device
    from meinst.cli.memory import keep_for_reuse
    from meinst.cli.model_input import override_input
    from meinst.cli.output import check_file
    from meinst.files import check_folder, write_atomically
    from meinst.models.load import load

    if options.output is not None:
        files = [path for path in (options.annotations, options.data) if path is not None]
        check_file(options.output, [*files, Path(options.model)])
    if options.report is not None:
        from meinst.diagnosis.html import check_plots

        check_plots()
        check_folder(options.report, "--report")
    data = _read(options)
    keep_for_reuse()
    model = load(options.model).fuse().to(find_device(options.device))
    override_input(model, options.intensity, options.channels)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=len(data.images))
        metrics, diagnosis = _measure(options, model, data, lambda: progress.advance(task))
    console = Console()
    console.print(summary_table(metrics))
    if len(metrics.bbox.per_class) > 1:
        console.print(class_table(metrics))
    exit_code = _print_problems(metrics)
    if options.output is not None:
        content = {"model": options.model, **metrics.to_dict()}
        write_atomically(options.output, json.dumps(content, indent=2).encode())
    if options.report is not None and diagnosis is not None:
        from meinst.diagnosis.html import write_report

        write_report(diagnosis, options.report, title=options.model)
    return exit_code


def _read(options: EvaluateArguments) -> CocoData:
    from meinst.cli.output import read_and_report, read_part_and_report

    read_as = {
        "crowd_as_instances": options.crowd_as_instances,
        "boxes_alone": options.boxes_alone,
        "allow_outside": options.allow_outside,
    }
    if options.data is not None:
        return read_part_and_report(options.data, options.part, **read_as)
    assert options.annotations is not None
    return read_and_report(options.annotations, options.images, **read_as)


def _measure(
    options: EvaluateArguments, model: Predictor, data: CocoData, on_image: Callable[[], None]
) -> tuple[Metrics, Diagnosis | None]:
    """Evaluate the model, and diagnose it if a report is wanted."""
    from meinst.detector.passes import TileOptions
    from meinst.inference.evaluate import evaluate

    settings: dict[str, Any] = {
        "max_detections": options.max_detections,
        "batch_size": options.batch_size,
        "tiles": TileOptions.from_text(options.tile, options.pixel_size),
        "on_image": on_image,
    }
    if options.report is None:
        return evaluate(model, data, **settings), None
    from meinst.diagnosis.diagnose import diagnose

    diagnosis = diagnose(model, data, **settings)
    return diagnosis.metrics, diagnosis


def _print_problems(metrics: Metrics) -> int:
    """Print the classes and images that were left out; returns the exit code."""
    for line in metrics.classes.warnings:
        print("warning:", line, file=sys.stderr)
    for line in metrics.notes:
        print(line, file=sys.stderr)
    for failure in metrics.failures:
        print_error(failure.reason)
    if metrics.failures:
        count = f"{len(metrics.failures)} of {metrics.images} images"
        print_error(f"{count} could not be read and count as images without detections")
    return 1 if metrics.failures or metrics.damaged else 0


def summary_table(metrics: Metrics) -> Table:
    """The figures of all classes together."""
    from rich.table import Table

    table = Table(
        title=f"COCO metrics, at most {metrics.max_detections} detections per image\n"
        f"{metrics.images} images, {metrics.instances} instances, "
        f"{len(metrics.bbox.per_class)} classes",
    )
    table.add_column("")
    table.add_column("box", justify="right")
    table.add_column("mask", justify="right")
    for name, text in ROWS.items():
        table.add_row(
            text, _number(getattr(metrics.bbox, name)), _number(getattr(metrics.segm, name))
        )
    return table


def class_table(metrics: Metrics) -> Table:
    """AP and AP50 of each class that has objects."""
    from rich.markup import escape
    from rich.table import Table

    from meinst.options import printable

    table = Table(title="classes")
    table.add_column("")
    for column in ("box AP", "box AP50", "mask AP", "mask AP50"):
        table.add_column(column, justify="right")
    for name, box in metrics.bbox.per_class.items():
        mask = metrics.segm.per_class[name]
        values = (box.ap, box.ap50, mask.ap, mask.ap50)
        if any(value is not None for value in values):
            table.add_row(escape(printable(name)), *map(_number, values))
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
