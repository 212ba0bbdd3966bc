"""``meinst demo``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst.cli.parser import parse_command

EXAMPLES = """
meinst demo
meinst demo --output somewhere
"""

# Pictures in scikit-image's package, so nothing is downloaded, and the part of each that is used:
# a quarter of the tissue, so that nuclei are as large as in the training images.
PICTURES = {
    "photos": ("astronaut", slice(None)),
    "nuclei": ("immunohistochemistry", slice(256, None)),
}


@dataclass(frozen=True)
class DemoArguments:
    """Try the shipped models on two pictures that come with scikit-image.

    Attributes:
        output: folder for the pictures and results; created if it does not exist.
    """

    output: Path = Path("meinst-demo")


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(DemoArguments, arguments, "demo", EXAMPLES)
    try:
        from skimage import data as pictures
    except ImportError as error:
        raise ImportError(
            "the demo needs the package scikit-image: pip install 'meinst[demo]'"
        ) from error
    from PIL import Image

    from meinst.cli.predict import print_result
    from meinst.files import check_folder, write_atomically
    from meinst.inference.predict import ImageResult, predict_files
    from meinst.models.load import load

    check_folder(options.output)
    outcomes: list[ImageResult] = []
    for model_name, (picture_name, side) in PICTURES.items():
        buffer = io.BytesIO()
        picture = getattr(pictures, picture_name)()[side, side]
        Image.fromarray(picture).save(buffer, format="PNG")
        source = options.output / "pictures" / f"{picture_name}.png"
        write_atomically(source, buffer.getvalue())
        predict_files(
            load(model_name).fuse(), [source], options.output / model_name, on_image=outcomes.append
        )
        print_result(outcomes[-1])
        if outcomes[-1].error is not None:
            return 2
    print("Look at:", *(outcome.overlay for outcome in outcomes), sep="\n  ")
    return 0
