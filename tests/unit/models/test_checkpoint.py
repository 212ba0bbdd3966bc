import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from meinst import files
from meinst.detector.meinst import MEInst
from meinst.detector.select import SelectOptions
from meinst.files import write_atomically
from meinst.models import checkpoint
from meinst.models.checkpoint import (
    list_models,
    load_model,
    read_info,
    save_model,
)
from meinst.models.model_file import MODEL_FORMAT, ModelFileError, read_format
from meinst.models.recipe import load_recipe
from meinst.options import options_to_dict


def test_saved_model_is_loaded_unchanged(tiny_model: MEInst, tmp_path: Path) -> None:
    path = save_model(tiny_model, tmp_path / "m.safetensors", metrics={"segm_AP": 0.5})
    loaded = load_model(path)
    assert not loaded.training
    assert loaded.class_names == tiny_model.class_names
    assert loaded.options == tiny_model.options
    assert loaded.resize_options == tiny_model.resize_options
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
    expected, found = tiny_model.predict(image), loaded.predict(image)
    assert len(expected) > 0
    assert torch.equal(found.boxes, expected.boxes)
    assert found.rle() == expected.rle()
    assert read_info(path).metrics == {"segm_AP": 0.5}


def test_selection_options_are_saved(tmp_path: Path) -> None:
    model = make_tiny_model()
    model.selection = SelectOptions(0.1, 0.3, 50, 0.4, 7, True)  # no default values
    path = save_model(model, tmp_path / "m.safetensors")
    assert load_model(path).selection == model.selection


def test_float16_files_are_smaller_and_keep_the_codec(tiny_model: MEInst, tmp_path: Path) -> None:
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


def test_rejects_files_that_are_not_models(tmp_path: Path) -> None:
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"not a model at all")
    with pytest.raises(ModelFileError, match=r"junk\.safetensors"):
        load_model(junk)
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, other)
    with pytest.raises(ModelFileError, match=rf"not {MODEL_FORMAT}"):
        load_model(other)
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_model(tmp_path / "absent.safetensors")


def test_rejects_a_truncated_file(tiny_model_file: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.safetensors"
    short.write_bytes(tiny_model_file.read_bytes()[:-1000])
    with pytest.raises(ModelFileError, match=r"short\.safetensors: not a complete"):
        load_model(short)


def test_tensors_that_do_not_match_are_named(tiny_model_file: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_file, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(tiny_model_file)
    tensors["head.boxes.bias"] = torch.zeros(9)
    del tensors["head.scales"]
    tensors["extra"] = torch.zeros(1)
    path = tmp_path / "changed.safetensors"
    save_file(tensors, path, metadata)
    with pytest.raises(ModelFileError, match="3 tensors") as caught:
        load_model(path)
    for part in (
        "head.boxes.bias (9,) instead of (4,)",
        "head.scales is missing",
        "extra is unknown",
    ):
        assert part in str(caught.value)


def test_unknown_option_in_the_file_is_named(tiny_model_file: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_file, "pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["recipe"])
    recipe["model"]["wings"] = 2
    path = tmp_path / "wings.safetensors"
    save_file(load_file(tiny_model_file), path, {**metadata, "recipe": json.dumps(recipe)})
    with pytest.raises(ModelFileError, match="wings"):
        load_model(path)
    assert read_format(path) == MODEL_FORMAT  # still a file of this project
    assert read_format(tmp_path) is None


def test_damaged_description_is_an_error(tiny_model_file: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(tiny_model_file, "pt") as file:
        metadata = file.metadata()
    path = tmp_path / "damaged.safetensors"
    without = {key: value for key, value in metadata.items() if key != "recipe"}
    for changed in (without, {**metadata, "recipe": "{oops"}):
        save_file(load_file(tiny_model_file), path, changed)
        with pytest.raises(ModelFileError, match=r"damaged\.safetensors: .*description"):
            load_model(path)


def with_description(model_file: Path, path: Path, **changes: object) -> Path:
    """A copy of a model file with another description."""
    with safe_open(model_file, framework="pt") as file:
        metadata = file.metadata() | {key: json.dumps(value) for key, value in changes.items()}
    save_file(load_file(model_file), path, metadata)
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"class_names": 7}, "class_names is not a list"),
        ({"class_names": []}, "one or more different names"),
        ({"class_names": ["a", "a"]}, "one or more different names"),
        ({"class_names": [1]}, "class_names is not a list of names"),
        ({"codec": []}, "codec is not an object"),
        ({"recipe": None}, "recipe is not an object"),
        ({"metrics": "none"}, "metrics is not an object"),
    ],
)
def test_description_of_other_types_is_an_error(
    changes: dict[str, object], reason: str, tiny_model_file: Path, tmp_path: Path
) -> None:
    path = with_description(tiny_model_file, tmp_path / "other.safetensors", **changes)
    with pytest.raises(ModelFileError, match=rf"other\.safetensors.*{reason}"):
        load_model(path)


LOAD_IN_LITTLE_MEMORY = """
import resource, sys
import meinst
meinst.load(sys.argv[1])  # imports everything
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    meinst.load(sys.argv[2])
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_size_of_the_network_is_checked_before_memory_is_taken(
    tiny_model_file: Path, tmp_path: Path
) -> None:
    recipe = options_to_dict(read_info(tiny_model_file).recipe)
    recipe["model"]["channels"] = 4096
    path = with_description(tiny_model_file, tmp_path / "huge.safetensors", recipe=recipe)
    command = [sys.executable, "-W", "ignore", "-c", LOAD_IN_LITTLE_MEMORY]
    done = subprocess.run(
        [*command, str(tiny_model_file), str(path)], capture_output=True, text=True, check=False
    )
    assert "tensors do not fit the network that the file describes" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "backbone",
    ["hf-hub:someone/anything", "hf_hub:someone/anything", "local-dir:/tmp", "resnet999"],
)
def test_model_files_name_networks_of_timm_alone(
    backbone: str, tiny_model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    recipe = options_to_dict(read_info(tiny_model_file).recipe)
    recipe["model"]["backbone"] = backbone
    path = with_description(tiny_model_file, tmp_path / "other.safetensors", recipe=recipe)
    with pytest.raises(ModelFileError, match=rf"other\.safetensors.*{backbone}"):
        load_model(path)


def test_two_models_are_shipped() -> None:
    assert list_models() == ["nuclei", "photos"]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_shipped_models_match_their_card_and_recipe(name: str) -> None:
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
    selection = replace(load_recipe(name).selection, score_threshold=threshold)
    assert info.recipe == replace(load_recipe(name), selection=selection)
    readme = Path(__file__).parents[3] / "README.md"
    row = next(line for line in readme.read_text().splitlines() if line.startswith(f"| `{name}`"))
    figures = [info.metrics[f"val/{part}"] for part in ("bbox_AP", "segm_AP", "segm_AP50")]
    assert row.endswith(" | ".join(f"{figure:.3f}" for figure in figures) + " |")
    assert load_file(path)["head.codes.weight"].dtype == torch.float16
