"""What the picture adds to decoded masks: only inside the boxes, nothing at first, and learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_tiny_model

from meinst.detector.losses import LossOptions, compute_losses
from meinst.detector.meinst import MEInst, ModelOptions
from meinst.detector.select import ImageSize, select_detections
from meinst.detector.sight import MaskRefiner, SightMap, mask_sureness
from meinst.engine.checkpoint import load_model, save_model
from meinst.ops.dice import dice_loss
from meinst.types import HeadOutputs, Target

BOXES = torch.tensor([[8.0, 4.0, 22.0, 18.0], [30.0, 30.0, 58.0, 44.0]])


@pytest.fixture(scope="module")
def sighted() -> MEInst:
    return make_tiny_model(sight_channels=6)


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


def sight_loss(
    model: MEInst, outputs: HeadOutputs, targets: list[Target], samples: int = 256
) -> torch.Tensor:
    options = LossOptions(sight_weight=3.0, sight_samples=samples)
    limits = model.options.distance_limits
    losses = compute_losses(outputs, targets, model.codec, limits, options, refiner=model.refiner)
    return losses["sight"]


def test_the_map_has_twice_the_resolution_of_the_pyramid() -> None:
    sight = SightMap(finer_channels=5, pyramid_channels=8, channels=3)
    assert sight(torch.randn(2, 5, 8, 12), torch.randn(2, 8, 4, 6)).shape == (2, 3, 8, 12)


def test_a_fresh_refiner_corrects_nothing() -> None:
    refiner = MaskRefiner(3)
    logits = torch.randn(2, 14, 14)
    added = refiner(torch.randn(1, 3, 32, 32), 2.0, torch.zeros(2).long(), BOXES, logits)
    torch.testing.assert_close(added, torch.zeros(2, 14, 14))


def test_it_sees_its_own_image_inside_its_own_box() -> None:
    refiner = MaskRefiner(1)
    for layer in refiner.layers:
        if isinstance(layer, torch.nn.Conv2d):  # hand on the sight channel as it is
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
            layer.weight.data[0, 0, 1, 1] = 1
    # A ramp: value x + 100 y at x, y in pixels; cell i has its centre at 2 i + 1.
    at = torch.arange(32) * 2.0 + 1
    ramp = at[None, :] + 100 * at[:, None]
    sight = torch.stack((torch.zeros_like(ramp), ramp))[:, None]  # the second image has the ramp
    added = refiner(sight, 2.0, torch.tensor([1, 0]), BOXES, torch.zeros(2, 14, 14))
    # The first box measures 14 x 14 pixels, so its grid's centres are at 8.5, 9.5, ... and 4.5, ...
    expected = (torch.arange(14) + 8.5)[None, :] + 100 * (torch.arange(14) + 4.5)[:, None]
    torch.testing.assert_close(added[0], expected)
    torch.testing.assert_close(added[1], torch.zeros(14, 14))


def test_no_boxes() -> None:
    added = MaskRefiner(2)(
        torch.randn(1, 2, 8, 8), 4.0, torch.zeros(0).long(), torch.zeros(0, 4), torch.zeros(0, 7, 7)
    )
    assert added.shape == (0, 7, 7)


def test_the_loss_is_that_of_corrected_masks_in_the_object_s_box(
    sighted: MEInst, images: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        outputs = sighted(images)
        # Boxes of no size overlap nothing, so the masks are learnt in the annotated boxes.
        outputs = replace(outputs, boxes=torch.zeros_like(outputs.boxes))
        targets = [one_target(), no_target()]
        loss = sight_loss(sighted, outputs, targets, samples=1)
        # The most central positive point alone: x, y nearest to (38, 29) in a level of its range.
        inside = (outputs.points - torch.tensor([38.0, 29.0])).abs().amax(1) < 1.5 * outputs.strides
        fits = inside & (outputs.strides == 8)
        point = fits.nonzero().flatten()
        distances = torch.cat(
            (outputs.points[point] - BOX[:2], BOX[2:] - outputs.points[point]), dim=1
        )
        ratios = [distances[:, i::2].amin(1) / distances[:, i::2].amax(1) for i in (0, 1)]
        best = point[(ratios[0] * ratios[1]).argmax()]
        codes = outputs.codes[torch.tensor([0]), best[None]]
        logits = sighted.codec.inverse_logits(codes, torch.tensor([1]))
        assert outputs.sight is not None
        assert sighted.refiner is not None
        added = sighted.refiner(outputs.sight, 4.0, torch.tensor([0]), BOX[None], logits)
        refined, wanted = (logits + added).flatten(), targets[0].masks.flatten().float()
        entropy = F.binary_cross_entropy_with_logits(refined, wanted)
        expected = 3.0 * (entropy + dice_loss(refined, wanted))
    torch.testing.assert_close(loss, expected)


BOX = torch.tensor([16.0, 8.0, 60.0, 50.0])


def test_images_without_objects_cost_nothing(sighted: MEInst, images: list[torch.Tensor]) -> None:
    assert sight_loss(sighted, sighted(images), [no_target(), no_target()]) == 0


def test_every_weight_of_it_learns(images: list[torch.Tensor]) -> None:
    model = make_tiny_model(sight_channels=6).train()
    sight_loss(model, model(images), [one_target(), one_target()]).backward()
    for part in (model.sight, model.refiner):
        assert part is not None
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_detections_carry_what_was_seen(sighted: MEInst) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    found = sighted.predict(picture, score_threshold=0.0)
    assert len(found) > 3
    assert found.corrections is not None
    assert (found.corrections.dtype, found.corrections.shape[1:]) == (torch.float16, (14, 14))
    logits = sighted.codec.inverse_logits(found.codes, found.labels)
    expected = (logits + found.corrections).sigmoid()
    torch.testing.assert_close(found.soft_masks(), expected)
    torch.testing.assert_close(found[2:3].soft_masks(), expected[2:3])
    assert (found.soft_masks() - logits.sigmoid()).abs().max() > 0.01


def test_sureness_is_the_mean_of_what_is_on() -> None:
    soft = torch.tensor(
        [[[0.9, 0.7], [0.2, 0.1]], [[0.6, 0.6], [0.6, 0.6]], [[0.4, 0.3], [0.2, 0]]]
    )
    torch.testing.assert_close(mask_sureness(soft.logit()), torch.tensor([0.8, 0.6, 0.0]))


def test_scores_tell_how_sure_masks_are(sighted: MEInst, images: list[torch.Tensor]) -> None:
    with torch.no_grad():
        outputs = sighted(images)
    size = [ImageSize((64, 96), (64, 96))] * 2
    selection = replace(sighted.selection, score_threshold=0.0)
    rest = outputs, size, sighted.codec, sighted.class_names, selection
    for plain, found in zip(
        select_detections(*rest), select_detections(*rest, sighted.refiner), strict=True
    ):
        assert len(found) == len(plain) > 3
        assert (found.scores.diff() <= 0).all()
        # Which of the plain ones each is: boxes of one class do not coincide after NMS.
        same = (found.boxes[:, None] == plain.boxes).all(-1) & (
            found.labels[:, None] == plain.labels
        )
        place = same.int().argmax(1)
        assert place.unique().numel() == len(found)
        soft = found.soft_masks()
        on = soft > 0.5
        sureness = (soft * on).sum((1, 2)) / on.sum((1, 2)).clamp(min=1)
        torch.testing.assert_close(found.scores, plain.scores[place] * sureness, rtol=1e-3, atol=0)
        torch.testing.assert_close(found.codes, plain.codes[place])


def test_the_threshold_is_on_the_score_that_is_shown(sighted: MEInst) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    found = sighted.predict(picture, score_threshold=0.0)
    limit = found.scores[2].item()
    best = sighted.predict(picture, score_threshold=limit)
    torch.testing.assert_close(best.scores, found.scores[:3])
    torch.testing.assert_close(best.soft_masks(), found.soft_masks()[:3])


def test_a_file_keeps_it(sighted: MEInst, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    model = load_model(save_model(sighted, tmp_path / "sighted.safetensors"))
    expected, found = sighted.predict(picture), model.predict(picture)
    torch.testing.assert_close(found.soft_masks(), expected.soft_masks())


def test_a_backbone_without_a_finer_level_is_refused() -> None:
    with pytest.raises(ValueError, match="leave out level 0"):
        ModelOptions(backbone_levels=(0, 1), strides=(2, 4), distance_limits=(8,), sight_channels=4)


@torch.no_grad()
def test_sight_looks_into_its_own_box_of_its_own_resized_image(images: list[torch.Tensor]) -> None:
    model = make_tiny_model(sight_channels=6)
    assert model.refiner is not None
    for parameter in model.refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(5))
    size = ImageSize(original=(128, 288), resized=(64, 96))  # y is twice, x three times as large
    options = replace(model.selection, score_threshold=0.0)
    outputs = model(images)
    assert outputs.sight is not None
    outputs = replace(outputs, sight=10 * outputs.sight)  # so that a wrong place shows
    each = select_detections(
        outputs, [size] * 2, model.codec, model.class_names, options, model.refiner
    )
    for index, found in enumerate(each):
        assert len(found) > 3
        assert found.corrections is not None
        logits = model.codec.inverse_logits(found.codes, found.labels)
        seen = found.boxes / torch.tensor([3.0, 2.0, 3.0, 2.0])

        def corrected(image: int, boxes: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            places = torch.full((len(boxes),), image)
            assert model.refiner is not None
            return model.refiner.correct(outputs, places, boxes, logits)

        wanted = corrected(index, seen, logits)
        torch.testing.assert_close(found.corrections, wanted.half(), atol=5e-3, rtol=2e-3)
        for other in (corrected(1 - index, seen, logits), corrected(index, found.boxes, logits)):
            assert (wanted - other).abs().max() > 0.1
