"""``meinst demo``."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst.cli.arguments import parse_arguments

EXAMPLES = """
meinst demo
meinst demo --output somewhere
"""

# Pictures that are inside scikit-image's package, so nothing is downloaded, and what is shown of
# them: nuclei of a quarter of the tissue, as large then as those that the model was trained on.
PICTURES = {
    "photos": ("astronaut", slice(None)),
    "nuclei": ("immunohistochemistry", slice(256, None)),
}


@dataclass(frozen=True)
class DemoArguments:
    """Try the shipped models on two pictures that come with scikit-image.

    Attributes:
        output: folder of the pictures and results; made if it is not there.
    """

    output: Path = Path("meinst-demo")


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(DemoArguments, arguments, "demo", EXAMPLES)
    try:
        from skimage import data as pictures
    except ImportError as error:
        raise ImportError(
            "the demo uses pictures of scikit-image: pip install 'meinst[demo]'"
        ) from error
    from PIL import Image

    from meinst.cli.predict import print_result
    from meinst.engine.checkpoint import load_model
    from meinst.engine.predict import check_folder, predict_files
    from meinst.files import write_atomically

    check_folder(options.output)
    overlays = []
    for model_name, (picture_name, side) in PICTURES.items():
        buffer = io.BytesIO()
        picture = getattr(pictures, picture_name)()[side, side]
        Image.fromarray(picture).save(buffer, format="PNG")
        source = options.output / "pictures" / f"{picture_name}.png"
        write_atomically(source, buffer.getvalue())
        (outcome,) = predict_files(
            load_model(model_name),
            [source],
            options.output / model_name,
            on_image=print_result,
        )
        if outcome.error is not None:
            raise OSError(outcome.error)
        overlays.append(outcome.overlay)
    print("Look at:", *overlays, sep="\n  ")
    return 0
