"""``meinst predict``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.arguments import parse_arguments

if TYPE_CHECKING:
    from meinst.engine.predict import ImageResult

EXAMPLES = """
meinst predict holiday.jpg
meinst predict slides/ 'more/**/*.tif' --model nuclei --output found
meinst predict holiday.jpg --model runs/mine/best.safetensors --score-threshold 0.5
"""


@dataclass(frozen=True)
class PredictArguments:
    """Segment images.

    For each image an overlay (JPEG, named after the image) is written to the output folder, and
    for all of them predictions.json (COCO results, masks as RLE in the size of the original) and
    images.json (which image_id is which file, which category_id is which class; pycocotools:
    COCO("images.json").loadRes("predictions.json"), unless that is an empty list). Overlays that
    earlier runs wrote there are not segmented. Of a file of several frames or pages the first is.

    Attributes:
        sources: image files, folders (the images directly in them) or glob patterns in quotes.
        model: a shipped model's name (see meinst models), a model file or an exported folder.
        output: folder of the results; made if it is not there.
        score_threshold: smallest score of a detection, 0 to 1; by default the model's own.
        max_detections: most detections of an image; by default the model's own.
        batch_size: images that the network takes at once, where they have one size; meant
            for GPUs.
        device: cpu, cuda or another of torch's; auto takes a GPU where there is one.
    """

    sources: list[str]
    model: str = "photos"
    output: Path = Path("predictions")
    score_threshold: float | None = None
    max_detections: int | None = None
    batch_size: int = 1
    device: str = "auto"


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(PredictArguments, arguments, "predict", EXAMPLES, "sources")

    from meinst.cli.device import find_device
    from meinst.data.images import find_images
    from meinst.engine.memory import keep_for_reuse
    from meinst.engine.predict import RESULTS, predict_files, without_overlays
    from meinst.engine.runtime import load

    found = find_images(options.sources)
    sources = without_overlays(found, options.output)
    if not sources:
        raise ValueError(f"all images given are overlays that an earlier run wrote: {found[0]}")
    if len(sources) < len(found):
        left_out = len(found) - len(sources)
        print(f"left out: {left_out} overlays of an earlier run in {options.output}")
    keep_for_reuse()
    model = load(options.model).to(find_device(options.device))
    outcomes = predict_files(
        model,
        sources,
        options.output,
        score_threshold=options.score_threshold,
        max_detections=options.max_detections,
        batch_size=options.batch_size,
        on_image=print_result,
    )
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    done = len(outcomes) - len(failed)
    if done:
        print(f"{done} of {len(outcomes)} images: {options.output / RESULTS}")
    for outcome in failed:
        print("error:", outcome.error, file=sys.stderr)
    if not failed:
        return 0
    return 1 if done else 2


def print_result(result: ImageResult) -> None:
    """Print the summary line of an image; failures are told at the end."""
    if result.error is not None:
        return
    found = ", ".join(f"{count} {name}" for name, count in result.counts.items())
    took = f"{result.milliseconds:.0f} ms"
    print(f"{result.source}: {found or 'nothing found'} ({took}) -> {result.overlay}", flush=True)
