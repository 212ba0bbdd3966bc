"""`meinst train` on drawn shapes with a tiny network: what it writes, resuming, processes."""

from __future__ import annotations

import copy
import csv
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from meinst.data.coco import read_coco
from meinst.detector.select import SelectOptions
from meinst.engine.checkpoint import load_model, read_info
from meinst.engine.config import Recipe, TrainOptions, load_recipe

if TYPE_CHECKING:
    from conftest import DrawnData

    from meinst.detector.meinst import MEInst

pytest.importorskip("lightning")

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
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
]


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE)
    return path


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


@pytest.fixture(scope="module")
def finished(
    drawn_data: DrawnData, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an uninterrupted run."""
    from meinst.engine.train import train

    output = tmp_path_factory.mktemp("run") / "whole"
    assert train(make_options(drawn_data, recipe_file, output)) == output / "best.safetensors"
    return output


def test_a_run_leaves_models_recipe_codec_logs_and_pictures(finished: Path) -> None:
    for name in ("best.safetensors", "last.safetensors", "recipe.yaml", "codec.npz"):
        assert (finished / name).stat().st_size > 0
    for name in ("curves.png", "overlays.jpg"):
        with Image.open(finished / name) as picture:
            assert picture.size[0] > 500
    assert list(finished.glob("tensorboard/version_0/events*"))
    assert len(losses_of(finished)) == 1  # eight updates, logged at the last
    info = read_info(finished / "best.safetensors")
    assert info.class_names == ("disc", "box", "star")
    assert set(info.metrics) == {
        f"val/{kind}_{name}"
        for kind in ("bbox", "segm")
        for name in ("AP", "AP50", "AP75", "F1_50", "F1_50_threshold")
    }
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics.pop("update") in (4, 8)
    assert metrics == info.metrics


def test_a_trained_model_shows_what_balances_best_in_its_validation(
    finished: Path, drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    """Also of a run whose folder was copied. Eight updates find no threshold, so one is put in."""
    from meinst.engine.train import train

    copied = tmp_path / "copied"
    shutil.copytree(finished, copied)
    for name, found in (("last", 0.37), ("best", 0.41)):
        path = copied / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["metrics"]["val/segm_F1_50_threshold"] = found
        torch.save(checkpoint, path)
    train(replace(make_options(drawn_data, recipe_file, copied), resume=True, recipe=None))
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


def test_a_trained_model_finds_something(finished: Path, drawn_data: DrawnData) -> None:
    model = load_model(finished / "best.safetensors")
    found = model.predict(drawn_data.images / "large.png", score_threshold=0.0)
    assert found.image_size == (200, 220)
    assert len(found) > 0


def test_the_kept_weights_are_the_moving_average(finished: Path) -> None:
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    name = "model.head.codes.weight"
    assert not torch.equal(average[name], current[name])
    assert torch.equal(load_file(finished / "last.safetensors")[name[6:]], average[name])


def test_killed_and_resumed_ends_with_the_same_weights(
    finished: Path, drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    output = tmp_path / "killed"
    options = make_options(drawn_data, recipe_file, output)
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
    ours, theirs = load_file(output / "last.safetensors"), load_file(finished / "last.safetensors")
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    assert losses_of(output)[-1] == losses_of(finished)[-1]
    assert kept_in(output) == kept_in(finished)


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


def test_a_finished_run_resumed_changes_nothing_and_is_not_overwritten(
    finished: Path, drawn_data: DrawnData, recipe_file: Path
) -> None:
    from meinst.engine.train import train

    options = make_options(drawn_data, recipe_file, finished)
    before = kept_in(finished)
    train(replace(options, resume=True, recipe=None))
    assert kept_in(finished) == before
    with pytest.raises(ValueError, match="holds an earlier run"):
        train(options)


def test_updates_of_several_batches_are_validated_and_saved_as_updates(
    drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    output = tmp_path / "accumulated"
    options = make_options(drawn_data, recipe_file, output)
    train(replace(options, images_per_device=1))
    last = torch.load(output / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["global_step"], last["accumulate"]) == (8, 2)
    with next(output.glob("logs/**/metrics.csv")).open() as file:
        validated = [int(row["step"]) for row in csv.DictReader(file) if row["val/segm_AP"]]
    assert validated == [3, 7]  # Lightning counts from 0


def test_resuming_by_another_recipe_with_other_images_or_classes_is_told(
    finished: Path, drawn_data: DrawnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from meinst.engine.train import train

    folder, longer, more = tmp_path / "run", tmp_path / "longer.yaml", tmp_path / "more.json"
    shutil.copytree(finished, folder)
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
    finished: Path, drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    folder, slower = tmp_path / "run", tmp_path / "slower.yaml"
    shutil.copytree(finished, folder)
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
    finished: Path, drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    options = replace(make_options(drawn_data, recipe_file, finished), resume=True)
    before = kept_in(finished)
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
    assert kept_in(finished) == before


def test_a_run_is_resumed_with_its_own_classes_alone(
    finished: Path, drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    content = drawn_data.content()
    renamed = [entry | {"name": f"other {entry['name']}"} for entry in content["categories"]]
    before = kept_in(finished)
    for categories in (renamed, content["categories"][:1]):
        ids = {entry["id"] for entry in categories}
        known = [one for one in content["annotations"] if one["category_id"] in ids]
        other = tmp_path / "other.json"
        other.write_text(json.dumps({**content, "annotations": known, "categories": categories}))
        options = replace(make_options(drawn_data, recipe_file, finished), resume=True)
        with pytest.raises(ValueError, match=r"other\.json: its classes \(.*\) are not"):
            train(replace(options, train_annotations=other, val_annotations=other))
    assert kept_in(finished) == before


def test_a_recipe_tells_of_the_codec_that_is_used(
    finished: Path, drawn_data: DrawnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from meinst.engine.train import train

    recipe = tmp_path / "dct.yaml"
    text = RECIPE.replace("n_components: 4,", "kind: dct, n_components: 9,")
    recipe.write_text(text.replace("iterations: 8,", "iterations: 1,"))
    init = str(finished / "best.safetensors")
    options = replace(make_options(drawn_data, recipe, tmp_path / "out"), random_backbone=False)
    info = read_info(train(replace(options, init=init)))
    assert f"the codec (pca, 4 numbers, masks of 14 x 14) is that of --init {init}" in caplog.text
    assert (info.recipe.codec.kind, info.recipe.codec.n_components) == ("pca", 4)
    assert load_recipe(tmp_path / "out" / "recipe.yaml").codec == info.recipe.codec


def test_the_average_shares_what_is_measured_on(tiny_model: MEInst, drawn_data: DrawnData) -> None:
    from meinst.engine.trainee import Trainee

    data = read_coco(drawn_data.annotations, drawn_data.images)
    trainee = Trainee(tiny_model, Recipe(), data, seed=0)
    copied = copy.deepcopy(trainee)
    assert copied.validation is trainee.validation
    assert copied.model is not trainee.model


@pytest.mark.parametrize("option", ["recipe", "codec"])
def test_what_a_run_reads_it_does_not_overwrite(
    option: str, drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    mine = tmp_path / {"recipe": "recipe.yaml", "codec": "codec.npz"}[option]
    shutil.copy(recipe_file, mine)
    options = make_options(drawn_data, recipe_file, tmp_path)
    given = {"recipe": str(mine)} if option == "recipe" else {"codec": mine}
    with pytest.raises(ValueError, match=f"--{option} .*: the run would overwrite it"):
        train(replace(options, **given))
    assert mine.read_bytes() == recipe_file.read_bytes()
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
    drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    options = make_options(drawn_data, recipe_file, tmp_path / "out")
    with pytest.raises(ValueError, match="--accelerator gpu with --devices 1: "):
        train(replace(options, accelerator="gpu"))


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


def test_a_full_disk_leaves_the_last_good_checkpoint(
    drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    options = make_options(drawn_data, recipe_file, tmp_path / "full")
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


def test_starting_from_a_trained_model_keeps_what_fits(
    finished: Path, drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.engine import start as module

    content = drawn_data.content()
    content["categories"] = [{"id": 3, "name": "round"}, {"id": 7, "name": "box"}]
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps(content))
    weights = str(finished / "best.safetensors")
    options = replace(
        make_options(drawn_data, Path(), tmp_path / "out"),
        train_annotations=renamed,
        init=weights,
        recipe=None,
    )
    from meinst.data.coco import read_coco

    recipe = module.find_recipe(options)
    assert recipe.schedule.iterations == 8
    assert recipe.selection.score_threshold is None  # to be found for the new data
    model = module.make_model(options, recipe, read_coco(renamed))
    source = load_model(weights).state_dict()
    for name, tensor in model.state_dict().items():
        if name.startswith("head.logits."):
            assert len(tensor) == 2  # made anew for the new classes
        else:
            assert torch.equal(tensor, source[name]), name
    other = replace(recipe, model=replace(recipe.model, channels=32))
    with pytest.raises(
        ValueError, match=r"--init has another network than the recipe: model\.channels differ"
    ):
        module.make_model(options, other, read_coco(renamed))


def test_a_codec_of_its_own_makes_the_codes_of_an_initial_model_anew(
    finished: Path, drawn_data: DrawnData, tmp_path: Path
) -> None:
    from meinst.codecs import load_codec
    from meinst.data.coco import read_coco
    from meinst.engine.codec_fit import fit_codec
    from meinst.engine.config import CodecOptions
    from meinst.engine.start import find_recipe, make_model

    weights = str(finished / "best.safetensors")
    fitted = fit_codec(drawn_data.annotations, CodecOptions(n_components=3, mask_size=14))
    fitted.save(tmp_path / "three.npz")
    options = replace(
        make_options(drawn_data, Path(), tmp_path / "out"),
        init=weights,
        recipe=None,
        codec=tmp_path / "three.npz",
    )
    recipe = find_recipe(options)
    model = make_model(options, recipe, read_coco(drawn_data.annotations))
    three = load_codec(tmp_path / "three.npz")
    assert all(torch.equal(a, three.state_dict()[n]) for n, a in model.codec.state_dict().items())
    source = load_model(weights).state_dict()
    anew = {n for n, a in model.state_dict().items() if not torch.equal(a, source[n])}
    assert {n for n in anew if not n.startswith("codec.")} == {
        "head.codes.weight",
        "head.codes.bias",
    }


def test_validation_that_can_tell_nothing_is_refused(
    drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    content = drawn_data.content()
    empty = tmp_path / "empty.json"
    crowds = [entry | {"iscrowd": 1} for entry in content["annotations"]]
    empty.write_text(json.dumps(content | {"annotations": crowds}))
    options = replace(
        make_options(drawn_data, recipe_file, tmp_path / "out"), val_annotations=empty
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
    drawn_data: DrawnData, recipe_file: Path, tmp_path: Path
) -> None:
    from meinst.engine.train import train

    options = make_options(drawn_data, recipe_file, tmp_path / "odd")
    with pytest.raises(ValueError, match="batch_size 2 is no multiple of 1 devices times 3"):
        train(replace(options, images_per_device=3))
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train(replace(options, resume=True))
    assert not (tmp_path / "odd").exists()
