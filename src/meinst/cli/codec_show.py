"""``meinst codec show``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst.cli.arguments import parse_arguments

EXAMPLES = """
meinst codec show codec.npz
meinst codec show codec.npz val.json --output shapes.png --count 24
"""

MOST = 400  # pairs: more make a picture longer than its readers like


@dataclass(frozen=True)
class ShowArguments:
    """Draw a codec on one sheet: its mean, its components, the variance they explain.

    With annotations also original and decoded masks, evenly spaced from the best kept to the
    worst kept one, and the curve of all their IoU.

    Attributes:
        codec: a codec file (.npz), also one of the published tool.
        annotations: COCO-format annotations (JSON) whose masks are encoded and decoded.
        output: the picture (PNG).
        count: masks to show, up to 400.
    """

    codec: Path
    annotations: tuple[Path, ...] = ()
    output: Path = Path("codec.png")
    count: int = 12


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(
        ShowArguments, arguments, "codec show", EXAMPLES, ("codec", "annotations")
    )

    try:
        import matplotlib  # noqa: F401  (told before the masks are measured)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"drawing needs the package {error.name}: pip install 'meinst[train]'"
        ) from error

    from meinst.cli.output import check_file, mask_progress, read_all_told
    from meinst.codecs import load_codec
    from meinst.engine.codec_evaluate import evaluate_codec
    from meinst.engine.codec_pairs import find_pairs, spread
    from meinst.engine.codec_sheet import codec_sheet
    from meinst.files import write_atomically

    if not 1 <= options.count <= MOST:
        raise ValueError(f"--count must be from 1 to {MOST}, got {options.count}.")
    check_file(options.output, (options.codec, *options.annotations))
    if options.output.suffix.lower() != ".png":
        raise ValueError(f"--output {options.output}: a PNG is written; let the name end in .png.")
    codec = load_codec(options.codec)
    data = read_all_told(options.annotations)
    if data:
        total = sum(int((~one.crowd).sum()) for each in data for one in each.instances)
        with mask_progress(total) as advance:
            scores = evaluate_codec(codec, data, advance)
        pairs = find_pairs(scores, codec, data, spread(scores.iou, options.count))
        picture = codec_sheet(codec, pairs, scores.iou)
    else:
        picture = codec_sheet(codec)
    write_atomically(options.output, picture)
    print(options.output)
    return 0
