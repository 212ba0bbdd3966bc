"""``meinst codec show``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst.cli.parser import parse_command

EXAMPLES = """
meinst codec show codec.npz
meinst codec show codec.npz val.json --output shapes.png --count 24
"""

MAX_COUNT = 400  # pairs of masks; the image grows by a row for every four


@dataclass(frozen=True)
class ShowArguments:
    """Draw a codec as an image: its mean, its components and the variance that they explain.

    With annotations, the image also shows original and decoded masks, evenly spaced from the best
    to the worst, and a curve of the IoU of all masks.

    Attributes:
        codec: codec file (.npz), from `meinst codec fit` or the published tool.
        annotations: COCO-format annotation files (JSON) whose masks are encoded and decoded.
        output: file for the image (PNG).
        count: number of masks to show, at most 400.
        crowd_as_instances: use crowd regions (iscrowd 1) too; by default they are left out.
    """

    codec: Path
    annotations: tuple[Path, ...] = ()
    output: Path = Path("codec.png")
    count: int = 12
    crowd_as_instances: bool = False


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(
        ShowArguments, arguments, "codec show", EXAMPLES, ("codec", "annotations")
    )

    try:
        import matplotlib  # noqa: F401  (report it before measuring)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"drawing needs the package {error.name}: pip install 'meinst[train]'"
        ) from error

    from meinst.cli.output import check_file, mask_progress, read_all_and_report
    from meinst.codec_tools.evaluate import evaluate_codec
    from meinst.codec_tools.report.pairs import find_pairs, spread
    from meinst.codec_tools.report.sheet import codec_sheet
    from meinst.codecs import load_codec
    from meinst.files import write_atomically

    if not 1 <= options.count <= MAX_COUNT:
        raise ValueError(f"--count must be between 1 and {MAX_COUNT}, got {options.count}.")
    check_file(options.output, (options.codec, *options.annotations))
    if options.output.suffix.lower() != ".png":
        raise ValueError(
            f"--output {options.output}: the image is written as PNG; use the suffix .png."
        )
    codec = load_codec(options.codec)
    data = read_all_and_report(options.annotations, crowd_as_instances=options.crowd_as_instances)
    if data:
        total = sum(int((~instances.crowd).sum()) for file in data for instances in file.instances)
        with mask_progress(total) as advance:
            scores = evaluate_codec(codec, data, advance)
        pairs = find_pairs(scores, codec, data, spread(scores.iou, options.count))
        image = codec_sheet(codec, pairs, scores.iou)
    else:
        image = codec_sheet(codec)
    write_atomically(options.output, image)
    print(options.output)
    return 0
