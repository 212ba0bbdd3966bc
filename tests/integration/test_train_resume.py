"""`meinst train --resume`: runs continue exactly, and nothing is overwritten."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from processes import started
from safetensors.torch import load_file
from short_training import (
    WARNINGS,
    as_command,
    content_of,
    killed_after_saving,
    losses_of,
    make_options,
    wait_for_file,
    with_values,
)

if TYPE_CHECKING:
    from conftest import SyntheticData

pytest.importorskip("lightning")

pytestmark = WARNINGS


def test_killed_and_resumed_run_ends_with_the_same_weights(
    finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    output = tmp_path / "killed"
    options = make_options(synthetic_data, output)
    last = killed_after_saving(options)
    assert torch.load(last, weights_only=True)["global_step"] == 2
    with pytest.raises(ValueError, match="--resume"):
        train(options)
    train(replace(options, resume=True, recipe=None, seed=5))  # the run's own seed is used
    resumed = load_file(output / "last.safetensors")
    for name, tensor in load_file(finished_run / "last.safetensors").items():
        assert torch.equal(resumed[name], tensor), name
    assert losses_of(output)[-1] == losses_of(finished_run)[-1]
    assert content_of(output) == content_of(finished_run)


def test_resuming_a_finished_run_changes_nothing(
    finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    options = make_options(synthetic_data, folder)
    train(replace(options, resume=True, recipe=None))
    assert content_of(folder) == content_of(finished_run)
    with pytest.raises(ValueError, match="earlier run"):
        train(options)


def test_resuming_with_another_recipe_images_or_classes_warns(
    finished_run: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from meinst.training.train import train

    folder, more = tmp_path / "run", tmp_path / "more.json"
    shutil.copytree(finished_run, folder)
    longer = with_values({"schedule.iterations": 12})
    content = synthetic_data.content()
    categories = [*content["categories"], {"id": 99, "name": "cone"}]
    more.write_text(json.dumps(content | {"categories": categories}))
    fewer, images = tmp_path / "fewer.json", content["images"][:-1]
    ids = {image["id"] for image in images}
    annotations = [entry for entry in content["annotations"] if entry["image_id"] in ids]
    fewer.write_text(json.dumps(content | {"images": images, "annotations": annotations}))
    options = replace(make_options(synthetic_data, folder, longer), resume=True)
    options = replace(options, train_annotations=fewer, val_annotations=more)
    train(options)
    assert f"has {len(images)} images but had {len(images) + 1}" in caplog.text
    assert "continues with a recipe that differs" in caplog.text
    assert "more.json: not measured: categories that the model does not know: cone" in caplog.text
    assert json.loads((folder / "metrics.json").read_text())["update"] in (4, 8, 12)
    caplog.clear()
    train(replace(options, val_annotations=synthetic_data.annotations))  # now its own recipe
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_resumed_run_takes_learning_rates_from_the_recipe(
    finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    values = {"schedule.iterations": 12, "optimizer.lr": 0.004, "optimizer.weight_decay": 0.5}
    # The backbone's factor is 0.1: 4e-4; the rest trains at 4e-3.
    train(replace(make_options(synthetic_data, folder, with_values(values)), resume=True))
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert [group["initial_lr"] for group in groups] == pytest.approx([4e-4, 4e-4, 4e-3, 4e-3])
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0, 0.5, 0.0]
    assert groups[2]["lr"] == pytest.approx(4e-5)  # the cosine's end: a hundredth
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == pytest.approx([4e-4, 4e-4, 4e-3, 4e-3])


def test_incompatible_options_are_rejected_and_leave_the_run_unchanged(
    finished_run: Path, synthetic_data: SyntheticData
) -> None:
    from meinst.training.train import train

    options = replace(make_options(synthetic_data, finished_run), resume=True)
    before = content_of(finished_run)
    with pytest.raises(ValueError, match="accumulated 1 batches per update"):
        train(replace(options, images_per_device=1))
    changes: list[tuple[dict[str, Any], str]] = [
        ({"model.channels": 24}, "model"),
        ({"optimizer.name": "sgd"}, r"optimizer\.name"),
        ({"optimizer.ema_decay": 0.0}, r"optimizer\.ema_decay"),
    ]
    for values, key in changes:
        with pytest.raises(ValueError, match=f"--recipe: {key} .*differs"):
            train(replace(options, recipe=with_values(values)))
    if not torch.cuda.is_available():  # rejected late; the run must stay resumable by its recipe
        longer = with_values({"schedule.iterations": 12})
        with pytest.raises(ValueError, match="--accelerator gpu"):
            train(replace(options, recipe=longer, accelerator="gpu"))
    assert content_of(finished_run) == before


def test_resuming_with_other_classes_is_rejected(
    finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    content = synthetic_data.content()
    renamed = [entry | {"name": f"other {entry['name']}"} for entry in content["categories"]]
    before = content_of(finished_run)
    for categories in (renamed, content["categories"][:1]):
        ids = {entry["id"] for entry in categories}
        annotations = [entry for entry in content["annotations"] if entry["category_id"] in ids]
        other = tmp_path / "other.json"
        changed = {**content, "annotations": annotations, "categories": categories}
        other.write_text(json.dumps(changed))
        options = replace(make_options(synthetic_data, finished_run), resume=True)
        with pytest.raises(ValueError, match=r"other\.json: its classes"):
            train(replace(options, train_annotations=other, val_annotations=other))
    assert content_of(finished_run) == before


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_the_state_for_resume(
    sent: signal.Signals, code: int, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    recipe = with_values({"schedule.iterations": 4000})
    options = make_options(synthetic_data, tmp_path / "out", recipe)
    last = tmp_path / "out" / "checkpoints" / "last.ckpt"
    with started(as_command(options), 240, stderr=subprocess.PIPE, text=True) as process:
        wait_for_file(last, process)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    saved = torch.load(last, weights_only=True)["global_step"]
    assert saved > 0
    assert "stopped at update" in errors
    assert f"saved at update {saved}; continue with --resume" in errors
    assert "Traceback" not in errors


def test_full_disk_leaves_the_last_good_checkpoint(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    options = make_options(synthetic_data, tmp_path / "full")
    last = killed_after_saving(options)
    before = last.read_bytes()

    def small_disk() -> None:  # files cannot grow beyond this: a write fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))

    failed = subprocess.run(
        as_command(replace(options, resume=True)),
        preexec_fn=small_disk,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert failed.returncode == 2
    error = failed.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "File too large" in error
    assert str(last.parent) in error
    assert list(last.parent.iterdir()) == [last]
    assert last.read_bytes() == before
