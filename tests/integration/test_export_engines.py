"""Exports that run in OpenVINO and ONNX Runtime."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SyntheticData, make_tiny_model

from meinst.cli.main import main
from meinst.data.coco import read_coco
from meinst.data.images import find_images
from meinst.detector.head import HeadOptions
from meinst.detector.meinst import MEInst
from meinst.export.checks import compare_outputs
from meinst.export.export import ExportReport, export_model
from meinst.export.graphs import write_graph
from meinst.export.quantization import FLOAT_OUTPUTS, _read_onnx, _read_openvino, float_layers
from meinst.models.exported import DESCRIPTION, Format, import_extra, load_exported
from meinst.models.load import load
from meinst.models.model_file import EXPORT_FORMAT, ModelFileError, write_model_file

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as import_extra
for package in ("openvino", "onnx", "onnxscript", "onnxruntime", "nncf"):
    pytest.importorskip(package, reason=f"{package} is in the extra 'export'")

ENGINES: tuple[Format, ...] = ("openvino", "onnx")


def make_deformable_model() -> MEInst:
    """The tiny model with deformable convs of version 2 and large offsets."""
    model = make_tiny_model()
    head = HeadOptions(num_convs=2, norm_groups=4, deformable="last", modulated=True)
    other = MEInst(
        model.class_names,
        model.codec,
        replace(model.options, head=head),
        model.resize_options,
        model.selection,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.startswith("head") and parameter.ndim == 4:
                scale = 0.3 if "offset" in name else 0.1
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    other.backbone.load_state_dict(model.backbone.state_dict())
    other.fpn.load_state_dict(model.fpn.state_dict())
    return other.eval()


@pytest.fixture(scope="module", autouse=True)
def write_each_graph_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Trace each network once per engine, since torch takes half a minute for it."""
    folder = tmp_path_factory.mktemp("graphs")
    written: list[tuple[MEInst, Format, Path]] = []

    def same(one: MEInst, other: MEInst) -> bool:
        ours, others = one.state_dict(), other.state_dict()
        equal_names = one.options == other.options and ours.keys() == others.keys()
        return equal_names and all(torch.equal(ours[name], others[name]) for name in ours)

    def write_once(model: MEInst, target: Path, engine: Format) -> None:
        for known, its_engine, graph in written:
            if its_engine == engine and same(known, model):
                shutil.copytree(graph, target, dirs_exist_ok=True)
                return
        write_graph(model, target, engine)
        graph = folder / str(len(written))
        graph.mkdir()
        for path in target.iterdir():
            if path.name != DESCRIPTION:
                shutil.copy(path, graph)
        written.append((copy.deepcopy(model), engine, graph))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("meinst.export.export.write_graph", write_once)
        yield


