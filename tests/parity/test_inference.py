"""``predict`` at shorter sides of 800 and 512 gives the detections of the published system.

A recorded detection is identified by its class and its location, the point of the feature maps that
predicted it, since nearly equal scores can swap places.
"""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from published import FIXTURES, Inference, Recorded, at_side, infer, load_published, recorded
from pycocotools import mask as coco_mask

from meinst.data.images import load_image
from meinst.detections import Detections
from meinst.detector.head import CodesOnDemand
from meinst.detector.select import ImageSizes, select_detections

BOX, SCORE, SOFT_MASK = 0.02, 1e-4, 1e-3
PIXELS = 1e-4  # share of all pixels of all pasted masks of a picture
CASES = [
    (weights, side, picture)
    for weights, sides in (("r50_plain", (800,)), ("r50_deform", (800, 512)))
    for side in sides
    for picture in "abc"
]

pytestmark = pytest.mark.slow
every_case = pytest.mark.parametrize(("weights", "side", "picture"), CASES)


def before_clipping(
    weights: str, inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> Detections:
    """The same selection in the resized picture, without clipping the boxes."""
    model = load_published(weights)
    size = ImageSizes(original=inference.resized, resized=inference.resized)
    monkeypatch.setattr("meinst.detector.select.clip_boxes", lambda boxes, _: boxes)
    selection = replace(model.selection, score_threshold=0.0)
    return select_detections(inference.outputs, [size], model.codec, model.class_names, selection)[
        0
    ]


@torch.no_grad()
def found_at(inference: Inference, detections: Detections) -> list[tuple[int, int, int]]:
    """Class and location (x, y) of each detection, found by comparing codes with all points."""
    assert isinstance(inference.outputs.codes, CodesOnDemand)
    exact = "donot_use_mm_for_euclid_dist"
    codes = inference.outputs.codes.dense()[0]
    distance = torch.cdist(detections.codes, codes, compute_mode=exact)  # (N, P)
    assert (distance.amin(1) < 1e-3).all()
    points = distance.argmin(1)
    places = inference.outputs.points[points].int().tolist()
    return [(c, x, y) for c, (x, y) in zip(detections.labels.tolist(), places, strict=True)]


def matched(found: list[tuple[int, int, int]], expected: list[tuple[int, int, int]]) -> list[int]:
    """Index into ``found`` of each element of ``expected``; both must have the same elements."""
    assert len(set(found)) == len(found)
    assert set(found) == set(expected)
    return [found.index(key) for key in expected]


def recorded_keys(case: Recorded, kept: np.ndarray) -> list[tuple[int, int, int]]:
    classes, places = case["pre_classes"][kept], case["pre_locations"][kept].astype(int)
    return [(c, x, y) for c, (x, y) in zip(classes.tolist(), places.tolist(), strict=True)]


def has_area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


@every_case
def test_detections_before_clipping(
    weights: str, side: int, picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, inference = recorded(f"infer_{weights}_{side}_{picture}"), infer(weights, picture, side)
    assert inference.resized == tuple(case["resized_hw"])
    found = before_clipping(weights, inference, monkeypatch)
    # A few recorded boxes are empty even before clipping. Both systems drop them with the boxes
    # that clipping makes empty.
    solid = has_area(case["pre_boxes"])
    assert solid.sum() >= 98
    order = matched(found_at(inference, found), recorded_keys(case, solid))
    close = functools.partial(np.testing.assert_allclose, rtol=0)
    close(found.boxes.numpy()[order], case["pre_boxes"][solid], atol=BOX)
    close(found.scores.numpy()[order], case["pre_scores"][solid], atol=SCORE)
    if picture == "a":
        close(found.soft_masks().numpy()[order], case["masks28"][solid], atol=SOFT_MASK)


@every_case
def test_predicted_detections(weights: str, side: int, picture: str) -> None:
    case, inference = recorded(f"infer_{weights}_{side}_{picture}"), infer(weights, picture, side)
    found = inference.detections
    assert found.image_size == tuple(case["orig_hw"])
    height, width = case["resized_hw"]
    kept = has_area(case["pre_boxes"].clip(0, (width, height, width, height)))
    order = matched(found_at(inference, found), recorded_keys(case, kept))
    np.testing.assert_array_equal(found.labels.numpy()[order], case["pred_classes"])
    np.testing.assert_allclose(found.boxes.numpy()[order], case["pred_boxes"], rtol=0, atol=BOX)
    np.testing.assert_allclose(found.scores.numpy()[order], case["scores"], rtol=0, atol=SCORE)

    expected = coco_mask.decode(json.loads(str(case["rle"]))).transpose(2, 0, 1)  # (N, H, W)
    pasted = found.masks().numpy()[order]
    assert pasted.shape == expected.shape
    assert (pasted != expected).mean() <= PIXELS
    lengths = coco_mask.decode(found[order].rle()).transpose(2, 0, 1)
    np.testing.assert_array_equal(lengths, pasted)


@pytest.mark.parametrize("weights", ["r50_plain", "r50_deform"])
def test_batch_of_mixed_sizes_equals_single_images(weights: str) -> None:
    # Synthetic pictures of different sizes, two of which are padded to the same size: the padding
    # of one picture must not change the results of another.
    model = at_side(load_published(weights), 160)
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (9, 12, 3)), np.ones((20, 20, 1))).astype(np.uint8)
    pictures = [load_image(FIXTURES / "b.png"), blocks, blocks[:, :230], blocks[:100]]
    together = model.predict(pictures, score_threshold=0.0)
    for picture, found in zip(pictures, together, strict=True):
        alone = model.predict(picture, score_threshold=0.0)
        assert len(found) == len(alone) > 10
        # Tolerances are the noise of the published code: 3e-3 px for boxes and 2e-5 for scores,
        # which are brought to the same scale. Classes are far apart, so that they cannot be mixed.
        rows = [
            torch.column_stack((d.labels * 1e6, d.boxes, d.scores * (3e-3 / 2e-5)))
            for d in (found, alone)
        ]
        distance, order = torch.cdist(*rows, p=torch.inf).min(dim=1)
        assert order.unique().numel() == len(found)
        assert distance.max() <= 3e-3
