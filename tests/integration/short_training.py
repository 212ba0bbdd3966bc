"""A training run of eight updates on synthetic shapes, for the tests of `meinst train`."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from safetensors.torch import load_file

from meinst.codecs.options import CodecOptions
from meinst.data.transforms import AugmentOptions, ResizeOptions
from meinst.detector.head import HeadOptions
from meinst.detector.losses import LossOptions
from meinst.detector.predictor import ModelOptions
from meinst.models.checkpoint import read_info
from meinst.models.recipe import OptimizerOptions, Recipe, ScheduleOptions
from meinst.options import options_to_dict
from meinst.training.options import TrainOptions

if TYPE_CHECKING:
    from conftest import SyntheticData

RECIPE = Recipe(
    model=ModelOptions(
        backbone="test_efficientnet",
        strides=(8, 16, 32),
        distance_limits=(32.0, 64.0),
        channels=16,
        refine_channels=4,
        head=HeadOptions(num_convs=1, norm_groups=4),
    ),
    codec=CodecOptions(n_components=4, mask_size=14),
    resize=ResizeOptions(64, 96),
    augment=AugmentOptions(scale_jitter=(0.8, 1.2), crop_size=80),
    loss=LossOptions(dice_weight=1.0),
    optimizer=OptimizerOptions(lr=0.01, frozen_stages=1, ema_decay=0.9),
    schedule=ScheduleOptions(iterations=8, warmup_iterations=2, validate_every=4),
    batch_size=2,
)

# Third-party warnings that are hidden from users or do not apply to these runs.
WARNINGS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]


def with_values(values: dict[str, Any], recipe: Recipe = RECIPE) -> Recipe:
    """Copy a recipe with other values, given by keys such as ``schedule.iterations``."""
    sections: dict[str, dict[str, Any]] = {}
    top: dict[str, Any] = {}
    for key, value in values.items():
        section, dot, name = key.rpartition(".")
        if dot:
            sections.setdefault(section, {})[name] = value
        else:
            top[name] = value
    changed = {name: replace(getattr(recipe, name), **own) for name, own in sections.items()}
    return replace(recipe, **changed, **top)


def make_options(
    data: SyntheticData, output: Path, recipe: Recipe | None = RECIPE, *, report: bool = False
) -> TrainOptions:
    return TrainOptions(
        train_images=data.images,
        train_annotations=data.annotations,
        val_images=data.images,
        val_annotations=data.annotations,
        output=output,
        recipe=recipe,
        random_backbone=True,
        accelerator="cpu",
        precision="32-true",
        workers=0,
        checkpoint_every=2,
        report=report,
    )


def as_command(options: TrainOptions) -> list[str]:
    """The command line of a run; its recipe is written next to the output folder."""
    command = [sys.executable, "-m", "meinst", "train"]
    for name, value in vars(options).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Recipe):
            path = options.output.with_name(f"{options.output.name}.yaml")
            path.write_text(yaml.safe_dump(options_to_dict(value)))
            command += [flag, str(path)]
        elif value is True:
            command.append(flag)
        elif value is not None and value is not False:
            command += [flag, str(value)]
    return command


_KILLED_AFTER_SAVING = """
import os, signal, sys
from meinst.cli.main import main
from meinst.training.callbacks import LastCheckpoint

save = LastCheckpoint._save

def save_and_die(callback, trainer):
    save(callback, trainer)
    os.kill(os.getpid(), signal.SIGKILL)

LastCheckpoint._save = save_and_die
sys.exit(main(sys.argv[1:]))
"""


def killed_after_saving(options: TrainOptions) -> Path:
    """Run a training that is killed as soon as it has written a checkpoint: the checkpoint."""
    command = [sys.executable, "-c", _KILLED_AFTER_SAVING, *as_command(options)[3:]]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return options.output / "checkpoints" / "last.ckpt"


def wait_for_file(path: Path, process: subprocess.Popen[Any], seconds: float = 120) -> None:
    """Wait until a process has written a file."""
    deadline = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None, f"the process ended before it wrote {path}"
        assert time.monotonic() < deadline, f"{path} was not written within {seconds} s"
        time.sleep(0.01)


def losses_of(folder: Path) -> list[float]:
    rows: list[float] = []
    for log in sorted(folder.glob("logs/version_*/metrics.csv")):
        with log.open(newline="") as file:
            rows += [float(r["loss/total"]) for r in csv.DictReader(file) if r["loss/total"]]
    return rows


def content_of(folder: Path) -> dict[str, object]:
    """Content of the output folder, comparable: safetensors orders its metadata at random."""
    content: dict[str, object] = {
        name: (folder / name).read_bytes() for name in ("metrics.json", "codec.npz", "recipe.yaml")
    }
    for name in ("best", "last"):
        path = folder / f"{name}.safetensors"
        content[name] = {k: v.numpy().tobytes() for k, v in load_file(path).items()}
        content[f"{name} info"] = read_info(path)
    return content