@pytest.fixture(scope="module", params=ENGINES)
def deformable(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[MEInst, Path]:
    model = make_deformable_model()
    folder = tmp_path_factory.mktemp("export") / request.param
    export_model(model, folder, request.param)
    return model, folder


@pytest.fixture(scope="module", params=ENGINES)
def int8(
    request: pytest.FixtureRequest,
    tiny_model: MEInst,
    synthetic_data: SyntheticData,
    tmp_path_factory: pytest.TempPathFactory,
) -> ExportReport:
    folder = tmp_path_factory.mktemp("int8") / request.param
    return export_model(
        tiny_model,
        folder,
        request.param,
        calibration=find_images([synthetic_data.images]),
        data=read_coco(synthetic_data.annotations, synthetic_data.images),
        max_ap_drop=100,
    )


def test_equal_to_the_model_at_every_size(deformable: tuple[MEInst, Path]) -> None:
    model, folder = deformable
    exported = load_exported(folder)
    rng = np.random.default_rng(0)
    for height, width in ((64, 96), (96, 64), (32, 32), (33, 190), (200, 200)):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        masks, scores, boxes = compare_outputs(model, exported, picture)
        assert masks < 1e-4
        assert scores < 1e-5
        assert boxes < 1e-3
    pixels = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = exported.network(pixels), model.network(pixels)
    torch.testing.assert_close(found.codes, expected.codes.dense(), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.points, expected.points)


def test_results_are_not_overwritten_by_the_next_picture(deformable: tuple[MEInst, Path]) -> None:
    exported = load(deformable[1])
    first = exported.network(torch.zeros(1, 3, 32, 32))
    kept = first.codes.clone()
    exported.network(torch.ones(1, 3, 32, 32))
    assert torch.equal(first.codes, kept)


def test_pickled_model_opens_its_graph_again(deformable: tuple[MEInst, Path]) -> None:
    exported = load(deformable[1])
    pixels = torch.randn(1, 3, 64, 32, generator=torch.Generator().manual_seed(0))
    expected = exported.network(pixels).codes.clone()
    content = pickle.dumps(exported)
    assert len(content) < 2**16  # the path of the graph, not its weights
    assert torch.equal(pickle.loads(content).network(pixels).codes, expected)


def test_description_of_another_graph_is_rejected(
    deformable: tuple[MEInst, Path], tmp_path: Path
) -> None:
    model, folder = deformable
    export = shutil.copytree(folder, tmp_path / "export")
    other = MEInst(("only",), model.codec, model.options)
    codec = {f"codec.{name}": tensor for name, tensor in model.codec.state_dict().items()}
    refiner = {k: v for k, v in model.state_dict().items() if k.startswith("refiner.")}
    tensors = {**codec, **refiner}
    write_model_file(export / DESCRIPTION, other, tensors, EXPORT_FORMAT, None, None)
    count = len(model.class_names)
    reason = rf"model\.\w+: its output logits has {count} channels, but .*{DESCRIPTION} needs 1;"
    with pytest.raises(ModelFileError, match=reason):
        load(export)


def test_openvino_does_not_report_its_use() -> None:
    import openvino

    import_extra("openvino")
    assert sys.modules["openvino_telemetry"] is None
    assert type(openvino.tools.ovc.telemetry).__module__.endswith("telemetry_stub")


def test_threads_can_share_a_model(deformable: tuple[MEInst, Path]) -> None:
    exported = load(deformable[1])
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(1, 3, 64, 64, generator=generator) for _ in range(40)]
    expected = [exported.network(picture).codes for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda picture: exported.network(picture).codes, pictures))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_mask_refinement_is_exported(engine: Format, tmp_path: Path) -> None:
    model = make_tiny_model(refine_channels=6)
    report = export_model(model, tmp_path / engine, engine)
    assert report.differences.masks < 1e-4
    picture = np.random.default_rng(5).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    expected, found = (m.predict(picture) for m in (model, load_exported(tmp_path / engine)))
    assert found.codes.dtype == torch.uint8  # refined
    torch.testing.assert_close(found.soft_masks(), expected.soft_masks(), atol=1e-3, rtol=0)


def test_int8_gives_nearly_the_same(
    int8: ExportReport, tiny_model: MEInst, synthetic_data: SyntheticData
) -> None:
    quantized = load(int8.folder)
    (picture,) = synthetic_data.images.glob("large.png")
    masks, scores, boxes = compare_outputs(tiny_model, quantized, np.asarray(_open(picture)))
    assert 1e-5 < scores < 0.2  # different, but close
    assert masks > 1e-5
    assert 1e-5 < boxes < 16
    assert int8.float32 is not None
    assert int8.int8 is not None
    assert int8.float32.segm.ap == pytest.approx(int8.int8.segm.ap, abs=0.2)


def test_int8_excludes_first_and_last_convs_and_norms(int8: ExportReport) -> None:
    folder, rounded = int8.folder, {"FakeQuantize", "DequantizeLinear"}
    if (folder / "model.xml").exists():
        import openvino

        layers, outputs = _read_openvino(openvino.Core().read_model(folder / "model.xml"))
    else:
        import onnx

        layers, outputs = _read_onnx(onnx.load(folder / "model.onnx").graph)

    def takes_rounded(name: str) -> bool:
        return any(layers[source].operation in rounded for source in layers[name].inputs)

    def with_operation(part: str) -> list[str]:
        return [name for name, layer in layers.items() if part in layer.operation]

    kept = float_layers(layers, [outputs[name] for name in FLOAT_OUTPUTS])
    convs = [name for name in with_operation("Conv") if name not in with_operation("Convert")]
    assert 6 < len(kept) < len(convs)
    assert [name for name in kept if takes_rounded(name)] == []
    assert sum(takes_rounded(name) for name in convs) > len(convs) / 3
    assert len(with_operation("Normalization")) == 9  # three towers at three levels
    assert set(with_operation("Normalization")) <= set(kept)


