import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from meinst.codecs import PCACodec
from meinst.detector.losses import LossOptions, compute_losses
from meinst.ops.points import make_points
from meinst.types import HeadOutputs, Target

LIMITS = (32.0,)


@pytest.fixture(scope="module")
def codec() -> PCACodec:
    generator = torch.Generator().manual_seed(0)
    masks = (torch.rand((200, 7, 7), generator=generator) > 0.5).to(torch.uint8)
    return PCACodec(6, 7).fit(masks)


def make_outputs(images: int, classes: int = 3, seed: int = 0) -> HeadOutputs:
    points, strides = make_points([(8, 8), (4, 4)], [8, 16])
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_()

    return HeadOutputs(
        logits=rand(images, 80, classes),
        boxes=(torch.rand((images, 80, 4), generator=generator) * 3).requires_grad_(),
        centerness=rand(images, 80),
        codes=rand(images, 80, 6),
        points=points,
        strides=strides,
        level_sizes=(64, 16),
    )


def empty_target() -> Target:
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 7, 7).byte())


def one_target(label: int = 1) -> Target:
    mask = torch.zeros(1, 7, 7).byte()
    mask[:, 2:5] = 1
    return Target(torch.tensor([[10.0, 10.0, 40.0, 30.0]]), torch.tensor([label]), mask)


ALL = LossOptions(pixel_weight=1.0, dice_weight=1.0)


def test_batch_without_instances_is_background(codec: PCACodec) -> None:
    outputs = make_outputs(2)
    losses = compute_losses(outputs, [empty_target(), empty_target()], codec, LIMITS, ALL)
    probability = outputs.logits.sigmoid()
    # n_pos is at least 1; every class of every point is negative: 0.75 p^2 (-log(1 - p)).
    expected = (0.75 * probability**2 * -torch.log1p(-probability)).sum()
    torch.testing.assert_close(losses["class"], expected)
    assert all(losses[name] == 0 for name in ("box", "centerness", "code", "pixel", "dice"))
    sum(losses.values()).backward()
    assert outputs.codes.grad is not None


def test_losses_by_hand_for_one_positive(codec: PCACodec) -> None:
    # One image, one level, one point at the centre of the box: l = r = 1.875, t = b = 1.25.
    points, strides = make_points([(1, 1)], [8])
    outputs = HeadOutputs(
        logits=torch.zeros(1, 1, 2),
        boxes=torch.tensor([[[1.0, 1.0, 1.0, 1.0]]]),
        centerness=torch.zeros(1, 1),
        codes=torch.zeros(1, 1, 6),
        points=points + 16,  # (20, 20)
        strides=strides,
        level_sizes=(1,),
    )
    target = replace(one_target(), boxes=torch.tensor([[5.0, 10.0, 35.0, 30.0]]))
    losses = compute_losses(outputs, [target], codec, (), LossOptions())
    # Focal loss: positive 0.25 * 0.5^2 * log 2, negative 0.75 * 0.5^2 * log 2.
    assert losses["class"].item() == pytest.approx(0.25 * math.log(2))
    assert losses["centerness"].item() == pytest.approx(math.log(2))  # target 1, logit 0
    # GIoU: intersection 2 * 2, union and enclosing box 3.75 * 2.5.
    assert losses["box"].item() == pytest.approx(1 - 4 / 9.375)
    code = codec.transform(target.masks)[0]
    assert losses["code"].item() == pytest.approx(code.square().sum().item() / 6, rel=1e-5)


def test_losses_by_hand_for_points_of_unequal_centerness(codec: PCACodec) -> None:
    # At the centre of the box, as above, and 8 pixels to the right: l = 23, r = 7, t = b = 10.
    points, strides = make_points([(1, 2)], [8])
    codes = torch.randn((1, 2, 6), generator=torch.Generator().manual_seed(1))
    outputs = HeadOutputs(
        logits=torch.zeros(1, 2, 2),
        boxes=torch.ones(1, 2, 4),
        centerness=torch.zeros(1, 2),
        codes=codes,
        points=points + 16,  # (20, 20), (28, 20)
        strides=strides,
        level_sizes=(2,),
    )
    target = replace(one_target(), boxes=torch.tensor([[5.0, 10.0, 35.0, 30.0]]))
    options = LossOptions(box_weight=5.0, code_weight=4.0, pixel_weight=2.0, dice_weight=3.0)
    losses = compute_losses(outputs, [target], codec, (), options)
    weight = np.array([1.0, np.sqrt(7 / 23)])
    mask = target.masks.numpy().reshape(-1).astype(float)  # (49,)
    soft = codec.inverse_transform(codes[0]).numpy().reshape(2, -1).astype(float)
    entropy = -(mask * np.log(soft) + (1 - mask) * np.log(1 - soft)).mean(1)
    dice = 1 - (2 * (soft * mask).sum(1) + 1) / ((soft**2).sum(1) + mask.sum() + 1)
    error = (codes[0] - codec.transform(target.masks)).square().mean(1).numpy()
    # Second point: intersection I = 1.875 * 2, union 4 + 3.75 * 2.5 - I, enclosing 3.875 * 2.5.
    giou = np.array([4 / 9.375, 3.75 / 9.625 - (9.6875 - 9.625) / 9.6875])
    parts = {"box": (5, 1 - giou), "code": (4, error), "pixel": (2, entropy), "dice": (3, dice)}
    for name, (factor, values) in parts.items():
        expected = factor * (values * weight).sum() / weight.sum()
        assert losses[name].item() == pytest.approx(expected, rel=1e-4), name


