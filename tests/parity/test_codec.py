"""The published matrices can be read, and an exact fit on the same masks is at least as good."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from published import FIXTURES

from meinst.codecs import PCACodec
from meinst.data.coco import read_coco

MASKS = Path(__file__).parents[3] / "shared/data/masks/annotations.json"
PUBLISHED_IOU = 0.958594  # printed by the published mask_evaluation.py for its own matrix


def test_published_matrix_survives_reading_and_writing(tmp_path: Path) -> None:
    codec = PCACodec.load(FIXTURES / "matrix_60.npz")
    assert (codec.n_components, codec.mask_size) == (60, 28)
    codec.save(tmp_path / "again.npz")
    with np.load(FIXTURES / "matrix_60.npz") as old, np.load(tmp_path / "again.npz") as new:
        assert set(new.files) == set(old.files) | {"kind", "version", "config"}
        for name in old.files:
            assert np.array_equal(old[name], new[name])


@pytest.fixture(scope="module")
def masks() -> torch.Tensor:
    if not MASKS.is_file():
        pytest.skip(f"the masks that the published tool was fitted on are not at {MASKS}")
    data = read_coco(MASKS)
    return torch.from_numpy(np.concatenate([image.masks(28) for image in data.instances]))


@pytest.fixture(scope="module")
def fitted(masks: torch.Tensor) -> PCACodec:
    return PCACodec().fit(masks)


def pooled_iou(codec: PCACodec, masks: torch.Tensor) -> float:
    """Mean IoU of foreground and background over the pixels of all masks, as published."""
    hits = misses = extra = rest = 0
    for part in masks.split(2048):
        found, expected = codec.inverse_transform(codec.transform(part)) >= 0.5, part.bool()
        hits += int((found & expected).sum())
        misses += int((~found & expected).sum())
        extra += int((found & ~expected).sum())
        rest += int((~found & ~expected).sum())
    return (hits / (hits + misses + extra) + rest / (rest + misses + extra)) / 2


@pytest.mark.slow
def test_first_components_and_variances(fitted: PCACodec) -> None:
    published = PCACodec.load(FIXTURES / "matrix_from_masks.npz")
    cosines = (fitted.components_[0, :20] * published.components_[0, :20]).sum(1)
    assert cosines.abs().min() >= 0.995
    ratio = fitted.explained_variance_[0, :20] / published.explained_variance_[0, :20]
    assert (ratio - 1).abs().max() <= 0.005


@pytest.mark.slow
def test_reconstruction_is_at_least_as_good_as_published(
    fitted: PCACodec, masks: torch.Tensor
) -> None:
    published = PCACodec.load(FIXTURES / "matrix_from_masks.npz")
    exact = pooled_iou(fitted, masks)
    assert exact >= 0.9605 > PUBLISHED_IOU
    assert exact > pooled_iou(published, masks)
