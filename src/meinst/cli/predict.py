"""``meinst predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.parser import parse_command

if TYPE_CHECKING:
    from meinst.inference.predict import ImageResult

EXAMPLES = """
meinst predict holiday.jpg
meinst predict slides/ 'more/**/*.tif' --model nuclei --output found
meinst predict holiday.jpg --model runs/mine/best.safetensors --score-threshold 0.5
"""


@dataclass(frozen=True)
class PredictArguments:
    """Segment images.

    Writes an overlay of each image (JPEG, named after the image) to the output folder, and for all
    images together predictions.json (COCO results, masks as RLE in the size of the original) and
    images.json (the file of each image_id and the class of each category_id; with pycocotools:
    COCO("images.json").loadRes("predictions.json"), unless that is an empty list). Overlays that
    earlier runs wrote there are skipped. For multi-page files, only the first page is used. A run
    that ended early (killed, full disk) continues with --resume and ends with the same files.

    Attributes:
        sources: image files, folders (the images directly in them) or quoted glob patterns.
        model: a shipped model's name (see meinst models), a model file or an exported folder.
        output: folder for the results; created if it does not exist.
        score_threshold: smallest score of a detection, 0 to 1; by default the score that maximised
            F1 on the model's validation set.
        max_detections: limit of detections per image; by default the model's own.
        batch_size: images per forward pass, where they have the same size; useful on GPUs.
        device: cpu, cuda or another torch device; auto uses a GPU if there is one.
        resume: continue the unfinished run in the output folder, which must have had the same
            sources, model and selection.
    """

    sources: list[str]
    model: str = "photos"
    output: Path = Path("predictions")
    score_threshold: float | None = None
    max_detections: int | None = None
    batch_size: int = 1
    device: str = "auto"
    resume: bool = False


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(PredictArguments, arguments, "predict", EXAMPLES, ("sources",))

    from meinst.cli.device import find_device
    from meinst.cli.memory import keep_for_reuse
    from meinst.data.images import find_images
    from meinst.inference.predict import predict_files
    from meinst.inference.results import RESULTS, without_overlays
    from meinst.models.load import load

    images = find_images(options.sources)
    sources = without_overlays(images, options.output)
    if not sources:
        raise ValueError(f"all given images are overlays of an earlier run: {images[0]}")
    if len(sources) < len(images):
        skipped = len(images) - len(sources)
        print(f"skipped: {skipped} overlays of an earlier run in {options.output}")
    keep_for_reuse()
    model = load(options.model).fuse().to(find_device(options.device))
    summary = predict_files(
        model,
        sources,
        options.output,
        selection=model.selection.override(options.score_threshold, options.max_detections),
        batch_size=options.batch_size,
        resume=options.resume,
        on_image=print_result,
    )
    done = summary.images - summary.failed
    if done:
        print(f"{done} of {summary.images} images: {options.output / RESULTS}")
    if not summary.failed:
        return 0
    return 1 if done else 2


def print_result(result: ImageResult) -> None:
    """Print the summary line of an image, or why it failed."""
    if result.error is not None:
        print("error:", result.error, file=sys.stderr, flush=True)
        return
    found = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    time = f"{result.milliseconds:.0f} ms"
    print(f"{result.source}: {found or 'nothing found'} ({time}) -> {result.overlay}", flush=True)
