"""The public functions for loading, fusing and saving models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_model

import meinst
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.models.checkpoint import read_info
from meinst.models.exported import ExportedMEInst
from meinst.models.recipe import Recipe


@pytest.fixture
def picture() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (12, 16, 3))
    return np.kron(small, np.ones((12, 12, 1))).astype(np.uint8)


def assert_equal(found: Detections, expected: Detections) -> None:
    assert len(found) == len(expected) > 0
    for name in ("boxes", "scores", "labels", "codes"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def test_all_public_names_can_be_imported() -> None:
    assert "load" in meinst.__all__
    assert "save_model" in meinst.__all__
    for name in meinst.__all__:
        if name == "train":
            pytest.importorskip("lightning")
        assert getattr(meinst, name) is not None


def test_import_does_not_import_torch() -> None:
    code = "import sys, meinst; print('torch' in sys.modules, len(meinst.__all__) > 20)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "False True"


def test_saved_model_keeps_metadata_and_predictions(picture: np.ndarray, tmp_path: Path) -> None:
    model = meinst.load("nuclei")
    path = meinst.save_model(model, tmp_path / "nuclei.safetensors")
    saved, shipped = read_info(path), read_info("nuclei")
    assert saved == shipped
    assert saved.metrics["val/segm_AP"] > 0
    expected = model.predict(picture, score_threshold=0.0, max_detections=5)
    found = meinst.load(path).predict(picture, score_threshold=0.0, max_detections=5)
    assert_equal(found, expected)


def test_changed_weights_are_saved(
    tiny_model_file: Path, picture: np.ndarray, tmp_path: Path
) -> None:
    model = meinst.load(tiny_model_file)
    assert isinstance(model, MEInst)
    before = model.predict(picture)
    with torch.no_grad():
        model.head.boxes.bias += 0.5  # type: ignore[operator]
    changed = model.predict(picture)
    assert not torch.equal(changed.boxes[:1], before.boxes[:1])
    loaded = meinst.load(meinst.save_model(model, tmp_path / "changed.safetensors"))
    assert_equal(loaded.predict(picture), changed)


def test_fused_model_predicts_the_same_up_to_rounding(
    tiny_model_file: Path, picture: np.ndarray
) -> None:
    expected = meinst.load(tiny_model_file).predict(picture)
    found = meinst.load(tiny_model_file).fuse().predict(picture)
    assert len(found) == len(expected) > 0
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-3, rtol=0)
    # Nearly equal scores can swap places, so detections are matched by class and box.
    rows = [torch.column_stack((each.labels * 1e6, each.boxes)) for each in (found, expected)]
    distance, order = torch.cdist(*rows, p=torch.inf).min(1)
    assert order.unique().numel() == len(found)
    assert distance.max() < 0.05


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_fuses_models_of_other_types(kind: torch.dtype) -> None:
    model = make_tiny_model().to(kind)
    image = torch.rand(3, 64, 64, dtype=torch.float64).to(kind)
    with torch.no_grad():
        expected = model([image])
        found = model.fuse()([image])
    tolerance = 1e-6 if kind == torch.float64 else 0.1
    torch.testing.assert_close(found.boxes, expected.boxes, atol=tolerance, rtol=tolerance)


def test_rejects_saving_a_fused_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fused .*fuse\(\)"):
        meinst.save_model(make_tiny_model().fuse(), tmp_path / "fused.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_rejects_saving_an_exported_model(tiny_model: MEInst, tmp_path: Path) -> None:
    recipe = Recipe(
        model=tiny_model.options, resize=tiny_model.resize_options, selection=tiny_model.selection
    )
    exported = ExportedMEInst(tiny_model.class_names, tiny_model.codec, recipe, lambda _: [])
    with pytest.raises(ValueError, match="exported"):
        meinst.save_model(exported, tmp_path / "exported.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_rejects_exporting_a_fused_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fused .*fuse\(\)"):
        meinst.export_model(make_tiny_model().fuse(), tmp_path / "export")
    assert list(tmp_path.iterdir()) == []
