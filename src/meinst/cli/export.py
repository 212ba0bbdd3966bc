"""``meinst export``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from meinst.cli.parser import parse_command

if TYPE_CHECKING:
    from rich.progress import Progress

    from meinst.export.export import ExportReport
    from meinst.images.search import FoundImages

EXAMPLES = """
meinst export photos --output photos-openvino
meinst predict holiday.jpg --model photos-openvino
meinst export runs/mine/best.safetensors --format onnx --output mine-onnx
meinst export nuclei --int8 --calibration-images train --images val --annotations val.json \\
    --output nuclei-int8
"""


@dataclass(frozen=True)
class ExportArguments:
    """Export a model to OpenVINO or ONNX Runtime, for CPUs.

    The output folder can be given as --model to predict and evaluate, with the same results. It
    contains the network as a graph, for images of any size, and meinst.safetensors with everything
    else. The graph is compared with the model on synthetic pictures and not written if it differs.

    Attributes:
        model: a shipped model's name (see meinst models) or a model file.
        output: the folder to write; an older export is replaced, anything else is not.
        format: openvino is faster, onnx is more portable.
        int8: quantize the network to 8 bits, which makes it 1.8 to 1.9 times as fast and costs a
            little AP.
        calibration_images: required with --int8 (no default): folder of images like those to be
            segmented, for example training images; if there are more than 300, a random sample is
            used. The exit code is 1 if it contains pictures or videos of kinds that cannot be read.
        intensity: how values of more than 8 bits become 0 to 255, in the export and its
            calibration: percentile, full or LOW:HIGH, as for meinst predict; by default the
            model's own.
        channels: channels of microscopy images that the export uses, as for meinst predict; by
            default the model's own.
        annotations: COCO annotations (JSON) on which to evaluate the export, with --int8 before and
            after quantization; by default nothing is evaluated.
        images: folder of the annotated images; by default that of --calibration-images.
        max_ap_drop: with --int8 and --annotations: write nothing if quantization lowers mask AP by
            more than this many points (hundredths).
    """

    model: str
    output: Path
    format: Literal["openvino", "onnx"] = "openvino"
    int8: bool = False
    calibration_images: Path | None = None
    intensity: str | None = None
    channels: str | None = None
    annotations: Path | None = None
    images: Path | None = None
    max_ap_drop: float = 1.0


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(ExportArguments, arguments, "export", EXAMPLES, ("model",))
    _check(options)

    from rich.console import Console
    from rich.progress import Progress

    from meinst.cli.model_input import override_input
    from meinst.cli.output import read_and_report
    from meinst.export.export import export_model
    from meinst.models.checkpoint import load_model

    model = load_model(options.model)
    override_input(model, options.intensity, options.channels)
    data, found = None, _find_calibration(options.calibration_images)
    if options.annotations is not None:
        data = read_and_report(options.annotations, options.images or options.calibration_images)
    progress = Progress(console=Console(stderr=True), transient=True)
    task = progress.add_task("images")

    def show(step: str, images: int) -> None:
        _stop(progress)
        print(f"{step} ...", flush=True)
        if images:  # otherwise nncf shows bars of its own
            progress.reset(task, total=images)
            progress.start()

    try:
        report = export_model(
            model,
            options.output,
            options.format,
            calibration=found.images or None,
            data=data,
            max_ap_drop=options.max_ap_drop,
            on_step=show,
            on_image=lambda: progress.advance(task),
        )
    finally:
        _stop(progress)
    _print_report(report)
    return 1 if found.left_out else 0


def _find_calibration(folder: Path | None) -> FoundImages:
    """The images of a folder; what is left out is printed."""
    from meinst.images.search import FoundImages, search_images

    if folder is None:
        return FoundImages([])
    found = search_images([folder])
    if found.left_out:
        print("warning:", found, file=sys.stderr)
    return found


def _stop(progress: Progress) -> None:
    if progress.live.is_started:  # otherwise stop() prints an empty line
        progress.stop()


def _check(options: ExportArguments) -> None:
    """Reject options that do not fit together."""
    from meinst.models.checkpoint import list_models

    if Path(options.model).is_dir() and options.model not in list_models():
        raise ValueError(
            f"{options.model} is a folder; give a model file (for an export, the one that it was "
            "made from) or a shipped model's name."
        )
    if options.int8 and options.calibration_images is None:
        raise ValueError(
            "--int8 needs --calibration-images, a folder of images like those to be segmented."
        )
    if options.calibration_images is not None and not options.int8:
        raise ValueError("--calibration-images needs --int8; give both or neither.")
    if options.max_ap_drop != ExportArguments.max_ap_drop and not (
        options.int8 and options.annotations
    ):
        raise ValueError(
            "--max-ap-drop needs --int8 and --annotations; otherwise no AP is measured."
        )
    if options.annotations is None and options.images is not None:
        raise ValueError("--images needs --annotations; give both or neither.")
    if options.annotations and not (options.images or options.calibration_images):
        raise ValueError("--annotations needs --images, the folder of the annotated images.")


def _print_report(report: ExportReport) -> None:
    print(f"largest differences from the model: {report.differences}")
    for name, metrics in (("float32", report.float32), ("int8", report.int8)):
        if metrics is not None:
            box, mask = metrics.bbox.ap, metrics.segm.ap
            print(f"{name}: box AP {box:.3f}, mask AP {mask:.3f} ({metrics.images} images)")
    for line in report.float32.notes if report.float32 is not None else ():
        print(line, file=sys.stderr)
    print(f"written: {report.folder}")
