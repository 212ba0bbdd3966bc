import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from meinst.detector.meinst import MEInst
from meinst.engine import runtime
from meinst.engine.checkpoint import EXPORT_FORMAT, ModelFileError, load_model, write_described
from meinst.engine.graphs import NetworkAlone
from meinst.engine.runtime import DESCRIPTION, ExportedMEInst, is_export, load, load_exported


@pytest.fixture
def folder(tiny_model: MEInst, tmp_path: Path) -> Path:
    """An export whose graph is no graph."""
    codec = {f"codec.{name}": tensor for name, tensor in tiny_model.codec.state_dict().items()}
    write_described(tmp_path / DESCRIPTION, tiny_model, codec, EXPORT_FORMAT, None, None)
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    return tmp_path


@pytest.fixture
def eager_engine(tiny_model: MEInst, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """In ONNX Runtime's place: the model itself; gives the arrays that it was called with."""
    seen = []

    network = NetworkAlone(tiny_model)

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        seen.append(pixels)
        return [said.detach().numpy() for said in network(torch.from_numpy(pixels))]

    monkeypatch.setattr(runtime, "_open_onnx", lambda *_: run)
    return seen


def test_only_the_network_is_another(
    tiny_model: MEInst, folder: Path, eager_engine: list[np.ndarray]
) -> None:
    exported = load_exported(folder)
    assert exported.class_names == tiny_model.class_names
    assert exported.options == tiny_model.options
    assert exported.image_size == tiny_model.image_size
    assert exported.selection == tiny_model.selection
    assert not exported.training
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (70, side, 3), dtype=np.uint8) for side in (90, 50, 91)]
    found, expected = exported.predict(pictures), tiny_model.predict(pictures)
    # Two pictures are padded to one size and run together, the network's order is (B, 3, H, W).
    assert [pixels.shape for pixels in eager_engine] == [(2, 3, 64, 96), (1, 3, 96, 64)]
    assert all(pixels.flags.c_contiguous for pixels in eager_engine)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) > 0
        assert torch.equal(ours.boxes, theirs.boxes)
        assert ours.rle() == theirs.rle()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32)])
def test_points_follow_from_the_size(
    tiny_model: MEInst, folder: Path, eager_engine: list[np.ndarray], height: int, width: int
) -> None:
    assert eager_engine == []
    pixels = torch.zeros(1, 3, height, width)
    found, expected = load_exported(folder).network(pixels), tiny_model.network(pixels)
    assert found.level_sizes == expected.level_sizes
    assert torch.equal(found.points, expected.points)
    assert torch.equal(found.strides, expected.strides)


def test_levels_beyond_the_padding_round_up(tiny_model: MEInst) -> None:
    # Strides 64 and 128 are not of tiny_model; 96 / 64 and 96 / 128 points, rounded up: 2 and 1.
    from dataclasses import replace

    from meinst.engine.config import Recipe

    strides = (32, 64, 128)
    options = replace(tiny_model.options, strides=strides)
    recipe = Recipe(model=options)
    counts = 3 * 1 + 2 * 1 + 1 * 1

    def run(_: np.ndarray) -> list[np.ndarray]:
        shapes = [(1, counts, 2), (1, counts, 4), (1, counts), (1, counts, 8)]
        return [np.zeros(shape, np.float32) for shape in shapes]

    model = ExportedMEInst(tiny_model.class_names, tiny_model.codec, recipe, run)
    said = model.network(torch.zeros(1, 3, 96, 32))
    assert said.level_sizes == (3, 2, 1)
    assert said.points.shape == (counts, 2)


def test_a_folder_does_not_hide_a_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(load("photos"), MEInst)
    with pytest.raises(ModelFileError, match="a folder, but no export"):
        load(tmp_path / "photos")


def test_load_takes_files_and_folders(
    tiny_model_file: Path, folder: Path, eager_engine: list[np.ndarray]
) -> None:
    assert eager_engine == []
    assert isinstance(load(tiny_model_file), MEInst)
    assert isinstance(load(str(folder)), ExportedMEInst)
    with pytest.raises(FileNotFoundError, match="neither a file nor one of"):
        load(folder / "absent")


def test_other_folders_are_no_exports(folder: Path, tmp_path: Path) -> None:
    assert is_export(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not is_export(empty)
    with pytest.raises(ModelFileError, match=r"empty: a folder, but no export \(meinst\.safetens"):
        load(empty)
    (folder / "model.xml").write_text("two graphs are one too many")
    with pytest.raises(ModelFileError, match="no export"):
        load(folder)


def test_a_description_that_is_another_files_is_refused(
    folder: Path, tiny_model_file: Path
) -> None:
    path = folder / DESCRIPTION
    with pytest.raises(ModelFileError, match=r"no meinst-1 model.*meinst-export-1"):
        load_model(path)
    path.write_bytes(tiny_model_file.read_bytes())
    assert not is_export(folder)
    with pytest.raises(ModelFileError, match=r"no meinst-export-1 model.*`meinst export` wrote"):
        load(folder)


def test_a_codec_that_was_changed_is_told(folder: Path, eager_engine: list[np.ndarray]) -> None:
    assert eager_engine == []
    path = folder / DESCRIPTION
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({**tensors, "codec.mean_": torch.zeros(1, 3)}, path, metadata)
    with pytest.raises(ModelFileError, match=r"codec.mean_ \(1, 3\) instead of \(1, 196\)"):
        load(folder)
    codec = json.loads(metadata["codec"]) | {"kind": "wavelet"}
    save_file(tensors, path, {**metadata, "codec": json.dumps(codec)})
    with pytest.raises(ModelFileError, match="its codec cannot be built"):
        load(folder)


def test_a_missing_engine_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(runtime, "import_module", missing)
    with pytest.raises(ImportError, match=r"package onnxruntime: pip install 'meinst\[export\]'"):
        load(folder)
    (folder / "model.onnx").rename(folder / "model.xml")
    with pytest.raises(ImportError, match="package openvino"):
        load(folder)


@pytest.mark.parametrize(
    ("package", "graph"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")]
)
def test_a_damaged_graph_is_told(folder: Path, package: str, graph: str) -> None:
    pytest.importorskip(package, reason=f"{package} is of the extra 'export'")
    (folder / "model.onnx").rename(folder / graph)
    with pytest.raises(ModelFileError, match=rf"{graph} cannot be opened.*export it again"):
        load(folder)