def test_batch_of_equal_boxes_is_the_mean_of_its_images(codec: PCACodec) -> None:
    outputs = make_outputs(2)
    targets = [one_target(0), one_target(2)]
    both = compute_losses(outputs, targets, codec, LIMITS, ALL)
    single = []
    for i in range(2):
        part = replace(
            outputs,
            logits=outputs.logits[i : i + 1],
            boxes=outputs.boxes[i : i + 1],
            centerness=outputs.centerness[i : i + 1],
            codes=outputs.codes[i : i + 1],
        )
        single.append(compute_losses(part, targets[i : i + 1], codec, LIMITS, ALL))
    # Both images have the same box and so the same normalisers.
    for name, value in both.items():
        torch.testing.assert_close(value, (single[0][name] + single[1][name]) / 2)


def test_position_of_an_empty_image_does_not_matter(codec: PCACodec) -> None:
    outputs = make_outputs(3)
    targets = [one_target(), empty_target(), one_target(2)]
    together = compute_losses(outputs, targets, codec, LIMITS, ALL)
    swapped = replace(
        outputs,
        logits=outputs.logits[[0, 2, 1]],
        boxes=outputs.boxes[[0, 2, 1]],
        centerness=outputs.centerness[[0, 2, 1]],
        codes=outputs.codes[[0, 2, 1]],
    )
    moved = compute_losses(swapped, [targets[0], targets[2], targets[1]], codec, LIMITS, ALL)
    for name, value in together.items():
        torch.testing.assert_close(value, moved[name])


def test_normalisers_are_averaged_over_processes(codec: PCACodec) -> None:
    outputs = make_outputs(1)
    plain = compute_losses(outputs, [one_target()], codec, LIMITS, ALL)
    # A second process without positives halves the mean and so doubles the losses.
    halved = compute_losses(outputs, [one_target()], codec, LIMITS, ALL, lambda n: n / 2)
    for name in ("class", "box", "centerness", "code", "dice"):
        torch.testing.assert_close(halved[name], plain[name] * 2)


def test_every_output_gets_a_gradient_and_targets_are_unchanged(codec: PCACodec) -> None:
    outputs, target = make_outputs(1), one_target()
    before = target.boxes.clone(), target.masks.clone()
    torch.stack(
        list(compute_losses(outputs, [target], codec, LIMITS, ALL).values())
    ).sum().backward()
    for tensor in (outputs.logits, outputs.boxes, outputs.centerness, outputs.codes):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    assert torch.equal(target.boxes, before[0])
    assert torch.equal(target.masks, before[1])


def test_random_target_logits_depend_on_the_generator(codec: PCACodec) -> None:
    outputs, target = make_outputs(1), one_target()
    options = LossOptions(target_logits="random")
    sampled = [
        compute_losses(
            outputs, [target], codec, LIMITS, options, generator=torch.Generator().manual_seed(seed)
        )["code"].item()
        for seed in (0, 0, 1)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    with pytest.raises(ValueError, match="no generator"):
        compute_losses(outputs, [target], codec, LIMITS, options)


def test_losses_of_weight_zero_are_omitted(codec: PCACodec) -> None:
    options = LossOptions(code_weight=0.0, dice_weight=2.0)
    outputs = make_outputs(1)
    losses = compute_losses(outputs, [one_target()], codec, LIMITS, options)
    assert set(losses) == {"class", "box", "centerness", "dice"}
    once = compute_losses(outputs, [one_target()], codec, LIMITS, replace(options, dice_weight=1.0))
    torch.testing.assert_close(losses["dice"], 2 * once["dice"])


def test_objects_without_a_mask_train_class_and_box_alone(codec: PCACodec) -> None:
    known, unknown = one_target(), replace(one_target(2), has_mask=torch.tensor([False]))
    outputs = make_outputs(2)
    losses = compute_losses(outputs, [known, unknown], codec, LIMITS, ALL)
    sum(losses.values()).backward()
    codes, boxes = outputs.codes, outputs.boxes
    assert codes.grad is not None
    assert boxes.grad is not None
    assert codes.grad[0].abs().sum() > 0
    assert codes.grad[1].abs().sum() == 0
    assert boxes.grad[1].abs().sum() > 0
    alone = compute_losses(_first_image(make_outputs(2)), [known], codec, LIMITS, ALL)
    for name in ("code", "pixel", "dice"):  # normalised by the objects with a mask
        torch.testing.assert_close(losses[name], alone[name])
    same = compute_losses(make_outputs(2), [known, one_target(2)], codec, LIMITS, ALL)
    for name in ("class", "box", "centerness"):
        torch.testing.assert_close(losses[name], same[name], rtol=0, atol=0)


def _first_image(outputs: HeadOutputs) -> HeadOutputs:
    names = ("logits", "boxes", "centerness", "codes")
    return replace(outputs, **{name: getattr(outputs, name)[:1].detach() for name in names})


def test_batch_without_any_mask_has_finite_losses(codec: PCACodec) -> None:
    unknown = replace(one_target(), has_mask=torch.tensor([False]))
    losses = compute_losses(make_outputs(1), [unknown], codec, LIMITS, ALL)
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["code"] == losses["pixel"] == losses["dice"] == 0
    assert losses["box"] > 0
