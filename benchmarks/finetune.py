"""Fine-tuning on small data sets: ``meinst train --minutes`` against torchvision's Mask R-CNN.

    python benchmarks/small_sets.py CLONES /tmp/small
    python benchmarks/finetune.py plan /tmp/small --minutes 10 --runs /tmp/runs
    python benchmarks/finetune.py run /tmp/small --minutes 10 --runs /tmp/runs [--sides default]

``plan`` must run on a quiet machine. It measures for each set and side how many updates the time
allows, and writes plans to ``benchmarks/plans``; those that are there are kept, so both sides of a
set must be planned on the same machine. ``run`` makes the planned updates, whatever else the
machine does, so that runs can be repeated and compared; runs that are there are skipped. Each ends
as one line of ``benchmarks/results/finetune.csv``: average precision on the test part, or on the
validation part where there is no other.

Sides:

default    ``meinst train SET --minutes M``
imagenet   the same recipe, started from ImageNet weights
untuned    ``--init photos`` with its own recipe (``photos``), without a planned input
maskrcnn   ``maskrcnn.py`` from ImageNet weights, with the planned input size, anchors at
           quantiles of the objects' sizes, and no time for validation
maskrcnn-photos  the same, started from ``--peer-weights``: maskrcnn.py on the photographs that
           the model ``photos`` was trained on, for the same time

Needs ``pip install '.[train]'``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import maskrcnn
import numpy as np
import torch
from maskrcnn import FLIP, SETTINGS, Setting, TrainingImages
from safetensors.torch import load_file

import meinst
from meinst.cli.memory import keep_for_reuse
from meinst.data.coco import CocoData
from meinst.data.datasets.dataset import Dataset
from meinst.data.datasets.layouts import find_layout
from meinst.data.transforms import AugmentOptions, ResizeOptions
from meinst.inference.evaluate import evaluate
from meinst.models.recipe import load_recipe

HERE = Path(__file__).parent
SIDES = ("default", "imagenet", "untuned", "maskrcnn", "maskrcnn-photos")
PEERS = ("maskrcnn", "maskrcnn-photos")
MEASURED = 24  # images by which the speed of Mask R-CNN is measured
START_SECONDS = 10.0  # reserved for its start and end
FIELDS = ("set", "side", "minutes", "seed", "updates", "mask_ap", "mask_ap50", "box_ap", "seconds")


def plan_ours(data: Path, minutes: float, output: Path, *flags: str) -> None:
    """Plan a run of this project."""
    command = ["meinst", "train", str(data), "--minutes", f"{minutes:g}", "--plan-only"]
    subprocess.run([*command, "--output", str(output), *flags], check=True)


def plan_peer(data: Path, minutes: float, output: Path, recipe: Path) -> None:
    """Measure Mask R-CNN, and write how many images it can be trained on."""
    training = read(data, "train")
    setting = peer_setting(training, load_recipe(recipe).resize.longer_side)
    model = maskrcnn.build(setting, len(training.class_names))
    dataset, folder = TrainingImages(training, setting, 0), output / "measured"
    bfloat16 = torch.cpu._is_avx512_bf16_supported()  # as for this project
    maskrcnn.train(model, dataset, peer_options(folder, 4, 0, bfloat16))
    _, count, seconds = maskrcnn.train(model, dataset, peer_options(folder, MEASURED, 0, bfloat16))
    images = int((60 * minutes - START_SECONDS) * count / seconds)
    values = {"images": images, "bfloat16": bfloat16, "seconds_per_image": seconds / count}
    (output / "plan.json").write_text(json.dumps(values, indent=2))


def peer_setting(training: CocoData, side: int) -> Setting:
    """Settings of Mask R-CNN for a set: input of this project's plan, anchors by objects' sizes."""
    longer = [max(record.width, record.height) for record in training.images]
    boxes = [instances.boxes for instances in training.instances]
    counts = [len(each) for each in boxes]
    sides = np.concatenate(boxes)[:, 2:] - np.concatenate(boxes)[:, :2]
    sizes = np.sqrt(sides.prod(axis=1).clip(1)) / np.repeat(longer, counts) * side
    anchors = [max(4, round(float(size))) for size in np.quantile(sizes, (0.05, 0.35, 0.65, 0.95))]
    limit = max_detections(training)
    base = SETTINGS["photos" if limit == 100 else "nuclei"]
    whole = side <= 640  # larger inputs are trained on crops, as this project does
    return replace(
        base,
        anchors=tuple(anchors),
        limits=[limit],
        test_size=ResizeOptions(side, side),
        longer_sides=(side * 2 // 3, side) if whole else None,
        augment=FLIP if whole else AugmentOptions(crop_size=512, horizontal_flip=0.5),
    )


def max_detections(training: CocoData) -> int:
    """Limit of detections per image, COCO's own if it suffices."""
    return 500 if max(map(len, training.instances)) > 80 else 100


def peer_options(output: Path, images: int, seed: int, bfloat16: bool) -> argparse.Namespace:
    """The options of ``maskrcnn.py``."""
    values = {"setting": "", "data": "", "minutes": None, "resume": False}
    return argparse.Namespace(**values, output=output, images=images, seed=seed, bfloat16=bfloat16)


def run_ours(data: Path, side: str, seed: int, plan: Path, output: Path) -> dict[str, Any]:
    """Train and measure a model of this project."""
    made = json.loads((plan / "plan.json").read_text())
    command = ["meinst", "train", str(data), "--recipe", str(plan / "recipe.yaml")]
    command += ["--seed", str(seed), "--output", str(output), "--no-report"]
    if side != "imagenet":
        command += ["--init", made["init"]]
    if (output / "checkpoints").is_dir():
        command += ["--resume"]
    if not (output / "metrics.json").exists():
        subprocess.run(command, check=True)
    model, part = meinst.load(output / "best.safetensors").fuse(), read(data, "test")
    metrics = evaluate(model, part, max_detections=max_detections(read(data, "train")))
    return {"updates": made["updates"], **figures(metrics.segm.to_dict(), metrics.bbox.to_dict())}


