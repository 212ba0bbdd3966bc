"""`meinst train`: written files, rejected options, several processes."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from short_training import WARNINGS, as_command, losses_of, make_options, with_values

from meinst.codecs.options import CodecOptions
from meinst.data.coco import read_coco
from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.models.checkpoint import load_model, read_info
from meinst.models.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from conftest import SyntheticData

pytest.importorskip("lightning")

pytestmark = WARNINGS


def test_run_writes_models_recipe_codec_logs_and_plots(finished_run: Path) -> None:
    for name in ("best.safetensors", "last.safetensors", "recipe.yaml", "codec.npz"):
        assert (finished_run / name).stat().st_size > 0
    for name in ("curves.png", "overlays.jpg"):
        with Image.open(finished_run / name) as picture:
            assert picture.size[0] > 500
    assert "<h2>Why AP is lost</h2>" in (finished_run / "report.html").read_text()
    report = json.loads((finished_run / "report.json").read_text())
    assert (report["metrics"]["images"], report["seed"]) == (6, None)
    assert list(finished_run.glob("tensorboard/version_0/events*"))
    assert len(losses_of(finished_run)) == 1  # eight updates, logged at the last
    info = read_info(finished_run / "best.safetensors")
    assert info.class_names == ("disc", "box", "star")
    assert set(info.metrics) == {
        f"val/{kind}_{name}"
        for kind in ("bbox", "segm")
        for name in ("AP", "AP50", "AP75", "F1_50", "F1_50_threshold")
    }
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert metrics.pop("update") in (4, 8)
    assert metrics == info.metrics


def test_trained_model_takes_the_threshold_of_its_best_f1(
    finished_run: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    """Also in a copied folder. Eight updates give no threshold, so the test inserts one."""
    from meinst.training.train import train

    copied = tmp_path / "copied"
    shutil.copytree(finished_run, copied)
    for name, found in (("last", 0.37), ("best", 0.41)):
        path = copied / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["metrics"]["val/segm_F1_50_threshold"] = found
        torch.save(checkpoint, path)
    train(replace(make_options(synthetic_data, copied), resume=True, recipe=None))
    for name, found in (("last", 0.37), ("best", 0.41)):
        info = read_info(copied / f"{name}.safetensors")
        assert info.recipe.selection.score_threshold == found
        assert info.metrics["val/segm_F1_50_threshold"] == found


def test_score_threshold_of_the_recipe_is_kept() -> None:
    from meinst.training.train import tune_selection

    found = {"val/segm_F1_50_threshold": 0.37}
    assert tune_selection(SelectOptions(), found) == SelectOptions(score_threshold=0.37)
    given = SelectOptions(score_threshold=0.6)
    assert tune_selection(given, found) == given
    assert tune_selection(SelectOptions(), {"val/segm_F1_50_threshold": 0.0}) == SelectOptions()


def test_trained_model_has_detections(finished_run: Path, synthetic_data: SyntheticData) -> None:
    model = load_model(finished_run / "best.safetensors")
    found = model.predict(synthetic_data.images / "large.png", score_threshold=0.0)
    assert found.image_size == (200, 220)
    assert len(found) > 0


def test_saved_weights_are_the_moving_average(finished_run: Path) -> None:
    checkpoint = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    name = "model.head.codes.weight"
    assert not torch.equal(average[name], current[name])
    assert torch.equal(load_file(finished_run / "last.safetensors")[name[6:]], average[name])


def test_accumulated_batches_count_as_one_update(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    output = tmp_path / "accumulated"
    options = make_options(synthetic_data, output)
    train(replace(options, images_per_device=1))
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["accumulate"]) == (8, 2)
    with next(output.glob("logs/**/metrics.csv")).open() as file:
        validated = [int(row["step"]) for row in csv.DictReader(file) if row["val/segm_AP"]]
    assert validated == [3, 7]  # Lightning counts from 0


def test_moving_average_shares_the_validation_data(
    tiny_model: MEInst, synthetic_data: SyntheticData
) -> None:
    from meinst.training.lightning_module import LitMEInst

    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    module = LitMEInst(tiny_model, Recipe(), data, seed=0)
    copied = copy.deepcopy(module)
    assert copied.validation is module.validation
    assert copied.model is not module.model


def test_input_codec_is_not_overwritten(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    from meinst.training.train import train

    codec = tmp_path / "codec.npz"
    codec.write_bytes(b"1")
    options = make_options(synthetic_data, tmp_path)
    with pytest.raises(ValueError, match=r"--codec .* would overwrite it"):
        train(replace(options, codec=codec))
    assert codec.read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [codec]


def test_codec_that_cannot_make_the_target_logits_is_rejected(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    recipe = replace(
        load_recipe("MEInst_R_50_1x_none"),
        codec=CodecOptions(kind="grid", n_components=16, mask_size=16),
    )
    options = make_options(synthetic_data, tmp_path / "out", recipe)
    with pytest.raises(ValueError, match=r"loss\.target_logits = random"):
        train(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_device_is_named(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    from meinst.training.train import train

    options = make_options(synthetic_data, tmp_path / "out")
    with pytest.raises(ValueError, match="--accelerator gpu"):
        train(replace(options, accelerator="gpu"))


def test_two_processes_give_the_losses_of_one_with_twice_the_batch(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    # Equal crops, since each process pads its images to a common size, which changes results.
    recipe = with_values(
        {"augment.scale_jitter": (1.0, 1.0), "augment.crop_size": 64, "schedule.iterations": 3}
    )
    options = make_options(synthetic_data, tmp_path / "one", recipe)
    train(options)
    two_processes = replace(options, output=tmp_path / "two", devices=2)
    subprocess.run(as_command(two_processes), check=True, capture_output=True, timeout=600)
    losses = losses_of(tmp_path / "one")
    assert len(losses) == 1
    assert losses_of(tmp_path / "two") == pytest.approx(losses, rel=1e-4)
    weights, expected = (load_file(tmp_path / n / "last.safetensors") for n in ("two", "one"))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_validation_without_objects_is_rejected(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    content = synthetic_data.content()
    empty = tmp_path / "empty.json"
    crowds = [entry | {"iscrowd": 1} for entry in content["annotations"]]
    empty.write_text(json.dumps(content | {"annotations": crowds}))
    options = replace(make_options(synthetic_data, tmp_path / "out"), val_annotations=empty)
    with pytest.raises(ValueError, match=r"empty\.json: no usable objects.*--crowd-as-instances"):
        train(options)
    assert not (tmp_path / "out" / "checkpoints").exists()
    with pytest.raises(ValueError, match="99 processes"):
        train(replace(options, recipe=with_values({"batch_size": 99}), devices=99))


def test_validation_runs_in_float32(
    synthetic_data: SyntheticData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meinst.training.train import train

    mixed: dict[str, set[bool]] = {"training": set(), "validation": set()}
    forward = MEInst.forward

    def recorded(model: MEInst, images: list[torch.Tensor]) -> object:
        mixed["training" if model.training else "validation"].add(torch.is_autocast_enabled("cpu"))
        return forward(model, images)

    monkeypatch.setattr(MEInst, "forward", recorded)
    recipe = with_values({"schedule.iterations": 4})
    options = make_options(synthetic_data, tmp_path / "out", recipe)
    train(replace(options, precision="bf16-mixed"))
    assert mixed == {"training": {True}, "validation": {False}}


def test_rejects_batch_sizes_that_are_not_multiples(
    synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    from meinst.training.train import train

    options = make_options(synthetic_data, tmp_path / "odd")
    with pytest.raises(ValueError, match=r"batch_size 2 .+ 3"):
        train(replace(options, images_per_device=3))
    with pytest.raises(FileNotFoundError, match="odd"):
        train(replace(options, resume=True))
    assert not (tmp_path / "odd").exists()
