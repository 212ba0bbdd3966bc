"""``meinst train``."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from meinst.cli.arguments import parse_arguments

DESCRIPTION = """\
Train a model on COCO-format data.

The output folder then holds best.safetensors (what `meinst predict --model` takes) and
last.safetensors, the recipe, the codec, checkpoints, logs (CSV and TensorBoard), curves.png and
overlays.jpg (validation images). A run that was stopped goes on with --resume."""

EXAMPLES = """
meinst train --recipe photos --init photos --output runs/mine \\
    --train-images train --train-annotations train.json \\
    --val-images val --val-annotations val.json
meinst train --resume --output runs/mine \\
    --train-images train --train-annotations train.json \\
    --val-images val --val-annotations val.json
"""


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    from meinst.engine.config import TrainOptions
    from meinst.engine.memory import keep_for_reuse

    options = parse_arguments(TrainOptions, arguments, "train", EXAMPLES, description=DESCRIPTION)
    try:
        from meinst.engine.train import train
    except ModuleNotFoundError as error:
        raise ImportError(
            f"training needs the package {error.name}: pip install 'meinst[train]'"
        ) from error
    logging.basicConfig(format="%(message)s")
    logging.getLogger("meinst").setLevel(logging.INFO)
    keep_for_reuse()
    train(options)
    return 0
