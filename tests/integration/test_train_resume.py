"""`meinst train --resume`: nothing is lost, nothing is overwritten."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from short_training import RECIPE, WARNINGS, as_arguments, kept_in, losses_of, make_options

if TYPE_CHECKING:
    from conftest import DrawnData

pytest.importorskip("lightning")

pytestmark = WARNINGS


def test_killed_and_resumed_ends_with_the_same_weights(
    finished_run: Path, drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    output = tmp_path / "killed"
    options = make_options(drawn_data, short_recipe, output)
    process = subprocess.Popen(as_arguments(options), stderr=subprocess.DEVNULL)
    last = output / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = torch.load(last, weights_only=True)["global_step"]
    assert 2 <= reached < 8
    with pytest.raises(ValueError, match="holds an earlier run; go on with it by --resume"):
        train(options)
    train(replace(options, resume=True, recipe=None, seed=5))  # its own seed is taken
    ours, theirs = (
        load_file(output / "last.safetensors"),
        load_file(finished_run / "last.safetensors"),
    )
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert losses_of(output)[-1] == losses_of(finished_run)[-1]
    assert kept_in(output) == kept_in(finished_run)


def test_a_finished_run_resumed_changes_nothing_and_is_not_overwritten(
    finished_run: Path, drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    options = make_options(drawn_data, short_recipe, folder)
    train(replace(options, resume=True, recipe=None))
    assert kept_in(folder) == kept_in(finished_run)
    with pytest.raises(ValueError, match="holds an earlier run"):
        train(options)


def test_resuming_by_another_recipe_with_other_images_or_classes_is_told(
    finished_run: Path, drawn_data: DrawnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from meinst.engine.train import train

    folder, longer, more = tmp_path / "run", tmp_path / "longer.yaml", tmp_path / "more.json"
    shutil.copytree(finished_run, folder)
    longer.write_text(RECIPE.replace("iterations: 8,", "iterations: 12,"))
    content = drawn_data.content()
    categories = [*content["categories"], {"id": 99, "name": "cone"}]
    more.write_text(json.dumps(content | {"categories": categories}))
    fewer, kept = tmp_path / "fewer.json", content["images"][:-1]
    ids = {image["id"] for image in kept}
    known = [one for one in content["annotations"] if one["image_id"] in ids]
    fewer.write_text(json.dumps(content | {"images": kept, "annotations": known}))
    options = replace(make_options(drawn_data, longer, folder), resume=True)
    options = replace(options, train_annotations=fewer, val_annotations=more)
    train(options)
    assert f"has {len(kept)} images, and had {len(kept) + 1} when this was saved" in caplog.text
    assert f"goes on by --recipe {longer}, not by its own {folder / 'recipe.yaml'}" in caplog.text
    assert "more.json: not measured: categories that the model does not know: cone" in caplog.text
    assert json.loads((folder / "metrics.json").read_text())["update"] in (4, 8, 12)
    caplog.clear()
    train(replace(options, val_annotations=drawn_data.annotations))  # now its own
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_resumed_run_takes_its_rates_from_the_recipe(
    finished_run: Path, drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    folder, slower = tmp_path / "run", tmp_path / "slower.yaml"
    shutil.copytree(finished_run, folder)
    changed = (
        ("iterations: 8,", "iterations: 12,"),
        ("lr: 0.01,", "lr: 0.004, weight_decay: 0.5,"),
    )
    text = RECIPE
    for old, new in changed:
        text = text.replace(old, new)
    slower.write_text(text)
    train(replace(make_options(drawn_data, slower, folder), resume=True))
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([4e-4, 4e-4, 4e-3, 4e-3])
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5, 0.0]
    assert groups[2]["lr"] == pytest.approx(4e-5)  # the cosine's end, a hundredth
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == pytest.approx([4e-4, 4e-4, 4e-3, 4e-3])


def test_what_a_run_cannot_be_resumed_with_is_refused_and_leaves_it_whole(
    finished_run: Path, drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    options = replace(make_options(drawn_data, short_recipe, finished_run), resume=True)
    before = kept_in(finished_run)
    with pytest.raises(ValueError, match=r"an update of 1 batches on each device, not of 2: .*"):
        train(replace(options, images_per_device=1))
    other = tmp_path / "other.yaml"
    for text, replacement, reason in (
        ("channels: 16", "channels: 24", "model"),
        ("lr: 0.01", "name: sgd, lr: 0.01", r"optimizer\.name"),
        ("ema_decay: 0.9", "ema_decay: 0", r"optimizer\.ema_decay \(0 or not\)"),
    ):
        other.write_text(RECIPE.replace(text, replacement))
        with pytest.raises(ValueError, match=f"its {reason} is not that of the run to resume"):
            train(replace(options, recipe=str(other)))
    if not torch.cuda.is_available():  # refused late, yet by its own recipe it goes on later
        other.write_text(RECIPE.replace("iterations: 8,", "iterations: 12,"))
        with pytest.raises(ValueError, match="--accelerator gpu"):
            train(replace(options, recipe=str(other), accelerator="gpu"))
    assert kept_in(finished_run) == before


def test_a_run_is_resumed_with_its_own_classes_alone(
    finished_run: Path, drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    content = drawn_data.content()
    renamed = [entry | {"name": f"other {entry['name']}"} for entry in content["categories"]]
    before = kept_in(finished_run)
    for categories in (renamed, content["categories"][:1]):
        ids = {entry["id"] for entry in categories}
        known = [one for one in content["annotations"] if one["category_id"] in ids]
        other = tmp_path / "other.json"
        other.write_text(json.dumps({**content, "annotations": known, "categories": categories}))
        options = replace(make_options(drawn_data, short_recipe, finished_run), resume=True)
        with pytest.raises(ValueError, match=r"other\.json: its classes \(.*\) are not"):
            train(replace(options, train_annotations=other, val_annotations=other))
    assert kept_in(finished_run) == before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_with_its_code_and_a_hint(
    sent: signal.Signals, code: int, drawn_data: DrawnData, tmp_path: Path
) -> None:
    recipe = tmp_path / "long.yaml"
    recipe.write_text(RECIPE.replace("iterations: 8", "iterations: 4000"))
    options = make_options(drawn_data, recipe, tmp_path / "out")
    process = subprocess.Popen(
        as_arguments(options),
        stderr=subprocess.PIPE,
        text=True,
        # Background shells start their processes with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    last = tmp_path / "out" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(sent)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, errors
    kept = torch.load(last, weights_only=True)["global_step"]
    assert kept > 0
    assert "stopped at update" in errors
    assert f"saved at {kept}; go on from there with --resume" in errors
    assert "Traceback" not in errors


def test_a_full_disk_leaves_the_last_good_checkpoint(
    drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    options = make_options(drawn_data, short_recipe, tmp_path / "full")
    process = subprocess.Popen(as_arguments(options), stderr=subprocess.DEVNULL)
    last = tmp_path / "full" / "checkpoints" / "last.ckpt"
    while not last.is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = last.read_bytes()

    def small_disk() -> None:  # no file may grow beyond this: a write fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    failed = subprocess.run(
        as_arguments(replace(options, resume=True)),
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
    )
    assert failed.returncode == 2
    error = failed.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "File too large" in error
    assert last.read_bytes() == before
