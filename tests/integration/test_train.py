"""`meinst train`: what it writes, what it refuses, processes."""

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
from short_training import RECIPE, WARNINGS, as_arguments, losses_of, make_options

from meinst.data.coco import read_coco
from meinst.detector.select import SelectOptions
from meinst.engine.checkpoint import load_model, read_info
from meinst.engine.config import Recipe

if TYPE_CHECKING:
    from conftest import DrawnData

    from meinst.detector.meinst import MEInst

pytest.importorskip("lightning")

pytestmark = WARNINGS


def test_a_run_leaves_models_recipe_codec_logs_and_pictures(finished_run: Path) -> None:
    for name in ("best.safetensors", "last.safetensors", "recipe.yaml", "codec.npz"):
        assert (finished_run / name).stat().st_size > 0
    for name in ("curves.png", "overlays.jpg"):
        with Image.open(finished_run / name) as picture:
            assert picture.size[0] > 500
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


def test_a_trained_model_shows_what_balances_best_in_its_validation(
    finished_run: Path, drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    """Also of a run whose folder was copied. Eight updates find no threshold, so one is put in."""
    from meinst.engine.train import train

    copied = tmp_path / "copied"
    shutil.copytree(finished_run, copied)
    for name, found in (("last", 0.37), ("best", 0.41)):
        path = copied / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["metrics"]["val/segm_F1_50_threshold"] = found
        torch.save(checkpoint, path)
    train(replace(make_options(drawn_data, short_recipe, copied), resume=True, recipe=None))
    for name, found in (("last", 0.37), ("best", 0.41)):
        info = read_info(copied / f"{name}.safetensors")
        assert info.recipe.selection.score_threshold == found
        assert info.metrics["val/segm_F1_50_threshold"] == found


def test_a_recipe_that_gives_a_score_threshold_keeps_it() -> None:
    from meinst.engine.trainee import tune_selection

    found = {"val/segm_F1_50_threshold": 0.37}
    assert tune_selection(SelectOptions(), found) == SelectOptions(score_threshold=0.37)
    given = SelectOptions(score_threshold=0.6)
    assert tune_selection(given, found) == given
    assert tune_selection(SelectOptions(), {"val/segm_F1_50_threshold": 0.0}) == SelectOptions()


def test_a_trained_model_finds_something(finished_run: Path, drawn_data: DrawnData) -> None:
    model = load_model(finished_run / "best.safetensors")
    found = model.predict(drawn_data.images / "large.png", score_threshold=0.0)
    assert found.image_size == (200, 220)
    assert len(found) > 0


def test_the_kept_weights_are_the_moving_average(finished_run: Path) -> None:
    checkpoint = torch.load(finished_run / "checkpoints" / "last.ckpt", weights_only=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    name = "model.head.codes.weight"
    assert not torch.equal(average[name], current[name])
    assert torch.equal(load_file(finished_run / "last.safetensors")[name[6:]], average[name])


def test_updates_of_several_batches_are_validated_and_saved_as_updates(
    drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    output = tmp_path / "accumulated"
    options = make_options(drawn_data, short_recipe, output)
    train(replace(options, images_per_device=1))
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["accumulate"]) == (8, 2)
    with next(output.glob("logs/**/metrics.csv")).open() as file:
        validated = [int(row["step"]) for row in csv.DictReader(file) if row["val/segm_AP"]]
    assert validated == [3, 7]  # Lightning counts from 0


def test_the_average_shares_what_is_measured_on(tiny_model: MEInst, drawn_data: DrawnData) -> None:
    from meinst.engine.trainee import Trainee

    data = read_coco(drawn_data.annotations, drawn_data.images)
    trainee = Trainee(tiny_model, Recipe(), data, seed=0)
    copied = copy.deepcopy(trainee)
    assert copied.validation is trainee.validation
    assert copied.model is not trainee.model


@pytest.mark.parametrize("option", ["recipe", "codec"])
def test_what_a_run_reads_it_does_not_overwrite(
    option: str, drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    mine = tmp_path / {"recipe": "recipe.yaml", "codec": "codec.npz"}[option]
    shutil.copy(short_recipe, mine)
    options = make_options(drawn_data, short_recipe, tmp_path)
    given = {"recipe": str(mine)} if option == "recipe" else {"codec": mine}
    with pytest.raises(ValueError, match=f"--{option} .*: the run would overwrite it"):
        train(replace(options, **given))
    assert mine.read_bytes() == short_recipe.read_bytes()
    assert list(tmp_path.iterdir()) == [mine]


def test_a_codec_that_cannot_make_the_wanted_codes_is_told_at_once(
    drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: MEInst_R_50_1x_none\ncodec: {kind: grid, n_components: 16, mask_size: 16}\n"
    )
    options = make_options(drawn_data, recipe, tmp_path / "out")
    with pytest.raises(ValueError, match=r"loss\.target_logits: logits='random'.* grid has none"):
        train(options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(
    drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    options = make_options(drawn_data, short_recipe, tmp_path / "out")
    with pytest.raises(ValueError, match="--accelerator gpu with --devices 1: "):
        train(replace(options, accelerator="gpu"))


def test_two_processes_give_the_losses_of_one_with_twice_the_batch(
    drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    # Windows of one size: one process pads its images to one size, and padding is seen too.
    recipe = tmp_path / "square.yaml"
    recipe.write_text(
        RECIPE.replace("scale_jitter: [0.8, 1.2], crop_size: 80", "crop_size: 64").replace(
            "iterations: 8", "iterations: 3"
        )
    )
    options = make_options(drawn_data, recipe, tmp_path / "one")
    train(options)
    both = replace(options, output=tmp_path / "two", devices=2)
    subprocess.run(as_arguments(both), check=True, capture_output=True)
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert len(one) == 1
    assert two == pytest.approx(one, rel=1e-4)
    ours, theirs = (load_file(tmp_path / n / "last.safetensors") for n in ("two", "one"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-4, rtol=1e-3, msg=name)


def test_validation_that_can_tell_nothing_is_refused(
    drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    content = drawn_data.content()
    empty = tmp_path / "empty.json"
    crowds = [entry | {"iscrowd": 1} for entry in content["annotations"]]
    empty.write_text(json.dumps(content | {"annotations": crowds}))
    options = replace(
        make_options(drawn_data, short_recipe, tmp_path / "out"), val_annotations=empty
    )
    with pytest.raises(ValueError, match=r"empty\.json: no usable object of the model's classes"):
        train(options)
    large = tmp_path / "large.yaml"
    large.write_text(RECIPE.replace("batch_size: 2", "batch_size: 99"))
    with pytest.raises(ValueError, match=r"\d images for 99 processes, each of which needs one"):
        train(replace(options, recipe=str(large), devices=99))


def test_validation_is_in_float32_as_evaluation_is(
    drawn_data: DrawnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meinst.engine import trainee
    from meinst.engine.train import train

    mixed: dict[str, set[bool]] = {"training": set(), "validation": set()}
    forward = trainee.MEInst.forward

    def spied(model: trainee.MEInst, images: list[torch.Tensor]) -> object:
        mixed["training" if model.training else "validation"].add(torch.is_autocast_enabled("cpu"))
        return forward(model, images)

    monkeypatch.setattr(trainee.MEInst, "forward", spied)
    recipe = tmp_path / "short.yaml"
    recipe.write_text(RECIPE.replace("iterations: 8", "iterations: 4"))
    options = make_options(drawn_data, recipe, tmp_path / "out")
    train(replace(options, precision="bf16-mixed"))
    assert mixed == {"training": {True}, "validation": {False}}


def test_batches_that_do_not_divide_are_refused(
    drawn_data: DrawnData, short_recipe: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    options = make_options(drawn_data, short_recipe, tmp_path / "odd")
    with pytest.raises(ValueError, match="batch_size 2 is no multiple of 1 devices times 3"):
        train(replace(options, images_per_device=3))
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(replace(options, resume=True))
    assert not (tmp_path / "odd").exists()
