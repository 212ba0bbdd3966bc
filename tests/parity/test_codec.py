"""The published matrices: read as they are, and matched by an exact fit on the same masks."""

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


def test_published_matrix_is_read_whole_and_written_again(tmp_path: Path) -> None:
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
        pytest.skip(f"the masks that the published tool was run on are not at {MASKS}")
    data = read_coco(MASKS)
    return torch.from_numpy(np.concatenate([one.masks(28) for one in data.instances]))


@pytest.fixture(scope="module")
def fitted(masks: torch.Tensor) -> PCACodec:
    return PCACodec().fit(masks)


def pooled_iou(codec: PCACodec, masks: torch.Tensor) -> float:
    """Mean of foreground's and background's IoU over all pixels together, as published."""
    hits = misses = extra = rest = 0
    for part in masks.split(2048):
        found, wanted = codec.inverse_transform(codec.transform(part)) >= 0.5, part.bool()
        hits += int((found & wanted).sum())
        misses += int((~found & wanted).sum())
        extra += int((found & ~wanted).sum())
        rest += int((~found & ~wanted).sum())
    return (hits / (hits + misses + extra) + rest / (rest + misses + extra)) / 2


@pytest.mark.slow
def test_first_components_and_variances(fitted: PCACodec) -> None:
    published = PCACodec.load(FIXTURES / "matrix_from_masks.npz")
    ours, theirs = fitted.components_[0, :20], published.components_[0, :20]
    assert (ours * theirs).sum(1).abs().min() >= 0.995
    ratio = fitted.explained_variance_[0, :20] / published.explained_variance_[0, :20]
    assert (ratio - 1).abs().max() <= 0.005


@pytest.mark.slow
def test_reconstruction_is_at_least_the_published_one(
    fitted: PCACodec, masks: torch.Tensor
) -> None:
    published = PCACodec.load(FIXTURES / "matrix_from_masks.npz")
    exact = pooled_iou(fitted, masks)
    assert exact >= 0.9605 > PUBLISHED_IOU
    assert exact > pooled_iou(published, masks)
