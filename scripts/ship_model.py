"""Add a trained model to the package: store it as float16 and evaluate the stored file.

    python scripts/ship_model.py runs/nuclei/best.safetensors nuclei val/ annotations/val.json

The metrics and the score threshold with the best F1 of masks are written into the file. The
previously shipped file stays in place until the evaluation is finished.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import meinst
from meinst.cli.memory import keep_for_reuse
from meinst.models.checkpoint import ZOO, load_model, save_model

FIGURES = ("AP", "AP50", "AP75", "F1_50", "F1_50_threshold")


def main() -> int:
    """Store, evaluate and write the model; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("source", help="model file written by `meinst train`")
    parser.add_argument("name", help="name of the shipped model")
    parser.add_argument("images", type=Path, help="folder of the validation images")
    parser.add_argument("annotations", type=Path, help="COCO annotations of these images")
    options = parser.parse_args()

    keep_for_reuse()
    data = meinst.read_coco(options.annotations, options.images)
    with tempfile.TemporaryDirectory() as folder:
        halved = Path(folder) / f"{options.name}.safetensors"
        save_model(load_model(options.source), halved, half=True)
        model = load_model(halved)
        metrics = meinst.evaluate(load_model(halved).fuse(), data)
    figures = {"bbox": metrics.bbox.to_dict(), "segm": metrics.segm.to_dict()}
    threshold = figures["segm"]["F1_50_threshold"]
    if threshold is None:
        print("error: no detection is correct, so there is no threshold", file=sys.stderr)
        return 1
    model.selection = replace(model.selection, score_threshold=threshold)
    stored = {f"val/{kind}_{name}": figures[kind][name] for kind in figures for name in FIGURES}
    target = save_model(model, ZOO / f"{options.name}.safetensors", half=True, metrics=stored)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    for name, value in stored.items():
        print(f"{name}: {value:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