def run_peer(
    data: Path, seed: int, plan: Path, recipe: Path, output: Path, weights: Path | None
) -> dict[str, Any]:
    """Train and measure Mask R-CNN."""
    made, training = json.loads((plan / "plan.json").read_text()), read(data, "train")
    setting = peer_setting(training, load_recipe(recipe).resize.longer_side)
    torch.manual_seed(seed)
    model = maskrcnn.build(setting, len(training.class_names))
    if weights is not None:
        load_other_classes(model, weights)
    output.mkdir(parents=True, exist_ok=True)
    options = peer_options(output, made["images"], seed, made["bfloat16"])
    options.resume = (output / maskrcnn.STATE).is_file()
    average, images, _ = maskrcnn.train(model, TrainingImages(training, setting, seed), options)
    metrics, _ = maskrcnn.measure(average, read(data, "test"), setting, None)
    (output / maskrcnn.STATE).unlink(missing_ok=True)
    found = metrics[str(setting.limits[0])]
    return {"updates": images // maskrcnn.BATCH, **figures(found["segm"], found["bbox"])}


def load_other_classes(model: torch.nn.Module, weights: Path) -> None:
    """Load trained weights but those of layers with one output per class."""
    own = model.state_dict()
    state = {name: value for name, value in load_file(weights).items() if name in own}
    model.load_state_dict(
        {name: value for name, value in state.items() if value.shape == own[name].shape},
        strict=False,
    )


def figures(mask: dict[str, Any], box: dict[str, Any]) -> dict[str, Any]:
    """The columns of the table."""
    return {"mask_ap": mask["AP"], "mask_ap50": mask["AP50"], "box_ap": box["AP"]}


def read(data: Path, part: str) -> CocoData:
    """Read a part of a set; of a set without a test part, the validation part is read."""
    layout, found = find_layout(data)
    dataset = Dataset(data, layout, found.parts)
    return dataset.read(part if part in dataset.parts else "val")


def plan(options: argparse.Namespace, names: Iterable[str]) -> None:
    """Plan the runs of a time, those of Mask R-CNN with the input sizes of ``default``."""
    for name in names:
        data, recipe = options.data / name, plan_folder(options, name, "default") / "recipe.yaml"
        for side in dict.fromkeys(("default", *options.sides)):
            folder = plan_folder(options, name, side)
            if (folder / "plan.json").exists():
                continue
            if side in PEERS:
                folder.mkdir(parents=True, exist_ok=True)
                plan_peer(data, options.minutes, folder, recipe)
            else:
                flags = ("--recipe", "photos", "--init", "photos") if side == "untuned" else ()
                plan_ours(data, options.minutes, folder, *flags)
        print(name, "planned; load", os.getloadavg()[0], flush=True)


def plan_folder(options: argparse.Namespace, name: str, side: str) -> Path:
    """The folder of a plan; some sides share one."""
    shared = {"imagenet": "default", "maskrcnn-photos": "maskrcnn"}.get(side, side)
    folder: Path = options.plans / f"{name}-{shared}-{options.minutes:g}-plan"
    return folder


def run(options: argparse.Namespace, names: Iterable[str]) -> None:
    """Make the planned runs that are not in the table."""
    table = options.table
    done = set()
    if table.exists():
        with table.open() as file:
            done = {tuple(row[key] for key in FIELDS[:4]) for row in csv.DictReader(file)}
    for name in names:
        for side in options.sides:
            key = (name, side, f"{options.minutes:g}", str(options.seed))
            if key in done:
                continue
            start = time.monotonic()
            found = run_one(options, name, side)
            row = dict(zip(FIELDS, key, strict=False)) | found
            row["seconds"] = round(time.monotonic() - start)
            is_new = not table.exists()
            table.parent.mkdir(parents=True, exist_ok=True)
            with table.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if is_new:
                    writer.writeheader()
                writer.writerow({k: f"{v:.4f}" if type(v) is float else v for k, v in row.items()})
            print(row, flush=True)


def run_one(options: argparse.Namespace, name: str, side: str) -> dict[str, Any]:
    """One planned run; its figures."""
    data, planned = options.data / name, plan_folder(options, name, side)
    output = options.runs / f"{name}-{side}-{options.minutes:g}-seed{options.seed}"
    if side not in PEERS:
        return run_ours(data, side, options.seed, planned, output)
    weights = options.peer_weights if side == "maskrcnn-photos" else None
    recipe = plan_folder(options, name, "default") / "recipe.yaml"
    return run_peer(data, options.seed, planned, recipe, output, weights)


def main() -> None:
    """Plan or run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("plan", "run"))
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--plans", type=Path, default=HERE / "plans")
    parser.add_argument("--table", type=Path, default=HERE / "results" / "finetune.csv")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", nargs="+", help="names of sets (all)")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["default", "maskrcnn"])
    parser.add_argument("--peer-weights", type=Path, help="weights of maskrcnn.py on photographs")
    options = parser.parse_args()
    if "maskrcnn-photos" in options.sides and options.peer_weights is None:
        sys.exit("--sides maskrcnn-photos needs --peer-weights")
    keep_for_reuse()
    torch.set_num_threads(os.cpu_count() or 1)
    names = options.sets or sorted(path.name for path in options.data.iterdir())
    (plan if options.action == "plan" else run)(options, names)


if __name__ == "__main__":
    main()
