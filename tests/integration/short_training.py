"""A training of eight updates on drawn shapes, for the tests of `meinst train`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from meinst.engine.checkpoint import read_info
from meinst.engine.config import TrainOptions

if TYPE_CHECKING:
    from conftest import DrawnData


RECIPE = """\
model:
  backbone: test_efficientnet
  strides: [8, 16, 32]
  distance_limits: [32, 64]
  channels: 16
  sight_channels: 4
  head: {num_convs: 1, norm_groups: 4}
codec: {n_components: 4, mask_size: 14}
image_size: {shorter_side: 64, longer_side: 96}
augment: {scale_jitter: [0.8, 1.2], crop_size: 80}
loss: {dice_weight: 1.0}
optimizer: {lr: 0.01, frozen_stages: 1, ema_decay: 0.9}
schedule: {iterations: 8, warmup_iterations: 2, validate_every: 4}
batch_size: 2
"""

# Third-party warnings that a user sees none of, or that say nothing of this run.
WARNINGS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]


def make_options(data: DrawnData, recipe: Path, output: Path) -> TrainOptions:
    return TrainOptions(
        train_images=data.images,
        train_annotations=data.annotations,
        val_images=data.images,
        val_annotations=data.annotations,
        output=output,
        recipe=str(recipe),
        random_backbone=True,
        accelerator="cpu",
        precision="32-true",
        workers=0,
        checkpoint_every=2,
    )


def as_arguments(options: TrainOptions) -> list[str]:
    found = [sys.executable, "-m", "meinst", "train"]
    for name, value in vars(options).items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            found.append(flag)
        elif value is not None and value is not False:
            found += [flag, str(value)]
    return found


def losses_of(folder: Path) -> list[float]:
    rows: list[float] = []
    for log in sorted(folder.glob("logs/version_*/metrics.csv")):
        with log.open(newline="") as file:
            rows += [float(r["loss/total"]) for r in csv.DictReader(file) if r["loss/total"]]
    return rows


def kept_in(folder: Path) -> dict[str, object]:
    """What a run leaves, comparable; safetensors orders its metadata at random."""
    kept: dict[str, object] = {
        name: (folder / name).read_bytes() for name in ("metrics.json", "codec.npz", "recipe.yaml")
    }
    for name in ("best", "last"):
        path = folder / f"{name}.safetensors"
        kept[name] = {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        kept[f"{name} info"] = read_info(path)
    return kept