def test_int8_weights_have_one_byte(int8: ExportReport, tiny_model: MEInst) -> None:
    weights = int8.folder / "model.bin"
    if not weights.exists():
        pytest.skip("nncf writes ONNX weights in float, with nodes that quantize them")
    parameters = sum(parameter.numel() for parameter in tiny_model.parameters())
    assert weights.stat().st_size < 0.5 * 4 * parameters


def test_command_line_exports_predicts_and_evaluates(
    tiny_model_file: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "exported"
    assert main(["export", str(tiny_model_file), "--output", str(folder)]) == 0
    output_text = capsys.readouterr().out
    assert "largest differences from the model: soft masks" in output_text
    assert f"written: {folder}" in output_text
    numbers = []
    for model in (tiny_model_file, folder):
        output = tmp_path / f"{model.name}.json"
        data = [
            "--images",
            str(synthetic_data.images),
            "--annotations",
            str(synthetic_data.annotations),
        ]
        assert main(["evaluate", "--model", str(model), *data, "--output", str(output)]) == 0
        numbers.append(json.loads(output.read_text())["segm"]["AP"])
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-3)
    output = tmp_path / "found"
    sources = [
        "predict",
        str(synthetic_data.images),
        "--model",
        str(folder),
        "--output",
        str(output),
    ]
    assert main(sources) == 0
    assert len(json.loads((output / "predictions.json").read_text())) > 0
    assert main(["export", str(folder), "--output", str(tmp_path / "again")]) == 2
    assert f"{folder} is a folder" in capsys.readouterr().err


def test_command_line_quantizes_and_evaluates(
    tiny_model_file: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = ["--calibration-images", str(synthetic_data.images)]
    data += ["--annotations", str(synthetic_data.annotations), "--int8"]
    export = ["export", str(tiny_model_file), "--output", str(tmp_path / "int8"), *data]
    assert main([*export, "--max-ap-drop", "-100"]) != 0  # would need a gain of 100 points
    assert "nothing written: quantization lowers mask AP from" in capsys.readouterr().err
    assert not (tmp_path / "int8").exists()
    assert main([*export, "--max-ap-drop", "100"]) == 0
    output_text = capsys.readouterr().out
    pattern = r"^(float32|int8): box AP \S+, mask AP (\S+) \("
    aps = dict(re.findall(pattern, output_text, re.MULTILINE))
    assert float(aps["float32"]) == pytest.approx(float(aps["int8"]), abs=0.2)
    assert (tmp_path / "int8" / "model.xml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "--int8 needs --calibration-images"),
        (["--calibration-images", "{images}"], "--calibration-images needs --int8"),
        (["--int8", "--calibration-images", "{empty}"], "no images"),
        (["--int8", "--calibration-images", "{absent}"], "absent"),
        (["--annotations", "{annotations}"], "--annotations needs --images"),
        (["--images", "{images}"], "--images needs --annotations"),
        (["--max-ap-drop", "0.2"], "--max-ap-drop needs --int8 and --annotations"),
        (["--format", "tflite"], "tflite"),
    ],
)
def test_rejects_options_that_do_not_fit_together(
    options: list[str],
    message: str,
    tiny_model_file: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "images": synthetic_data.images,
        "annotations": synthetic_data.annotations,
        "empty": tmp_path / "empty",
        "absent": tmp_path / "absent",
    }
    given = [option.format(**places) for option in options]
    output = tmp_path / "out"
    assert main(["export", str(tiny_model_file), "--output", str(output), *given]) == 2
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_network_that_cannot_be_traced_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meinst.export.export.write_graph", write_graph)  # not a known graph
    model = make_tiny_model()
    model.fpn.forward = lambda _: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match=r"test_efficientnet.*ZeroDivisionError"):
        export_model(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _open(path: Path) -> np.ndarray:
    from meinst.data.images import load_image

    return load_image(path)
