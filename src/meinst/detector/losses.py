"""What training minimises; pure functions of the network's outputs and the targets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from meinst.codecs import Codec
from meinst.codecs.clipped_logit import Logits
from meinst.detector.assign import BACKGROUND, assign_points
from meinst.detector.sight import MaskRefiner
from meinst.ops.boxes import (
    box_iou_of_pairs,
    boxes_to_distances,
    centerness,
    distances_to_boxes,
    giou_of_distances,
)
from meinst.ops.dice import dice_loss
from meinst.ops.frames import masks_in_frames
from meinst.options import check_range
from meinst.types import HeadOutputs, Target

NEAR = 0.5  # IoU of a predicted box in which sight learns its object's mask


@dataclass(frozen=True)
class LossOptions:
    """Weights of the losses and the rules of assignment.

    Attributes:
        center_radius: half-side of the centre region whose points are positive, in strides.
        focal_alpha: weight of the positives in the focal loss.
        focal_gamma: focusing exponent of the focal loss.
        giou_smooth: added to the areas of the GIoU; the published system has 1.
        box_weight: weight of the box loss.
        code_weight: weight of the squared error between codes.
        pixel_weight: weight of the binary cross-entropy on decoded masks.
        dice_weight: weight of the Dice loss on decoded masks.
        sight_weight: weight of cross-entropy and Dice on the masks that sight corrected.
        sight_samples: most points whose masks sight corrects in a training step of a process,
            those nearest to their instance's centre.
        target_logits: what stands for a pixel where target masks are encoded: its expected
            logit, one drawn at random (the published system's), or the constant of clip 0.01.
    """

    center_radius: float = 1.5
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    giou_smooth: float = 0.0
    box_weight: float = 1.0
    code_weight: float = 1.0
    pixel_weight: float = 0.0
    dice_weight: float = 0.0
    sight_weight: float = 2.0
    sight_samples: int = 256
    target_logits: Logits = "expected"

    def __post_init__(self) -> None:
        """Refuse numbers that make no loss."""
        weights = ("box", "code", "pixel", "dice", "sight")
        check_range(self, 0, math.inf, *(f"{name}_weight" for name in weights))
        check_range(self, 0, math.inf, "center_radius", "focal_gamma", "giou_smooth")
        check_range(self, 0, 1, "focal_alpha")
        check_range(self, 0, math.inf, "sight_samples")


@dataclass(frozen=True)
class Positives:
    """Points that have an instance to predict.

    Attributes:
        image: ``(M,)`` which image each is in.
        points: ``(M, 2)`` x, y in the input's pixels.
        strides: ``(M,)`` of their levels.
        boxes: ``(M, 4)`` of their instances, ``x1 y1 x2 y2`` in the same pixels.
    """

    image: Tensor
    points: Tensor
    strides: Tensor
    boxes: Tensor


def level_ranges(strides: Tensor, level_sizes: Sequence[int], limits: Sequence[float]) -> Tensor:
    """Allowed distances of each point: ``(P, 2)`` from the limits between the levels.

    The first level starts at -1, the last is open (docs/method.md). ``limits`` holds one number
    fewer than there are levels.
    """
    edges = torch.tensor([-1.0, *limits, torch.inf], device=strides.device)
    counts = torch.tensor(level_sizes, device=strides.device)
    return torch.stack((edges[:-1], edges[1:]), dim=1).repeat_interleave(counts, dim=0)


def compute_losses(
    outputs: HeadOutputs,
    targets: Sequence[Target],
    codec: Codec,
    limits: Sequence[float],
    options: LossOptions,
    mean_over_processes: Callable[[Tensor], Tensor] = lambda value: value,
    generator: torch.Generator | None = None,
    refiner: MaskRefiner | None = None,
) -> dict[str, Tensor]:
    """The losses of a batch (docs/method.md); their sum is what training minimises.

    Args:
        outputs: what the network said, ``B`` images.
        targets: the instances of each image, in the input's pixels.
        codec: encodes the targets' masks and decodes predicted codes.
        limits: largest distances of all levels but the last.
        options: weights and rules.
        mean_over_processes: averages the three normalisers, a ``(3,)`` tensor, over the
            processes of a distributed run, so that ``n`` processes give the losses of one
            with the whole batch.
        generator: draws the targets' logits where they are random, on the masks' device.
        refiner: corrects masks by the outputs' sight; None for models without.

    Returns:
        Scalars under ``class``, ``box``, ``centerness`` and, where their weight is not 0,
        ``code``, ``pixel`` and ``dice``; ``sight`` with a refiner.
    """
    points, strides = outputs.points, outputs.strides
    ranges = level_ranges(strides, outputs.level_sizes, limits)
    gt_index = torch.stack(
        [assign_points(points, strides, ranges, t.boxes, options.center_radius) for t in targets]
    )  # (B, P), indices into the image's own instances
    positive = gt_index != BACKGROUND
    image, point = positive.nonzero(as_tuple=True)  # (N,) each
    first = torch.tensor([0, *(len(t.boxes) for t in targets[:-1])], device=points.device)
    instance = gt_index[positive] + first.cumsum(0)[image]  # (N,), indices into all instances

    labels = torch.cat([t.labels for t in targets])[instance]
    boxes = torch.cat([t.boxes for t in targets])[instance]
    masks = torch.cat([t.masks for t in targets])
    distances = boxes_to_distances(points[point], boxes) / strides[point, None]  # (N, 4)
    weight = centerness(distances)  # (N,)

    seen = min(options.sight_samples, len(weight))
    sums = torch.stack((positive.sum().float(), weight.sum(), weight.new_tensor(seen)))
    n_pos, c_sum, n_seen = mean_over_processes(sums).clamp(min=sums.new_tensor((1, 1e-6, 1)))

    predicted = outputs.boxes[positive]  # (N, 4)
    class_targets = torch.zeros_like(outputs.logits)
    class_targets[image, point, labels] = 1.0
    losses = {
        "class": _focal_loss(outputs.logits, class_targets, options) / n_pos,
        "centerness": F.binary_cross_entropy_with_logits(
            outputs.centerness[positive], weight, reduction="sum"
        )
        / n_pos,
    }
    giou = giou_of_distances(predicted, distances, options.giou_smooth)
    losses["box"] = options.box_weight * ((1 - giou) * weight).sum() / c_sum

    codes = outputs.codes[image, point].float()  # (N, K)
    if options.code_weight:
        wanted_codes = codec.transform(
            masks,
            labels=torch.cat([t.labels for t in targets]),
            logits=options.target_logits,
            generator=generator,
        )
        error = (codes - wanted_codes[instance]).square().sum(-1)
        scale = (c_sum * codes.shape[1]).clamp(min=1.0)
        losses["code"] = options.code_weight * (error * weight).sum() / scale
    if options.pixel_weight or options.dice_weight or refiner is not None:
        decoded = codec.inverse_logits(codes, labels).flatten(1)  # (N, D)
    if options.pixel_weight or options.dice_weight:
        wanted = masks.flatten(1)[instance].to(decoded.dtype)
        if options.pixel_weight:
            entropy = F.binary_cross_entropy_with_logits(decoded, wanted, reduction="none").sum(-1)
            scale = (c_sum * decoded.shape[1]).clamp(min=1.0)
            losses["pixel"] = options.pixel_weight * (entropy * weight).sum() / scale
        if options.dice_weight:
            dice = dice_loss(decoded, wanted)
            losses["dice"] = options.dice_weight * (dice * weight).sum() / c_sum
    if refiner is not None:
        best = weight.topk(seen).indices  # (M,)
        place = Positives(image[best], points[point[best]], strides[point[best]], boxes[best])
        logits = decoded[best].view(-1, codec.mask_size, codec.mask_size)
        wrong = sight_loss(refiner, outputs, place, predicted[best], logits, masks[instance[best]])
        losses["sight"] = options.sight_weight * wrong.sum() / n_seen
    return losses


def sight_loss(
    refiner: MaskRefiner,
    outputs: HeadOutputs,
    where: Positives,
    distances: Tensor,
    logits: Tensor,
    masks: Tensor,
) -> Tensor:
    """Cross-entropy and Dice of corrected masks, in the boxes in which they will be corrected.

    These are the predicted ones; but one that is far off, as all are at first, would show another
    object, so its mask is learnt in the annotated box.

    Args:
        refiner: corrects masks.
        outputs: with sight.
        where: the points, ``M`` of them, and their instances' boxes.
        distances: ``(M, 4)`` predicted, in strides.
        logits: ``(M, S, S)`` decoded codes.
        masks: ``(M, S, S)`` of 0 and 1, each stretched over its instance's box.

    Returns:
        ``(M,)``.
    """
    found = distances_to_boxes(where.points, distances.detach() * where.strides[:, None])
    near = box_iou_of_pairs(found, where.boxes) >= NEAR
    frames = torch.where(near[:, None], found, where.boxes)
    refined = (logits + refiner.correct(outputs, where.image, frames, logits)).flatten(1)
    wanted = masks_in_frames(masks, where.boxes, frames).flatten(1)
    entropy = F.binary_cross_entropy_with_logits(refined, wanted, reduction="none").mean(-1)
    return entropy + dice_loss(refined, wanted)


def _focal_loss(logits: Tensor, targets: Tensor, options: LossOptions) -> Tensor:
    from torchvision.ops import sigmoid_focal_loss

    loss: Tensor = sigmoid_focal_loss(
        logits, targets, alpha=options.focal_alpha, gamma=options.focal_gamma, reduction="sum"
    )
    return loss
