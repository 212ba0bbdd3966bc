"""What windows cost in accuracy, and many cells in one picture.

    cd benchmarks
    python seams.py seams ../../shared/data/nuclei    # AP: whole pictures, and in windows
    python seams.py cells ../../shared/data/nuclei    # 1,500 cells in one picture

`seams` resizes the validation pictures as for the network, so that a picture and its windows are
seen at the same scale, and only the seams differ. `cells` predicts a part of the mosaic of these
pictures as one picture with the command line, measures its peak memory, and compares what is found
with what the windows of it find by themselves.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import tifffile
from large import Pictures
from measure import versions
from PIL import Image
from pycocotools import mask as coco_mask

import meinst
from meinst.data.coco import read_coco
from meinst.detector.passes import TileOptions
from meinst.inference.evaluate import evaluate

_MICROMETRE = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}


def validation(options: argparse.Namespace) -> Pictures:
    """The validation pictures in the size of the network's input."""
    model = meinst.load(options.model)
    data = read_coco(options.data / "annotations" / "val.json", options.data / "val")
    return Pictures(data, model)


def seams(options: argparse.Namespace) -> None:
    """AP of whole pictures, and of the same in windows."""
    model = meinst.load(options.model).fuse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        validation(options).write_single(folder)
        content = json.loads((folder / "annotations.json").read_text())
        for entry in content["images"]:  # a pixel size keeps windows at the scale of the whole
            pixels = np.asarray(Image.open(folder / entry["file_name"]))
            entry["file_name"] = f"{entry['id']}.tif"
            tifffile.imwrite(folder / entry["file_name"], pixels, photometric="rgb", **_MICROMETRE)
        (folder / "annotations.json").write_text(json.dumps(content))
        data = read_coco(folder / "annotations.json", folder)
        print(versions("meinst", "torch"))
        print("| | mask AP | AP50 | AP75 | box AP | detections |\n|---|--:|--:|--:|--:|--:|")
        for title, tiles in (
            ("whole", TileOptions("off")),
            (f"windows of {options.tile} pixels", TileOptions(options.tile, pixel_size=1.0)),
        ):
            found = evaluate(model, data, tiles=tiles, max_detections=options.most)
            values = found.segm.ap, found.segm.ap50, found.segm.ap75, found.bbox.ap
            cells = " | ".join(f"{100 * (value or 0):.2f}" for value in values)
            print(f"| {title} | {cells} | {found.detections} |", flush=True)


def cells(options: argparse.Namespace) -> None:
    """Many cells in one picture: what is found, and peak memory."""
    mosaic, _ = validation(options).mosaic(8000)
    picture = mosaic[: options.side, : options.side]
    model = meinst.load(options.model).fuse()
    with tempfile.TemporaryDirectory() as name:
        path, output = Path(name) / "cells.png", Path(name) / "found"
        Image.fromarray(picture).save(path)
        command = [sys.executable, "-c", _WATCHED, str(path), str(output), options.model]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peak = float(done.stdout.split()[-1])
        results = json.loads((output / "predictions.json").read_text())
    whole = [entry["segmentation"] for entry in results]
    step, side = options.side // 4, options.side // 2
    missed = total = 0
    for y in range(0, options.side - side + 1, step):
        for x in range(0, options.side - side + 1, step):
            part = model.predict(picture[y : y + side, x : x + side], tile="auto")
            margin = np.array([64, 64, side - 64, side - 64])  # what is cut there does not count
            boxes = part.boxes.numpy()
            inside = (boxes[:, :2] > margin[:2]).all(1) & (boxes[:, 2:] < margin[2:]).all(1)
            masks = [entry for entry, kept in zip(part.rle(), inside, strict=True) if kept]
            placed = [_place(mask, (x, y), picture.shape[:2]) for mask in masks]
            overlap = coco_mask.iou(placed, whole, [0] * len(whole)) if placed else np.zeros((0, 1))
            missed += int((overlap.max(1) < 0.5).sum())
            total += len(placed)
    print(versions("meinst", "torch"))
    print(f"{len(whole):,} cells found in {options.side} x {options.side}; peak {peak:.2f} GB")
    print(f"of {total:,} found in 9 windows of {side} pixels, {missed} are not among them")


_WATCHED = """
import re, sys
from meinst.cli.main import main
path, output, model = sys.argv[1:]
code = main(["predict", path, "--model", model, "--output", output])
status = open("/proc/self/status").read()  # not getrusage, which begins with the parent's peak
print(int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1e6)
sys.exit(code)
"""


def _place(mask: dict[str, object], corner: tuple[int, int], size: tuple[int, int]) -> object:
    """A mask of a part of a picture as one of the picture."""
    whole = np.zeros(size, np.uint8, order="F")
    part = coco_mask.decode(mask)
    x, y = corner
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return coco_mask.encode(whole)


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for function in (seams, cells):
        each = commands.add_parser(function.__name__, help=function.__doc__)
        each.set_defaults(run=function)
        each.add_argument("data", type=Path, help="folder of val/ and annotations/")
        each.add_argument("--model", default="nuclei")
        if function is seams:
            each.add_argument("--tile", type=int, default=320)
            each.add_argument("--most", type=int, default=1000, help="detections of a picture")
        else:
            each.add_argument("--side", type=int, default=4096)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
