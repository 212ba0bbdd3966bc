import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from safetensors.torch import load_file, save_file

from meinst import files
from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.engine import checkpoint
from meinst.engine.checkpoint import (
    FORMAT,
    ModelFileError,
    find_kind,
    list_models,
    load_model,
    read_info,
    save_model,
    write_atomically,
)
from meinst.engine.config import load_recipe


def test_a_saved_model_comes_back_whole(tiny_model: MEInst, tmp_path: Path) -> None:
    path = save_model(tiny_model, tmp_path / "m.safetensors", metrics={"segm_AP": 0.5})
    loaded = load_model(path)
    assert not loaded.training
    assert loaded.class_names == tiny_model.class_names
    assert loaded.options == tiny_model.options
    assert loaded.image_size == tiny_model.image_size
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    ours, theirs = tiny_model.predict(image), loaded.predict(image)
    assert len(ours) > 0
    assert torch.equal(ours.boxes, theirs.boxes)
    assert ours.rle() == theirs.rle()
    assert read_info(path).metrics == {"segm_AP": 0.5}


def test_a_loaded_model_selects_as_the_saved_one(tmp_path: Path) -> None:
    model = make_tiny_model()
    model.selection = SelectOptions(0.1, 0.3, 50, 0.4, 7, True)  # nothing as by default
    path = save_model(model, tmp_path / "m.safetensors")
    assert load_model(path).selection == model.selection


def test_half_files_are_smaller_and_keep_codec_and_norms(
    tiny_model: MEInst, tmp_path: Path
) -> None:
    whole = save_model(tiny_model, tmp_path / "whole.safetensors")
    half = save_model(tiny_model, tmp_path / "half.safetensors", half=True)
    assert half.stat().st_size < 0.75 * whole.stat().st_size
    stored = load_file(half)
    assert stored["head.codes.weight"].dtype == torch.float16
    assert stored["codec.components_"].dtype == torch.float32
    loaded = load_model(half)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    for name, tensor in tiny_model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)


def test_files_that_are_no_model_are_refused(tmp_path: Path) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a model at all")
    with pytest.raises(ModelFileError, match=r"junk\.safetensors: not a complete safetensors file"):
        load_model(junk)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(ModelFileError, match=rf"no {FORMAT} model"):
        load_model(other)
    with pytest.raises(FileNotFoundError, match="neither a file nor one of"):
        load_model(tmp_path / "absent.safetensors")


def test_a_truncated_file_is_refused(tiny_model_file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(tiny_model_file.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match="not a complete safetensors file"):
        load_model(short)


def test_tensors_that_do_not_fit_are_named(tiny_model_file: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_file, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tiny_model_file)
    tensors["head.boxes.bias"] = torch.zeros(9)
    del tensors["head.scales"]
    tensors["stranger"] = torch.zeros(1)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(ModelFileError, match="3 tensors do not fit") as caught:
        load_model(path)
    for part in ("head.boxes.bias (9,) instead of (4,)", "head.scales is missing", "stranger"):
        assert part in str(caught.value)


def test_an_unknown_option_in_the_file_is_refused(tiny_model_file: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_file, "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["recipe"])
    recipe["model"]["wings"] = 2
    path = tmp_path / "wings.safetensors"
    save_file(load_file(tiny_model_file), path, {**metadata, "recipe": json.dumps(recipe)})
    with pytest.raises(ModelFileError, match=r"wings.* another version of meinst wrote it"):
        load_model(path)
    assert find_kind(path) == FORMAT  # a file of this project nevertheless
    assert find_kind(tmp_path) is None


def test_a_damaged_description_is_told(tiny_model_file: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_file, "pt") as file:
        metadata = file.metadata()
    path = tmp_path / "damaged.safetensors"
    without = {key: value for key, value in metadata.items() if key != "recipe"}
    for changed in (without, {**metadata, "recipe": "{oops"}):
        save_file(load_file(tiny_model_file), path, changed)
        with pytest.raises(ModelFileError, match=r"damaged\.safetensors: its description"):
            load_model(path)


def test_the_models_that_should_be_shipped_are() -> None:
    assert list_models() == ["nuclei", "photos"]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", list_models())
def test_shipped_models_are_small_float16_and_have_card_and_recipe(name: str) -> None:
    path = checkpoint.ZOO / f"{name}.safetensors"
    assert path.stat().st_size < 15e6
    info, card = read_info(name), (checkpoint.ZOO / f"{name}.md").read_text()
    assert info.metrics is not None
    for kind, row in (("segm", "masks"), ("bbox", "boxes")):
        aps = " | ".join(
            f"{info.metrics[f'val/{kind}_{part}']:.3f}" for part in ("AP", "AP50", "AP75")
        )
        assert f"| {row} | {aps} |" in card
    threshold = info.recipe.selection.score_threshold
    assert f"from a score of {threshold} on" in card
    assert f"{path.stat().st_size / 1e6:.1f} MB" in card
    trained_by = replace(load_recipe(name).selection, score_threshold=threshold)
    assert info.recipe == replace(load_recipe(name), selection=trained_by)
    readme = Path(__file__).parents[3] / "README.md"
    row = next(line for line in readme.read_text().splitlines() if line.startswith(f"| `{name}`"))
    of_readme = ("bbox_AP", "segm_AP", "segm_AP50")
    assert row.endswith(
        " | ".join(f"{info.metrics[f'val/{part}']:.3f}" for part in of_readme) + " |"
    )
    assert load_file(path)["head.codes.weight"].dtype == torch.float16
