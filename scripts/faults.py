"""Kill commands at random instants and check that nothing is lost.

    python scripts/faults.py --kills 50
    python scripts/faults.py --kills 5 --commands predict train --seed 3

Each trial starts a command on small drawn data, kills it (SIGKILL) at a random instant of its
duration, checks that every file it left is whole, and runs it again, with ``--resume`` where a run
is unfinished. The results must equal those of a run without interruption, and no temporary file may
remain. Trials alternate between the temporary folder and /dev/shm, which is another file system.
Prints a table; the exit code is 1 if a trial failed.

Commands run in forks of this process, which has imported everything, so that the instants fall into
the work and not into the imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHM = Path("/dev/shm")
TIMEOUT = 300  # seconds
KEPT = (".meinst-predictions", ".zattrs", ".zgroup", ".zarray")  # hidden files of results
RECIPE = """
model: {backbone: test_efficientnet, strides: [8, 16, 32], distance_limits: [32, 64],
        channels: 16, refine_channels: 0, head: {num_convs: 1, norm_groups: 4}}
codec: {n_components: 4, mask_size: 14}
resize: {shorter_side: 64, longer_side: 96}
augment: {crop_size: 80}
optimizer: {lr: 0.01, frozen_stages: 1, ema_decay: 0.9}
schedule: {iterations: 8, warmup_iterations: 2, validate_every: 4}
batch_size: 2
"""


@dataclass(frozen=True)
class Command:
    """A command to kill.

    Attributes:
        arguments: the command line for an output.
        unfinished: whether the output can be continued with ``--resume``.
        check: names the files of an output that are not whole.
        content: what must be equal after the second run.
        finished: whether a killed run had done everything, if it must not be run again.
    """

    arguments: Callable[[Path], list[str]]
    unfinished: Callable[[Path], bool]
    check: Callable[[Path], list[str]]
    content: Callable[[Path], dict[str, bytes]]
    finished: Callable[[Path], bool] = lambda _: False


def main() -> int:
    """Run the trials and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="kills of each command")
    parser.add_argument("--commands", nargs="+", help="some of the commands; all by default")
    parser.add_argument("--seed", type=int, default=0, help="seed of the instants")
    options = parser.parse_args()
    _import_all()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary, "data")
        commands = make_commands(data)
        names = options.commands or list(commands)
        draw_data(data)
        _run_whole(commands["train"], data / "model", data)  # the model of the other commands
        results = {name: run_trials(name, commands[name], data, options) for name in names}
    print(f"{'command':12} {'kills':>5} {'resumed':>7} {'restarted':>9} {'complete':>8} failures")
    for name, counts in results.items():
        killed = counts["resumed"] + counts["restarted"]
        print(
            f"{name:12} {killed:5} {counts['resumed']:7} {counts['restarted']:9} "
            f"{counts['complete']:8} {counts['failed']}"
        )
    return int(any(counts["failed"] for counts in results.values()))


def _import_all() -> None:
    import lightning  # noqa: F401

    import meinst.cli.main
    import meinst.codec_tools.fit
    import meinst.inference.predict
    import meinst.inference.writers.formats
    import meinst.training.train

    if find_spec("openvino") is not None:
        import openvino  # noqa: F401

        import meinst.export.export  # noqa: F401


def make_commands(data: Path) -> dict[str, Command]:
    """The commands by name; ``data`` is the folder of :func:`draw_data`."""
    annotations, images = str(data / "data.json"), str(data / "images")
    model = str(data / "model" / "best.safetensors")

    def predict(output: Path) -> list[str]:
        options = ["--model", model, "--score-threshold", "0", "--device", "cpu"]
        return ["predict", str(data / "pictures"), *options, "--output", str(output)]

    def predict_formats(output: Path) -> list[str]:
        from meinst.inference.writers.formats import FORMATS

        return [*predict(output), "--save", ",".join(FORMATS)]

    def train(output: Path) -> list[str]:
        named = ["--train-images", images, "--train-annotations", annotations]
        named += ["--val-images", images, "--val-annotations", annotations, "--accelerator", "cpu"]
        named += ["--recipe", str(data / "recipe.yaml"), "--precision", "32-true"]
        named += ["--workers", "0", "--checkpoint-every", "1", "--random-backbone"]
        return ["train", *named, "--output", str(output)]

    def fit(output: Path) -> list[str]:
        named = ["--output", str(output / "codec.npz"), "--moments", str(output / "all.moments")]
        return ["codec", "fit", annotations, "--n-components", "8", *named]

    def export(output: Path) -> list[str]:
        return ["export", model, "--output", str(output / "export")]

    def never(_: Path) -> bool:
        return False

    commands = {
        "predict": Command(
            predict, lambda out: (out / "predictions.journal").exists(), broken_results, all_files
        ),
        "formats": Command(
            predict_formats,
            lambda out: (out / "predictions.journal").exists(),
            broken_formats,
            predicted_files,
            lambda out: (out / "predictions.json").exists(),
        ),
        "train": Command(
            train, lambda out: any(out.glob("checkpoints/*.ckpt")), broken_training, trained_files
        ),
        "codec fit": Command(fit, never, broken_codec, all_files),
    }
    if any(find_spec(package) is None for package in ("pyarrow", "roifile", "zarr")):
        del commands["formats"]
    if find_spec("openvino") is not None:
        commands["export"] = Command(export, never, broken_export, exported_files)
    return commands


