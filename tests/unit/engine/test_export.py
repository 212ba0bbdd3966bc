import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DrawnData, make_tiny_model

from meinst.data.coco import read_coco
from meinst.detector.meinst import MEInst
from meinst.engine import export, graphs, runtime
from meinst.engine.checkpoint import EXPORT_FORMAT, write_described
from meinst.engine.export import ExportError, compare, export_model


@pytest.fixture
def other() -> MEInst:
    """A copy of the shared model that may be changed."""
    return make_tiny_model()


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture
def same_network(tiny_model: MEInst, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion without the engines' packages: a file, which is read as the model itself."""

    def write(_: MEInst, folder: Path, kind: runtime.Format) -> None:
        (folder / runtime.GRAPHS[kind]).write_bytes(b"graph")

    monkeypatch.setattr(export, "write_graph", write)
    monkeypatch.setattr(export, "load_exported", lambda _: tiny_model)


def test_equal_models_do_not_differ(tiny_model: MEInst, other: MEInst, picture: np.ndarray) -> None:
    assert compare(tiny_model, other, picture) == (0, 0, 0)


def test_what_differs_is_measured_in_its_own_unit(
    tiny_model: MEInst, other: MEInst, picture: np.ndarray
) -> None:
    with torch.no_grad():
        other.head.boxes.bias += 0.01  # in strides of 8, 16 and 32
    masks, scores, boxes = compare(tiny_model, other, picture)
    assert (masks, scores) == (0, 0)
    assert boxes == pytest.approx(0.01 * 32, abs=1e-4)  # all points are among those compared

    other = make_tiny_model()
    with torch.no_grad():
        other.head.codes.bias[0] += 1
    masks, scores, boxes = compare(tiny_model, other, picture)
    assert 0.01 < masks <= 1
    assert (scores, boxes) == (0, 0)

    other = make_tiny_model()
    with torch.no_grad():
        other.head.centerness.bias -= 20
    masks, scores, boxes = compare(tiny_model, other, picture)
    assert 0.3 < scores < 1
    assert (masks, boxes) == (0, 0)


@pytest.mark.parametrize("value", [1.0, math.nan])
@pytest.mark.usefixtures("same_network")
def test_a_graph_that_differs_is_not_written(
    value: float,
    other: MEInst,
    tmp_path: Path,
) -> None:
    with torch.no_grad():
        other.head.boxes.bias += value
    with pytest.raises(ExportError, match=r"nothing written.*differs from the model.*boxes .* px"):
        export_model(other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("same_network")
def test_an_equal_graph_is_written_whole(tiny_model: MEInst, tmp_path: Path) -> None:
    output = tmp_path / "runs" / "out"
    steps: list[int] = []
    report = export_model(
        tiny_model,
        output,
        "onnx",
        metrics={"AP": 0.5},
        on_step=lambda _, images: steps.append(images),
    )
    assert sorted(path.name for path in output.iterdir()) == ["meinst.safetensors", "model.onnx"]
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert (report.folder, report.float32, report.int8) == (output, None, None)
    assert report.differences == export.Differences(0, 0, 0)
    assert steps == [0, 0]  # converted and compared; nothing measured
    export_model(tiny_model, output, "openvino")  # an older export is replaced, as a whole
    assert sorted(path.name for path in output.iterdir()) == ["meinst.safetensors", "model.xml"]
    assert [path.name for path in output.parent.iterdir()] == ["out"]


@pytest.mark.usefixtures("same_network")
def test_other_folders_are_not_overwritten(tiny_model: MEInst, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all my work")
    with pytest.raises(FileExistsError, match="mine is there and no export"):
        export_model(tiny_model, mine)
    with pytest.raises(FileExistsError, match=r"thesis\.txt is there and no export"):
        export_model(tiny_model, mine / "thesis.txt")
    assert (mine / "thesis.txt").read_text() == "all my work"
    (mine / "thesis.txt").unlink()
    export_model(tiny_model, mine)  # an empty folder is nobody's
    (mine / "app.py").write_text("my work")
    with pytest.raises(FileExistsError, match=r"it holds app\.py, which would be lost"):
        export_model(tiny_model, mine)
    assert (mine / "app.py").read_text() == "my work"


@pytest.mark.usefixtures("same_network")
def test_a_folder_that_cannot_be_renamed_is_refused_at_once(
    tiny_model: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="cannot be renamed; choose a new one in it"):
        export_model(tiny_model, Path())
    export_model(tiny_model, Path("new"))


@pytest.mark.usefixtures("same_network")
def test_an_older_export_stays_if_the_new_one_fails(
    tiny_model: MEInst, other: MEInst, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    export_model(tiny_model, output, "onnx")
    with torch.no_grad():
        other.head.boxes.bias += 1
    with pytest.raises(ExportError):
        export_model(other, output, "openvino")
    assert sorted(path.name for path in output.iterdir()) == ["meinst.safetensors", "model.onnx"]


def test_the_older_export_comes_back_if_the_new_one_cannot_be_moved(
    tiny_model: MEInst, tmp_path: Path
) -> None:
    output, absent = tmp_path / "out", tmp_path / "temporary" / "new"
    output.mkdir()
    absent.parent.mkdir()
    write_described(output / runtime.DESCRIPTION, tiny_model, {}, EXPORT_FORMAT, None, None)
    with pytest.raises(FileNotFoundError):
        export._replace(output, absent)
    assert (output / runtime.DESCRIPTION).is_file()


def test_calibration_images_are_drawn_with_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no calibration images"):
        export._choose([], 0)
    names = [f"{n}.png" for n in range(20)]
    assert sorted(export._choose(names, 0)) == sorted(names)
    monkeypatch.setattr(export, "MAX_CALIBRATION", 5)
    some = export._choose(names, 0)
    assert len(set(some)) == 5
    assert export._choose(names, 0) == some != export._choose(names, 1)


@pytest.mark.parametrize(
    ("before", "after", "limit", "fails"),
    [
        (0.5, 0.495, 1.0, False),
        (0.5, 0.485, 1.0, True),  # 100 * (0.5 - 0.485) = 1.5 points
        (0.5, 0.485, 2.0, False),
        (0.5, 0.51, 0.0, False),
    ],
)
def test_a_loss_of_ap_is_limited(before: float, after: float, limit: float, fails: bool) -> None:
    if fails:
        with pytest.raises(ExportError, match=r"0\.500 to 0\.485, by 1\.5 points, and 1 are allo"):
            export._check_ap(before, after, limit)
    else:
        export._check_ap(before, after, limit)


@pytest.mark.usefixtures("same_network")
def test_too_great_a_loss_of_ap_writes_nothing(
    tiny_model: MEInst,
    drawn_data: DrawnData,
    picture: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def quantise(source: Path, folder: Path, *given: Any) -> None:
        _, images, prepare = given
        seen.extend(prepare(image).shape for image in images)
        (folder / source.name).write_bytes(b"smaller graph")

    monkeypatch.setattr(export, "quantise_graph", quantise)
    data = read_coco(drawn_data.annotations, drawn_data.images)
    options = {"calibration": [picture] * 2, "data": data}
    report = export_model(tiny_model, tmp_path / "out", **options, max_ap_drop=0.0)
    assert seen == [(1, 3, 64, 96)] * 2
    assert (tmp_path / "out" / "model.xml").read_bytes() == b"smaller graph"
    assert report.float32 is not None
    assert report.int8 is not None
    assert report.float32.segm["AP"] == report.int8.segm["AP"]
    with pytest.raises(ExportError, match="nothing written: with 8 bits the mask AP falls"):
        export_model(tiny_model, tmp_path / "new", **options, max_ap_drop=-1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("same_network")
def test_data_that_cannot_tell_of_a_loss_are_refused(
    tiny_model: MEInst, drawn_data: DrawnData, tmp_path: Path
) -> None:
    content = drawn_data.content()
    annotations = tmp_path / "val.json"
    annotations.write_text(json.dumps(content | {"annotations": []}))
    data = read_coco(annotations, drawn_data.images)
    with pytest.raises(ExportError, match=r"val\.json has no object of the model's classes"):
        export_model(tiny_model, tmp_path / "out", data=data)
    content["images"][0]["width"] += 1
    annotations.write_text(json.dumps(content))
    data = read_coco(annotations, drawn_data.images)
    with pytest.raises(
        ExportError, match=r"nothing written: 1 of \d+ images of .*val\.json cannot"
    ):
        export_model(tiny_model, tmp_path / "out", data=data)
    assert list(tmp_path.iterdir()) == [annotations]


def test_fixed_padding_is_that_of_timm() -> None:
    from timm.layers.conv2d_same import Conv2dSame

    torch.manual_seed(0)
    # (kernel, stride): padded on one side more, by hand 0+1, 1+2, 0, and alike, 1+1.
    for kernel, stride, padding in ((3, 2, (0, 1)), (5, 2, (1, 2)), (1, 2, (0, 0)), (3, 1, (1, 1))):
        conv = Conv2dSame(4, 8, kernel, stride, groups=2)
        fixed = graphs._FixedPadding(conv)
        assert fixed.padding == padding * 2
        feature = torch.randn(2, 4, 32, 64)
        torch.testing.assert_close(fixed(feature), conv(feature), rtol=0, atol=0)


def test_every_conv_that_pads_by_size_is_replaced() -> None:
    from timm.layers.conv2d_same import Conv2dSame

    from meinst.codecs import PCACodec
    from meinst.detector.layers import DepthwiseConv
    from meinst.detector.meinst import ModelOptions

    options = ModelOptions(strides=(8, 16, 32), distance_limits=(64, 128), channels=32)
    model = MEInst(("a",), PCACodec(4, mask_size=8), options).eval()
    alone = graphs.NetworkAlone(model)
    plain = [
        m
        for m in alone.modules()
        if isinstance(m, Conv2dSame) or (isinstance(m, DepthwiseConv) and m.same)
    ]
    held = [m.conv for m in alone.modules() if isinstance(m, graphs._FixedPadding)]
    assert plain == held
    assert len(held) == 5  # EfficientNet-Lite0's five layers of stride 2
    assert any(isinstance(m, Conv2dSame) for m in model.backbone.net.children())
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model.network(pixels)
        for name, found in zip(runtime.output_names(model.options), alone(pixels), strict=True):
            wanted = getattr(expected, name)
            wanted = wanted.everywhere() if name == "codes" else wanted
            torch.testing.assert_close(found, wanted)
