"""Feature maps and raw outputs at a shorter side of 160 equal those of the published system."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from published import FIXTURES, WEIGHTS, at_side, load_published, recorded

from meinst.data.images import load_image
from meinst.data.transforms import resize_image
from meinst.types import HeadOutputs

TOLERANCE = 5e-4  # relative to the largest recorded value if that is above 1
LEVELS = (3, 4, 5, 6, 7)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("weights", WEIGHTS),
]


@functools.cache
def features_and_outputs(weights: str) -> tuple[list[torch.Tensor], HeadOutputs]:
    model = at_side(load_published(weights), 160)
    image = resize_image(load_image(FIXTURES / "a.png"), model.resize_options)
    with torch.inference_mode():
        pixels = model.prepare([torch.from_numpy(image).permute(2, 0, 1)])
        features = model.fpn(model.backbone(pixels))
        return features, model.head(features)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    difference = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    assert difference <= TOLERANCE


def test_resized_picture(weights: str) -> None:
    model = at_side(load_published(weights), 160)
    resized = resize_image(load_image(FIXTURES / "a.png"), model.resize_options)  # (H, W, 3) RGB
    expected = recorded(f"heads_{weights}_160_a")["resized_image"]  # (3, H, W) BGR
    np.testing.assert_array_equal(resized[..., ::-1].transpose(2, 0, 1), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_pyramid(weights: str, level: int) -> None:
    features, _ = features_and_outputs(weights)
    expected = recorded(f"heads_{weights}_160_a")[f"fpn_p{level}"]
    assert_close(features[LEVELS.index(level)][0].numpy(), expected)


@pytest.mark.parametrize(
    ("published_name", "name"),
    [
        ("cls_logits", "logits"),
        ("bbox_reg", "boxes"),
        ("ctrness", "centerness"),
        ("mask_coef", "codes"),
    ],
)
@pytest.mark.parametrize("level", LEVELS)
@torch.no_grad()
def test_raw_outputs(weights: str, level: int, published_name: str, name: str) -> None:
    _, outputs = features_and_outputs(weights)
    expected = recorded(f"heads_{weights}_160_a")[f"{published_name}_p{level}"]  # (channels, H, W)
    place = LEVELS.index(level)
    start = sum(outputs.level_sizes[:place])
    points = torch.arange(start, start + outputs.level_sizes[place])
    found = getattr(outputs, name)[torch.zeros_like(points), points].reshape(-1, len(expected))
    assert_close(found.T.numpy(), expected.reshape(len(expected), -1))  # (channels, H * W)