# Files of an output


def all_files(output: Path) -> dict[str, bytes]:
    """The content of each file, hidden ones included."""
    paths = sorted(path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


def predicted_files(output: Path) -> dict[str, bytes]:
    """All files; without labelme's paths of the images, which are relative to the output."""
    return {
        name: re.sub(rb'"imagePath": "[^"]*"', b"", content)
        for name, content in all_files(output).items()
    }


def trained_files(output: Path) -> dict[str, bytes]:
    """Weights, metrics and inputs of a run, and the names of all files that are no logs."""
    from safetensors.numpy import load_file

    names = {path.relative_to(output) for path in output.rglob("*") if path.is_file()}
    kept = sorted(str(name) for name in names if name.parts[0] not in ("logs", "tensorboard"))
    content = {"names": "\n".join(kept).encode()}
    for name in ("last", "best"):
        weights = load_file(output / f"{name}.safetensors")
        content |= {f"{name} {key}": value.tobytes() for key, value in weights.items()}
    for name in ("metrics.json", "recipe.yaml", "codec.npz"):
        content[name] = (output / name).read_bytes()
    return content


def exported_files(output: Path) -> dict[str, bytes]:
    """The files of an export; metadata of safetensors is in random order."""
    content = all_files(output)
    path = "export/meinst.safetensors"
    return content | {path: bytes(sorted(content[path]))}


def broken_results(output: Path) -> list[str]:
    """JSON files and overlays that are not whole."""
    return _unreadable(output.glob("*.json"), lambda path: json.loads(path.read_bytes())) + (
        _unreadable(output.glob("*.jpg"), lambda path: Image.open(path).load())
    )


def broken_formats(output: Path) -> list[str]:
    """Files of all formats that are not whole."""
    import tifffile

    def load_zip(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None

    def load_zarr(path: Path) -> None:
        assert {"0", ".zattrs", ".zgroup"} <= {each.name for each in path.iterdir()}

    return [
        *broken_results(output),
        *_unreadable(output.glob("*/*.*json"), lambda path: json.loads(path.read_bytes())),
        *_unreadable(output.glob("labels/*.tif"), tifffile.imread),
        *_unreadable(output.glob("imagej/*.zip"), load_zip),
        *_unreadable(output.glob("ome-zarr/*.zarr"), load_zarr),
    ]


def broken_training(output: Path) -> list[str]:
    """Checkpoints and models that are not whole."""
    import torch
    from safetensors.numpy import load_file

    def load(path: Path) -> object:
        return torch.load(path, weights_only=True, mmap=True)

    broken = _unreadable(output.glob("checkpoints/[a-z]*.ckpt"), load)
    return broken + _unreadable(output.glob("*.safetensors"), load_file)


def broken_codec(output: Path) -> list[str]:
    """Codec files that are not whole."""

    def load(path: Path) -> None:
        with np.load(path) as archive:
            assert {name: archive[name] for name in archive.files}

    return _unreadable(output.glob("[a-z]*"), load)


def broken_export(output: Path) -> list[str]:
    """The export if it is there but not whole, by the names and the sizes of its files."""
    folder = output / "export"
    names = ("meinst.safetensors", "model.bin", "model.xml")
    if folder.exists() and any(not (folder / name).stat().st_size for name in names):
        return [str(folder)]
    return []


def _unreadable(paths: object, read: Callable[[Path], object]) -> list[str]:
    found = []
    for path in paths:  # type: ignore[attr-defined]
        try:
            read(path)
        except Exception as error:
            found.append(f"{path.name}: {type(error).__name__}: {error}")
    return found


# Trials


def run_trials(
    name: str, command: Command, data: Path, options: argparse.Namespace
) -> Counter[str]:
    """Kill a command again and again; returns what became of the runs."""
    draw = random.Random(f"{options.seed} {name}")
    folders = [data.parent]
    if SHM.is_dir() and os.access(SHM, os.W_OK) and SHM.stat().st_dev != data.stat().st_dev:
        folders.append(SHM)
    with tempfile.TemporaryDirectory(dir=data.parent) as temporary:
        output = Path(temporary, "output")
        duration = _run_whole(command, output, data)
        print(f"{name}: {duration:.1f} s without a kill", flush=True)
        expected = command.content(output)
    counts: Counter[str] = Counter()
    trial = 0
    while counts["resumed"] + counts["restarted"] < options.kills:
        with tempfile.TemporaryDirectory(dir=folders[trial % len(folders)]) as temporary:
            output = Path(temporary, "output")
            if trial % 4 > 1 and name not in ("predict", "formats", "train"):
                run(command.arguments(output), data)  # an older file is to be replaced
            code = run(command.arguments(output), data, draw.uniform(0, duration))
            counts["complete"] += code != -signal.SIGKILL
            if code == -signal.SIGKILL:
                _check_trial(command, output, data, expected, counts)
        trial += 1
    return counts


def _run_whole(command: Command, output: Path, data: Path) -> float:
    """Run a command without a kill; returns its seconds."""
    start = time.monotonic()
    code = run(command.arguments(output), data)
    if code:
        raise RuntimeError(f"exit code {code}: {_log(data)}")
    return time.monotonic() - start


def _check_trial(
    command: Command, output: Path, data: Path, expected: dict[str, bytes], counts: Counter[str]
) -> None:
    """Check what a killed command left, run it again and compare the results."""
    faults = command.check(output) if output.exists() else []
    resume = command.unfinished(output)
    counts["resumed" if resume else "restarted"] += 1
    if not resume and command.finished(output):
        code = 0
    else:
        code = run([*command.arguments(output), *(["--resume"] if resume else [])], data)
    if code != 0:
        faults.append(f"exit code {code}: {_log(data)}")
    else:
        content = command.content(output)
        names = content.keys() | expected.keys()
        faults += [f"differs: {n}" for n in sorted(names) if content.get(n) != expected.get(n)]
        stray = [path.name for path in output.parent.rglob(".*") if path.name not in KEPT]
        faults += [f"stray: {', '.join(stray)}"] if stray else []
    left = sum(path.stat().st_size for path in (data / "tmp").rglob("*") if path.is_file())
    faults += [f"{left} bytes in the temporary folder"] if left else []
    shutil.rmtree(data / "tmp")
    if faults:
        counts["failed"] += 1
        print(f"{command.arguments(output)[0]}, {output}: {'; '.join(faults)[:1000]}")


def run(arguments: list[str], data: Path, kill_after: float | None = None) -> int:
    """Run a command in a fork; its exit code, or minus the number of the signal that ended it."""
    (data / "tmp").mkdir(exist_ok=True)
    process = os.fork()
    if process == 0:
        _run_in_child(arguments, data)
    deadline = time.monotonic() + (TIMEOUT if kill_after is None else kill_after)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        time.sleep(0.001)


def _run_in_child(arguments: list[str], data: Path) -> None:
    """Run a command, with its output in a file, and end the process."""
    from meinst.cli.main import main as meinst

    code = 99
    try:
        log = os.open(data / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        tempfile.tempdir = str(data / "tmp")
        code = meinst(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def _log(data: Path) -> str:
    return (data / "log").read_text(errors="replace").strip()[-400:]


# Data


def draw_data(folder: Path, images: int = 12) -> None:
    """Draw shapes on noise, annotated with polygons, and write the recipe of the training."""
    (folder / "images").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    generator = np.random.default_rng(0)
    content: dict[str, list[dict[str, object]]] = {
        "images": [],
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [],
    }
    for image_id in range(1, images + 1):
        picture = Image.fromarray(generator.integers(0, 90, (64, 96, 3), dtype=np.uint8))
        for center in ((24, 32), (70, 30)):
            angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
            radii = generator.uniform(6, 20) * generator.uniform(0.5, 1, (16, 1))
            points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii + center
            ImageDraw.Draw(picture).polygon(points.reshape(-1).tolist(), fill=(230, 60, 40))
            left, top = points.min(0)
            width, height = np.ptp(points, axis=0)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": [points.reshape(-1).tolist()],
                    "bbox": [left, top, width, height],
                    "area": float(width * height / 2),
                    "iscrowd": 0,
                }
            )
        name = f"{image_id:03}.png"
        picture.save(folder / "images" / name)
        content["images"].append({"id": image_id, "file_name": name, "width": 96, "height": 64})
    (folder / "data.json").write_text(json.dumps(content))
    (folder / "pictures").mkdir()
    for copy in range(5):
        for path in (folder / "images").iterdir():
            shutil.copy(path, folder / "pictures" / f"{copy}_{path.name}")


if __name__ == "__main__":
    sys.exit(main())
