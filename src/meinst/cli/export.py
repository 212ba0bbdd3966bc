"""``meinst export``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from meinst.cli.arguments import parse_arguments

if TYPE_CHECKING:
    from meinst.engine.export import ExportReport

EXAMPLES = """
meinst export photos --output photos-openvino
meinst predict holiday.jpg --model photos-openvino
meinst export runs/mine/best.safetensors --format onnx --output mine-onnx
meinst export nuclei --int8 --calibration-images train --images val --annotations val.json \\
    --output nuclei-int8
"""


@dataclass(frozen=True)
class ExportArguments:
    """Convert a model for OpenVINO or ONNX Runtime on a CPU.

    The output folder is what --model of predict and evaluate takes, with the same results: the
    network as a graph for OpenVINO or ONNX Runtime, for pictures of any size, and
    meinst.safetensors with all else. It is compared with the model on drawn pictures and not
    written if it differs.

    Attributes:
        model: a shipped model's name (see meinst models) or a model file.
        output: folder to write; an export that is there is replaced, anything else is not.
        format: openvino is the faster, onnx the more portable.
        int8: quantise the network to 8 bits, 1.5 to 1.9 times as fast; costs a little AP.
        calibration_images: for --int8, without a default: folder of pictures like those to be
            segmented, training images for example; of more than 300, 300 are drawn.
        annotations: COCO-format annotations (JSON) to measure the export on, for --int8 before
            and after quantising; by default nothing is measured.
        images: folder of the annotated images; by default that of --calibration-images.
        max_ap_drop: for --int8 with --annotations: write nothing if more points (hundredths) of
            mask AP are lost.
    """

    model: str
    output: Path
    format: Literal["openvino", "onnx"] = "openvino"
    int8: bool = False
    calibration_images: Path | None = None
    annotations: Path | None = None
    images: Path | None = None
    max_ap_drop: float = 1.0


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(ExportArguments, arguments, "export", EXAMPLES, ("model",))
    _check(options)

    from rich.console import Console
    from rich.progress import Progress

    from meinst.cli.output import read_told
    from meinst.data.images import find_images
    from meinst.engine.checkpoint import load_model, read_info
    from meinst.engine.export import export_model

    info = read_info(options.model)
    calibration = data = None
    if options.calibration_images is not None:
        calibration = find_images([options.calibration_images])
    if options.annotations is not None:
        data = read_told(options.annotations, options.images or options.calibration_images)
    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task("images")

    def show(step: str, images: int) -> None:
        if progress.live.is_started:
            progress.stop()
        print(f"{step} ...", flush=True)
        if images:  # else none: nncf has bars of its own
            progress.reset(task, total=images)
            progress.start()

    try:
        report = export_model(
            load_model(options.model),
            options.output,
            options.format,
            calibration=calibration,
            data=data,
            max_ap_drop=options.max_ap_drop,
            recipe=info.recipe,
            metrics=info.metrics,
            on_step=show,
            on_image=lambda: progress.advance(task),
        )
    finally:
        if progress.live.is_started:
            progress.stop()
    _print_report(report)
    return 0


def _check(options: ExportArguments) -> None:
    """Refuse options that do not go together."""
    from meinst.engine.checkpoint import list_models

    if Path(options.model).is_dir() and options.model not in list_models():
        raise ValueError(
            f"{options.model} is a folder, an export perhaps: give the model file that it was "
            "made from, or a shipped model's name."
        )
    if options.int8 and options.calibration_images is None:
        raise ValueError(
            "--int8 needs pictures: give a folder of some like those to be segmented with "
            "--calibration-images."
        )
    if options.calibration_images is not None and not options.int8:
        raise ValueError("--calibration-images is for --int8: give both or neither.")
    if options.max_ap_drop != ExportArguments.max_ap_drop and not (
        options.int8 and options.annotations
    ):
        raise ValueError(
            "--max-ap-drop is for --int8 with --annotations: else no AP is measured that falls."
        )
    if options.annotations is None and options.images is not None:
        raise ValueError("--images is for --annotations: give both or neither.")
    if options.annotations and not (options.images or options.calibration_images):
        raise ValueError("--annotations needs the folder of its images: give it with --images.")


def _print_report(report: ExportReport) -> None:
    print(f"largest differences from the model: {report.differences}")
    for name, metrics in (("float32", report.float32), ("int8", report.int8)):
        if metrics is not None:
            box, mask = metrics.bbox["AP"], metrics.segm["AP"]
            print(f"{name}: box AP {box:.3f}, mask AP {mask:.3f} ({metrics.images} images)")
    print(f"written: {report.folder}")
