import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from meinst.detector.meinst import MEInst
from meinst.export.graphs import NetworkOnly
from meinst.models import exported as runtime
from meinst.models.checkpoint import load_model
from meinst.models.exported import DESCRIPTION, ExportedMEInst, is_export, load_exported
from meinst.models.load import load
from meinst.models.model_file import EXPORT_FORMAT, ModelFileError, write_model_file


@pytest.fixture
def folder(tiny_model: MEInst, tmp_path: Path) -> Path:
    """An export whose graph file contains no graph."""
    codec = {f"codec.{name}": tensor for name, tensor in tiny_model.codec.state_dict().items()}
    write_model_file(tmp_path / DESCRIPTION, tiny_model, codec, EXPORT_FORMAT, None, None)
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    return tmp_path


@pytest.fixture
def eager_engine(tiny_model: MEInst, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Run the model itself instead of ONNX Runtime; returns the inputs of all later calls."""
    inputs: list[np.ndarray] = []
    network = NetworkOnly(tiny_model)

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        inputs.append(pixels)
        return [output.detach().numpy() for output in network(torch.from_numpy(pixels))]

    run.channels = {"logits": 2, "codes": tiny_model.codec.n_components}  # type: ignore[attr-defined]
    monkeypatch.setattr(runtime, "_ONNXGraph", lambda *_: run)
    return inputs


def test_everything_but_the_network_is_the_same(
    tiny_model: MEInst, folder: Path, eager_engine: list[np.ndarray]
) -> None:
    exported = load_exported(folder)
    assert exported.class_names == tiny_model.class_names
    assert exported.options == tiny_model.options
    assert exported.resize_options == tiny_model.resize_options
    assert exported.selection == tiny_model.selection
    assert not exported.training
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (70, side, 3), dtype=np.uint8) for side in (90, 50, 91)]
    found, expected = exported.predict(pictures), tiny_model.predict(pictures)
    # Two pictures have the same padded size and share a batch.
    assert [pixels.shape for pixels in eager_engine] == [(2, 3, 64, 96), (1, 3, 96, 64)]
    assert all(pixels.flags.c_contiguous for pixels in eager_engine)
    for detections, reference in zip(found, expected, strict=True):
        assert len(detections) > 0
        assert torch.equal(detections.boxes, reference.boxes)
        assert detections.rle() == reference.rle()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96), (160, 32)])
def test_points_depend_on_the_input_size(
    tiny_model: MEInst, folder: Path, eager_engine: list[np.ndarray], height: int, width: int
) -> None:
    assert eager_engine == []
    pixels = torch.zeros(1, 3, height, width)
    found, expected = load_exported(folder).network(pixels), tiny_model.network(pixels)
    assert found.level_sizes == expected.level_sizes
    assert torch.equal(found.points, expected.points)
    assert torch.equal(found.strides, expected.strides)


def test_points_of_coarse_levels_are_rounded_up(tiny_model: MEInst) -> None:
    # A side of 96 has 96 / 64 and 96 / 128 points at strides 64 and 128, rounded up: 2 and 1.
    from dataclasses import replace

    from meinst.models.recipe import Recipe

    strides = (32, 64, 128)
    options = replace(tiny_model.options, strides=strides)
    recipe = Recipe(model=options)
    counts = 3 * 1 + 2 * 1 + 1 * 1

    def run(_: np.ndarray) -> list[np.ndarray]:
        shapes = [(1, counts, 2), (1, counts, 4), (1, counts), (1, counts, 8)]
        return [np.zeros(shape, np.float32) for shape in shapes]

    model = ExportedMEInst(tiny_model.class_names, tiny_model.codec, recipe, run)
    outputs = model.network(torch.zeros(1, 3, 96, 32))
    assert outputs.level_sizes == (3, 2, 1)
    assert outputs.points.shape == (counts, 2)


def test_shipped_model_takes_precedence_over_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(load("photos"), MEInst)
    with pytest.raises(ModelFileError, match="not an export"):
        load(tmp_path / "photos")


def test_load_accepts_files_and_folders(
    tiny_model_file: Path, folder: Path, eager_engine: list[np.ndarray]
) -> None:
    assert eager_engine == []
    assert isinstance(load(tiny_model_file), MEInst)
    assert isinstance(load(str(folder)), ExportedMEInst)
    with pytest.raises(FileNotFoundError, match="absent"):
        load(folder / "absent")


def test_rejects_other_folders(folder: Path, tmp_path: Path) -> None:
    assert is_export(folder)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not is_export(empty)
    with pytest.raises(ModelFileError, match=r"empty is not an export"):
        load(empty)
    (folder / "model.xml").write_text("a second graph")
    with pytest.raises(ModelFileError, match="not an export"):
        load(folder)


def test_rejects_descriptions_of_another_format(folder: Path, tiny_model_file: Path) -> None:
    path = folder / DESCRIPTION
    with pytest.raises(ModelFileError, match=r"meinst-export-1.*meinst-1"):
        load_model(path)
    path.write_bytes(tiny_model_file.read_bytes())
    assert not is_export(folder)
    with pytest.raises(ModelFileError, match="meinst-export-1"):
        load(folder)


def test_changed_codec_is_an_error(folder: Path, eager_engine: list[np.ndarray]) -> None:
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
    with pytest.raises(ModelFileError, match="wavelet"):
        load(folder)


def test_missing_engine_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(runtime, "import_module", missing)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install 'meinst\[export\]'"):
        load(folder)
    (folder / "model.onnx").rename(folder / "model.xml")
    with pytest.raises(ImportError, match="openvino"):
        load(folder)


@pytest.mark.parametrize(
    ("package", "graph"), [("onnxruntime", "model.onnx"), ("openvino", "model.xml")]
)
def test_damaged_graph_is_named(folder: Path, package: str, graph: str) -> None:
    pytest.importorskip(package, reason=f"{package} is in the extra 'export'")
    (folder / "model.onnx").rename(folder / graph)
    with pytest.raises(ModelFileError, match=rf"{graph} cannot be opened"):
        load(folder)
