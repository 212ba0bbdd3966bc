import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SyntheticData, make_tiny_model

from meinst.data.coco import read_coco
from meinst.detector.meinst import MEInst
from meinst.export import checks, export, graphs
from meinst.export.checks import ExportError, compare_outputs
from meinst.export.export import export_model
from meinst.locks import lock_file
from meinst.models import exported as runtime
from meinst.models.model_file import EXPORT_FORMAT, write_model_file


@pytest.fixture
def other() -> MEInst:
    """A copy of the shared model that tests can change."""
    return make_tiny_model()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def same_network(tiny_model: MEInst, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the conversion: write a dummy graph, and load the model itself instead of it."""

    def write(_: MEInst, folder: Path, kind: runtime.Format) -> None:
        (folder / runtime.GRAPHS[kind]).write_bytes(b"graph")

    monkeypatch.setattr(export, "write_graph", write)
    monkeypatch.setattr(export, "load_exported", lambda _: tiny_model)


def test_equal_models_do_not_differ(tiny_model: MEInst, other: MEInst, picture: np.ndarray) -> None:
    assert compare_outputs(tiny_model, other, picture) == (0, 0, 0)


def test_differences_are_measured_separately(
    tiny_model: MEInst, other: MEInst, picture: np.ndarray
) -> None:
    with torch.no_grad():
        other.head.boxes.bias += 0.01  # in strides of 8, 16 and 32
    masks, scores, boxes = compare_outputs(tiny_model, other, picture)
    assert (masks, scores) == (0, 0)
    assert boxes == pytest.approx(0.01 * 32, abs=1e-4)  # all points are compared

    other = make_tiny_model()
    with torch.no_grad():
        other.head.codes.bias[0] += 1
    masks, scores, boxes = compare_outputs(tiny_model, other, picture)
    assert 0.01 < masks <= 1
    assert (scores, boxes) == (0, 0)

    other = make_tiny_model()
    with torch.no_grad():
        other.head.centerness.bias -= 20
    masks, scores, boxes = compare_outputs(tiny_model, other, picture)
    assert 0.3 < scores < 1
    assert (masks, boxes) == (0, 0)


@pytest.mark.parametrize("value", [1.0, math.nan])
@pytest.mark.usefixtures("same_network")
def test_differing_graph_is_not_written(
    value: float,
    other: MEInst,
    tmp_path: Path,
) -> None:
    with torch.no_grad():
        other.head.boxes.bias += value
    with pytest.raises(ExportError, match=r"nothing written.*boxes .* px"):
        export_model(other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("same_network")
def test_equal_graph_is_written_completely(tiny_model: MEInst, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "out"
    steps: list[int] = []
    report = export_model(
        tiny_model,
        output,
        "onnx",
        on_step=lambda _, images: steps.append(images),
    )
    assert sorted(path.name for path in output.iterdir()) == ["meinst.safetensors", "model.onnx"]
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert (report.folder, report.float32, report.int8) == (output, None, None)
    assert report.differences == checks.Differences(0, 0, 0)
    assert steps == [0, 0]  # converted and compared, not evaluated
    export_model(tiny_model, output, "openvino")  # replaces the older export completely
    assert sorted(path.name for path in output.iterdir()) == ["meinst.safetensors", "model.xml"]
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.usefixtures("same_network")
def test_other_folders_are_not_overwritten(tiny_model: MEInst, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all my work")
    with pytest.raises(FileExistsError, match="mine exists"):
        export_model(tiny_model, mine)
    with pytest.raises(FileExistsError, match=r"thesis\.txt exists"):
        export_model(tiny_model, mine / "thesis.txt")
    assert (mine / "thesis.txt").read_text() == "all my work"
    (mine / "thesis.txt").unlink()
    export_model(tiny_model, mine)  # an empty folder can be used
    (mine / "app.py").write_text("my work")
    with pytest.raises(FileExistsError, match=r"app\.py"):
        export_model(tiny_model, mine)
    assert (mine / "app.py").read_text() == "my work"


@pytest.mark.usefixtures("same_network")
def test_rejects_a_folder_that_cannot_be_renamed(
    tiny_model: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="cannot be replaced"):
        export_model(tiny_model, Path())
    export_model(tiny_model, Path("new"))


@pytest.mark.usefixtures("same_network")
def test_older_export_is_kept_if_the_new_one_fails(
    tiny_model: MEInst, other: MEInst, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    export_model(tiny_model, output, "onnx")
    with torch.no_grad():
        other.head.boxes.bias += 1
    with pytest.raises(ExportError):
        export_model(other, output, "openvino")
    assert sorted(path.name for path in output.iterdir()) == ["meinst.safetensors", "model.onnx"]


def test_older_export_is_restored_if_the_new_one_cannot_be_moved(
    tiny_model: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, new = tmp_path / "out", tmp_path / "temporary" / "new"
    output.mkdir()
    new.mkdir(parents=True)
    write_model_file(output / runtime.DESCRIPTION, tiny_model, {}, EXPORT_FORMAT, None, None)
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path == new:
            raise PermissionError("another program has it open")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        export._replace(output, new)
    assert (output / runtime.DESCRIPTION).is_file()


@pytest.mark.usefixtures("same_network")
def test_older_export_is_restored_after_a_kill_while_it_was_replaced(
    tiny_model: MEInst, other: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    export_model(tiny_model, output, "onnx")
    with monkeypatch.context() as patch:  # nothing is cleaned up, and the second move is missing
        patch.setattr(export.shutil, "rmtree", lambda _: None)
        rename = Path.rename

        def rename_once(path: Path, target: Path) -> Path:
            if path != output:
                raise KeyboardInterrupt
            return rename(path, target)

        patch.setattr(Path, "rename", rename_once)
        with pytest.raises(KeyboardInterrupt):
            export_model(tiny_model, output, "openvino")
    assert [path.name[:15] for path in tmp_path.iterdir()] == [".meinst-export-"]
    with torch.no_grad():
        other.head.boxes.bias += 1
    with pytest.raises(ExportError):
        export_model(other, output, "openvino")
    assert sorted(path.name for path in output.iterdir()) == ["meinst.safetensors", "model.onnx"]
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.usefixtures("same_network")
def test_two_processes_do_not_export_to_one_folder(tiny_model: MEInst, tmp_path: Path) -> None:
    output = tmp_path / "out"
    with lock_file(output), pytest.raises(BlockingIOError, match=f"{output}: another process"):
        export_model(tiny_model, output)
    assert list(tmp_path.iterdir()) == []


def test_sample_of_calibration_images_depends_on_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="needs calibration images, got none"):
        export._choose([], 0)
    names = [f"{n}.png" for n in range(20)]
    assert sorted(export._choose(names, 0)) == sorted(names)
    monkeypatch.setattr(export, "MAX_CALIBRATION", 5)
    some = export._choose(names, 0)
    assert len(set(some)) == 5
    assert export._choose(names, 0) == some != export._choose(names, 1)


@pytest.mark.usefixtures("same_network")
def test_quantized_graph_that_does_not_open_is_not_written(
    tiny_model: MEInst, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quantize(source: Path, folder: Path, *_: Any) -> None:
        (folder / source.name).write_bytes(b"broken")

    def load(folder: Path) -> MEInst:
        if (folder / "model.xml").read_bytes() == b"broken":
            raise ValueError("the graph does not open")
        return tiny_model

    monkeypatch.setattr(export, "quantize_graph", quantize)
    monkeypatch.setattr(export, "load_exported", load)
    with pytest.raises(ValueError, match="does not open"):
        export_model(tiny_model, tmp_path / "out", calibration=[picture])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("before", "after", "limit", "fails"),
    [
        (0.5, 0.495, 1.0, False),
        (0.5, 0.485, 1.0, True),  # 100 * (0.5 - 0.485) = 1.5 points
        (0.5, 0.485, 2.0, False),
        (0.5, 0.51, 0.0, False),
    ],
)
def test_loss_of_ap_is_limited(before: float, after: float, limit: float, fails: bool) -> None:
    if fails:
        with pytest.raises(ExportError, match=r"0\.500 to 0\.485, by 1\.5 points"):
            checks.check_ap(before, after, limit)
    else:
        checks.check_ap(before, after, limit)


@pytest.mark.usefixtures("same_network")
def test_nothing_is_written_if_too_much_ap_is_lost(
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    picture: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shapes = []

    def quantize(source: Path, folder: Path, *arguments: Any) -> None:
        _, images, prepare = arguments
        shapes.extend(prepare(image).shape for image in images)
        (folder / source.name).write_bytes(b"smaller graph")

    monkeypatch.setattr(export, "quantize_graph", quantize)
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    options = {"calibration": [picture] * 2, "data": data}
    report = export_model(tiny_model, tmp_path / "out", **options, max_ap_drop=0.0)
    assert shapes == [(1, 3, 64, 96)] * 2
    assert (tmp_path / "out" / "model.xml").read_bytes() == b"smaller graph"
    assert report.float32 is not None
    assert report.int8 is not None
    assert report.float32.segm.ap == report.int8.segm.ap
    with pytest.raises(ExportError, match=r"nothing written: .*mask AP"):
        export_model(tiny_model, tmp_path / "new", **options, max_ap_drop=-1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("same_network")
def test_rejects_data_that_cannot_show_a_loss(
    tiny_model: MEInst, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    content = synthetic_data.content()
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps(content | {"annotations": []}))
    data = read_coco(annotations, synthetic_data.images)
    with pytest.raises(ExportError, match=r"nothing written: .*val\.json: no usable objects"):
        export_model(tiny_model, tmp_path / "out", data=data)
    content["images"][0]["width"] += 1
    annotations.write_text(json.dumps(content))
    data = read_coco(annotations, synthetic_data.images)
    with pytest.raises(ExportError, match=r"nothing written: 1 of \d+ images of .*val\.json"):
        export_model(tiny_model, tmp_path / "out", data=data)
    assert list(tmp_path.iterdir()) == [annotations]


def test_fixed_padding_equals_that_of_timm() -> None:
    from timm.layers.conv2d_same import Conv2dSame

    torch.manual_seed(0)
    # Kernel, stride, and padding before and after; with stride 2 it is asymmetric.
    for kernel, stride, padding in ((3, 2, (0, 1)), (5, 2, (1, 2)), (1, 2, (0, 0)), (3, 1, (1, 1))):
        conv = Conv2dSame(4, 8, kernel, stride, groups=2)
        fixed = graphs._FixedPadding(conv)
        assert fixed.padding == padding * 2
        feature = torch.randn(2, 4, 32, 64)
        torch.testing.assert_close(fixed(feature), conv(feature), rtol=0, atol=0)


def test_every_conv_with_dynamic_padding_is_replaced() -> None:
    from meinst.codecs import PCACodec
    from meinst.detector.layers import DepthwiseConv, SameConv
    from meinst.detector.predictor import ModelOptions

    options = ModelOptions(strides=(8, 16, 32), distance_limits=(64, 128), channels=32)
    model = MEInst(("a",), PCACodec(4, mask_size=8), options).eval()
    alone = graphs.NetworkOnly(model)
    plain = [
        m
        for m in alone.modules()
        if isinstance(m, SameConv) or (isinstance(m, DepthwiseConv) and m.same)
    ]
    wrapped = [m.conv for m in alone.modules() if isinstance(m, graphs._FixedPadding)]
    assert plain == wrapped
    assert len(wrapped) == 5  # EfficientNet-Lite0's five layers of stride 2
    assert any(isinstance(m, SameConv) for m in model.backbone.net.children())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.network(pixels)
        for name, found in zip(runtime.output_names(model.options), alone(pixels), strict=True):
            output = getattr(expected, name)
            output = output.dense() if name == "codes" else output
            torch.testing.assert_close(found, output)
