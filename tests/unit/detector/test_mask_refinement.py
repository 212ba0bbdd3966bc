"""Mask refinement: sampling of features, training, packed masks and scores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_model

from meinst.detections import Detections
from meinst.detector.losses import LossOptions, compute_losses
from meinst.detector.mask_refinement import MaskRefiner, RefinementFeatures, maskness
from meinst.detector.meinst import MEInst
from meinst.detector.predictor import ModelOptions
from meinst.detector.select import ImageSizes, select_detections
from meinst.models.checkpoint import load_model, save_model
from meinst.ops.dice import dice_loss
from meinst.types import HeadOutputs, Target

BOXES = torch.tensor([[8.0, 4.0, 22.0, 18.0], [30.0, 30.0, 58.0, 44.0]])


@pytest.fixture(scope="module")
def refining() -> MEInst:
    return make_tiny_model(refine_channels=6)


@pytest.fixture
def images() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 256, (3, 64, 96), generator=generator).byte() for _ in range(2)]


def one_target() -> Target:
    mask = torch.zeros(1, 14, 14, dtype=torch.uint8)
    mask[:, 3:12, 2:9] = 1
    return Target(torch.tensor([[16.0, 8.0, 60.0, 50.0]]), torch.tensor([1]), mask)


def no_target() -> Target:
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 14, 14))


def refinement_loss(
    model: MEInst, outputs: HeadOutputs, targets: list[Target], samples: int = 256
) -> torch.Tensor:
    options = LossOptions(refine_weight=3.0, refine_samples=samples)
    limits = model.options.distance_limits
    losses = compute_losses(outputs, targets, model.codec, limits, options, refiner=model.refiner)
    return losses["refine"]


def test_features_have_twice_the_resolution_of_the_pyramid() -> None:
    features = RefinementFeatures(fine_channels=5, pyramid_channels=8, channels=3)
    assert features(torch.randn(2, 5, 8, 12), torch.randn(2, 8, 4, 6)).shape == (2, 3, 8, 12)


def test_initial_refiner_changes_nothing() -> None:
    refiner = MaskRefiner(3)
    logits = torch.randn(2, 14, 14)
    corrections = refiner(torch.randn(1, 3, 32, 32), 2.0, torch.zeros(2).long(), BOXES, logits)
    torch.testing.assert_close(corrections, torch.zeros(2, 14, 14))


def test_features_are_sampled_inside_the_box_of_the_right_image() -> None:
    refiner = MaskRefiner(1)
    for layer in refiner.layers:
        if isinstance(layer, torch.nn.Conv2d):  # pass the feature channel through
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            layer.weight.data[0, 0, 1, 1] = 1
    # A ramp: value x + 100 y at x, y in pixels; cell i has its centre at 2 i + 1.
    at = torch.arange(32) * 2.0 + 1
    ramp = at[None, :] + 100 * at[:, None]
    features = torch.stack((torch.zeros_like(ramp), ramp))[
        :, None
    ]  # only the second image has the ramp
    added = refiner(features, 2.0, torch.tensor([1, 0]), BOXES, torch.zeros(2, 14, 14))
    # The first box measures 14 x 14 pixels, so its grid's centres are at 8.5, 9.5, ... and 4.5, ...
    expected = (torch.arange(14) + 8.5)[None, :] + 100 * (torch.arange(14) + 4.5)[:, None]
    torch.testing.assert_close(added[0], expected)
    torch.testing.assert_close(added[1], torch.zeros(14, 14))


def test_no_boxes_give_no_corrections() -> None:
    added = MaskRefiner(2)(
        torch.randn(1, 2, 8, 8), 4.0, torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0, 7, 7)
    )
    assert added.shape == (0, 7, 7)


def test_loss_uses_refined_masks_in_the_annotated_box(
    refining: MEInst, images: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        outputs = refining(images)
        # Empty boxes overlap nothing, so the masks are refined in the annotated boxes.
        outputs = replace(outputs, boxes=torch.zeros_like(outputs.boxes))
        targets = [one_target(), no_target()]
        loss = refinement_loss(refining, outputs, targets, samples=1)
        # Only the most central positive point is refined: the one nearest to (38, 29).
        inside = (outputs.points - torch.tensor([38.0, 29.0])).abs().amax(1) < 1.5 * outputs.strides
        fits = inside & (outputs.strides == 8)
        point = fits.nonzero().flatten()
        distances = torch.cat(
            (outputs.points[point] - BOX[:2], BOX[2:] - outputs.points[point]), dim=1
        )
        ratios = [distances[:, i::2].amin(1) / distances[:, i::2].amax(1) for i in (0, 1)]
        best = point[(ratios[0] * ratios[1]).argmax()]
        codes = outputs.codes[torch.tensor([0]), best[None]]
        logits = refining.codec.inverse_logits(codes, torch.tensor([1]))
        assert outputs.refinement is not None
        assert refining.refiner is not None
        added = refining.refiner(outputs.refinement, 4.0, torch.tensor([0]), BOX[None], logits)
        refined, target = (logits + added).flatten(), targets[0].masks.flatten().float()
        entropy = F.binary_cross_entropy_with_logits(refined, target)
        expected = 3.0 * (entropy + dice_loss(refined, target))
    torch.testing.assert_close(loss, expected)


BOX = torch.tensor([16.0, 8.0, 60.0, 50.0])


def test_images_without_objects_have_no_loss(refining: MEInst, images: list[torch.Tensor]) -> None:
    assert refinement_loss(refining, refining(images), [no_target(), no_target()]) == 0


def test_every_weight_gets_a_gradient(images: list[torch.Tensor]) -> None:
    model = make_tiny_model(refine_channels=6).train()
    refinement_loss(model, model(images), [one_target(), one_target()]).backward()
    for part in (model.refinement, model.refiner):
        assert part is not None
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_refined_masks_are_stored_in_4_bits(refining: MEInst) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    found = refining.predict(picture, score_threshold=0.0)
    assert len(found) > 3
    # 14 x 14 pixels of 4 bits, two per byte.
    assert (found.codes.dtype, found.codes.shape[1]) == (torch.uint8, 98)
    assert found.soft_masks().shape == (len(found), 14, 14)
    torch.testing.assert_close(found[2:3].soft_masks(), found.soft_masks()[2:3])


def test_maskness_is_the_mean_foreground_value() -> None:
    soft = torch.tensor(
        [[[0.9, 0.7], [0.2, 0.1]], [[0.6, 0.6], [0.6, 0.6]], [[0.4, 0.3], [0.2, 0]]]
    )
    torch.testing.assert_close(maskness(soft.logit()), torch.tensor([0.8, 0.6, 0.0]))


def test_scores_are_weighted_by_maskness(refining: MEInst, images: list[torch.Tensor]) -> None:
    with torch.no_grad():
        outputs = refining(images)
    size = [ImageSizes((64, 96), (64, 96))] * 2
    selection = replace(refining.selection, score_threshold=0.0)
    rest = outputs, size, refining.codec, refining.class_names, selection
    for plain, found in zip(
        select_detections(*rest), select_detections(*rest, refining.refiner), strict=True
    ):
        assert len(found) == len(plain) > 3
        assert (found.scores.diff() <= 0).all()
        place = matching(found, plain)
        soft = found.soft_masks()
        on = soft > 0.5
        expected = (soft * on).sum((1, 2)) / on.sum((1, 2)).clamp(min=1)
        torch.testing.assert_close(found.scores, plain.scores[place] * expected, rtol=0.04, atol=0)


def test_threshold_applies_to_weighted_scores(refining: MEInst) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    found = refining.predict(picture, score_threshold=0.0)
    limit = found.scores[2].item()
    best = refining.predict(picture, score_threshold=limit)
    torch.testing.assert_close(best.scores, found.scores[:3])
    torch.testing.assert_close(best.soft_masks(), found.soft_masks()[:3])


def test_model_file_keeps_mask_refinement(refining: MEInst, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    model = load_model(save_model(refining, tmp_path / "refining.safetensors"))
    expected, found = refining.predict(picture), model.predict(picture)
    torch.testing.assert_close(found.soft_masks(), expected.soft_masks())


def test_rejects_a_backbone_without_a_finer_level() -> None:
    with pytest.raises(ValueError, match=r"backbone_levels = \(0, 1\)"):
        ModelOptions(
            backbone_levels=(0, 1), strides=(2, 4), distance_limits=(8,), refine_channels=4
        )


@torch.no_grad()
def test_refinement_uses_the_resized_image(images: list[torch.Tensor]) -> None:
    model = make_tiny_model(refine_channels=6)
    assert model.refiner is not None
    for parameter in model.refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(5))
    size = ImageSizes(original=(128, 288), resized=(64, 96))  # twice as high, three times as wide
    options = replace(model.selection, score_threshold=0.0)
    outputs = model(images)
    assert outputs.refinement is not None
    outputs = replace(
        outputs, refinement=10 * outputs.refinement
    )  # so that a wrong position is visible
    rest = outputs, [size] * 2, model.codec, model.class_names, options
    refined, plain = select_detections(*rest, model.refiner), select_detections(*rest)
    for index, (found, before) in enumerate(zip(refined, plain, strict=True)):
        assert len(found) > 3
        before = before[matching(found, before)]
        logits = model.codec.inverse_logits(before.codes, before.labels)
        boxes = found.boxes / torch.tensor([3.0, 2.0, 3.0, 2.0])

        def soft_masks(image: int, boxes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            images = torch.full((len(boxes),), image)
            assert model.refiner is not None
            return (logits + model.refiner.correct(outputs, images, boxes, logits)).sigmoid()

        expected = soft_masks(index, boxes, logits)
        # 4 bits: the error is at most half a level, 1 / 30.
        torch.testing.assert_close(found.soft_masks(), expected, atol=1 / 30 + 1e-5, rtol=0)
        for other in (soft_masks(1 - index, boxes, logits), soft_masks(index, found.boxes, logits)):
            assert (expected - other).abs().max() > 0.1


def matching(found: Detections, plain: Detections) -> torch.Tensor:
    """Index into ``plain`` of each detection of ``found``, by its box and class."""
    same = (found.boxes[:, None] == plain.boxes).all(-1) & (found.labels[:, None] == plain.labels)
    index = same.int().argmax(1)
    assert index.unique().numel() == len(found)
    return index
