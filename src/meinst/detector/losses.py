"""Losses: pure functions of the network's outputs and the targets."""

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
from meinst.detector.mask_refinement import MaskRefiner
from meinst.ops.boxes import (
    boxes_to_distances,
    centerness,
    distances_to_boxes,
    elementwise_box_iou,
    giou_of_distances,
)
from meinst.ops.dice import dice_loss
from meinst.ops.rois import masks_in_rois
from meinst.options import check_range
from meinst.types import HeadOutputs, Target

# IoU with the annotated box from which mask refinement trains inside the predicted box.
ROI_IOU = 0.5


@dataclass(frozen=True)
class LossOptions:
    """Weights of the losses and rules of the assignment.

    Attributes:
        center_radius: half-side of the centre region whose points are positive, in strides.
        focal_alpha: weight of the positives in the focal loss.
        focal_gamma: focusing exponent of the focal loss.
        giou_smooth: added to intersection and union in the GIoU; 1 in the published system.
        box_weight: weight of the box loss.
        code_weight: weight of the squared error between codes.
        pixel_weight: weight of the binary cross-entropy on decoded masks.
        dice_weight: weight of the Dice loss on decoded masks.
        refine_weight: weight of cross-entropy and Dice loss on refined masks.
        refine_samples: limit of points per process and step whose masks are refined; those nearest
            to the centre of their instance are chosen.
        target_logits: how the pixels of target masks are encoded: by their expected logit, by a
            random logit (as published), or by the constant logit of clip 0.01.
    """

    center_radius: float = 1.5
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    giou_smooth: float = 0.0
    box_weight: float = 1.0
    code_weight: float = 1.0
    pixel_weight: float = 0.0
    dice_weight: float = 0.0
    refine_weight: float = 2.0
    refine_samples: int = 256
    target_logits: Logits = "expected"

    def __post_init__(self) -> None:
        """Reject values that are out of range."""
        weights = ("box", "code", "pixel", "dice", "refine")
        check_range(self, 0, math.inf, *(f"{name}_weight" for name in weights))
        check_range(self, 0, math.inf, "center_radius", "focal_gamma", "giou_smooth")
        check_range(self, 0, 1, "focal_alpha")
        check_range(self, 0, math.inf, "refine_samples")


@dataclass(frozen=True)
class Assignment:
    """The ``N`` positive points of a batch and what they have to predict.

    Attributes:
        image: ``(N,)`` int64, index of the image.
        point: ``(N,)`` int64, index of the point.
        instance: ``(N,)`` int64, index into the instances of all images.
        points: ``(N, 2)`` x, y in pixels of the input.
        strides: ``(N,)`` stride of each point's level.
        labels: ``(N,)`` int64.
        boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels of the input.
        distances: ``(N, 4)`` left, top, right, bottom, in strides.
        centerness: ``(N,)`` 0 to 1.
    """

    image: Tensor
    point: Tensor
    instance: Tensor
    points: Tensor
    strides: Tensor
    labels: Tensor
    boxes: Tensor
    distances: Tensor
    centerness: Tensor

    def __len__(self) -> int:
        return len(self.image)


def assign_targets(
    outputs: HeadOutputs, targets: Sequence[Target], limits: Sequence[float], radius: float
) -> Assignment:
    """Assign the points of a batch to instances.

    Args:
        outputs: predictions for ``B`` images.
        targets: the instances of each image, in pixels of the input.
        limits: largest distances of all levels but the last.
        radius: half-side of the centre region, in strides.
    """
    points, strides = outputs.points, outputs.strides
    ranges = level_ranges(strides, outputs.level_sizes, limits)
    gt_index = torch.stack(
        [assign_points(points, strides, ranges, t.boxes, radius) for t in targets]
    )  # (B, P), indices into the instances of the same image
    positive = gt_index != BACKGROUND
    image, point = positive.nonzero(as_tuple=True)  # (N,) each
    first = torch.tensor([0, *(len(t.boxes) for t in targets[:-1])], device=points.device)
    instance = gt_index[positive] + first.cumsum(0)[image]
    boxes = torch.cat([t.boxes for t in targets])[instance]
    distances = boxes_to_distances(points[point], boxes) / strides[point, None]
    return Assignment(
        image=image,
        point=point,
        instance=instance,
        points=points[point],
        strides=strides[point],
        labels=torch.cat([t.labels for t in targets])[instance],
        boxes=boxes,
        distances=distances,
        centerness=centerness(distances),
    )


def level_ranges(strides: Tensor, level_sizes: Sequence[int], limits: Sequence[float]) -> Tensor:
    """Range of distances that each point may predict, ``(P, 2)``.

    The first level starts at -1 and the last is open. ``limits`` holds one number fewer than there
    are levels.
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
    """Compute the losses of a batch; training minimises their sum.

    Args:
        outputs: predictions for ``B`` images.
        targets: the instances of each image, in pixels of the input.
        codec: encodes target masks and decodes predicted codes.
        limits: largest distances of all levels but the last.
        options: weights and rules.
        mean_over_processes: averages the normalisers ``(4,)`` over the processes of a run.
        generator: source of random target logits, on the device of the masks.
        refiner: refines masks with the features in ``outputs``; None for models without.

    Returns:
        Scalars by name; ``code``, ``pixel``, ``dice`` and ``refine`` only if they have a weight.
    """
    assigned = assign_targets(outputs, targets, limits, options.center_radius)

    # Average the normalisers: positives, sum of centre-ness, that of masks, refined points.
    known = _has_mask(targets)[assigned.instance]  # 0 where only the box is known
    mask_weight = assigned.centerness * known
    refined = min(options.refine_samples, int(known.sum()))
    sums = mean_over_processes(_normalisers(assigned.centerness, mask_weight, refined))
    n_pos, c_sum, m_sum, n_refined = sums.clamp(min=sums.new_tensor((1, 1e-6, 1e-6, 1)))

    # Class, centre-ness and box.
    distances = outputs.boxes[assigned.image, assigned.point]  # (N, 4)
    losses = {
        "class": _class_loss(outputs.logits, assigned, options) / n_pos,
        "centerness": _centerness_loss(outputs.centerness, assigned) / n_pos,
        "box": _box_loss(distances, assigned, c_sum, options),
    }

    # Masks: the codes, the pixels that they decode to, and refined pixels.
    masks = torch.cat([t.masks for t in targets])
    codes = outputs.codes[assigned.image, assigned.point].float()  # (N, K)
    if options.code_weight:
        labels = torch.cat([t.labels for t in targets])
        expected = codec.transform(
            masks, labels=labels, logits=options.target_logits, generator=generator
        )
        losses["code"] = _code_loss(codes, expected[assigned.instance], mask_weight, m_sum, options)
    if options.pixel_weight or options.dice_weight or refiner is not None:
        decoded = codec.inverse_logits(codes, assigned.labels).flatten(1)  # (N, D)
        losses |= _pixel_losses(decoded, masks[assigned.instance], mask_weight, m_sum, options)
    if refiner is not None:
        best = (mask_weight + (known - 1)).topk(refined).indices  # (M,)
        best_masks = masks[assigned.instance[best]]
        error = refinement_loss(refiner, outputs, assigned, best, distances, decoded, best_masks)
        losses["refine"] = options.refine_weight * error.sum() / n_refined
    return losses


def _normalisers(weight: Tensor, mask_weight: Tensor, refined: int) -> Tensor:
    """Number of positives, sums of their weights, and number of refined points: ``(4,)``."""
    counts = weight.new_tensor((len(weight), refined))
    return torch.stack((counts[0], weight.sum(), mask_weight.sum(), counts[1]))


def _has_mask(targets: Sequence[Target]) -> Tensor:
    """Whether the mask of each instance of a batch is known: ``(G,)`` of 0 and 1, float32."""
    known = [
        torch.ones_like(target.labels) if target.has_mask is None else target.has_mask
        for target in targets
    ]
    return torch.cat(known).float()


def _class_loss(logits: Tensor, assigned: Assignment, options: LossOptions) -> Tensor:
    """Sum of the sigmoid focal loss over all points and classes (arXiv 1708.02002)."""
    from torchvision.ops import sigmoid_focal_loss

    targets = torch.zeros_like(logits)
    targets[assigned.image, assigned.point, assigned.labels] = 1.0
    loss: Tensor = sigmoid_focal_loss(
        logits, targets, alpha=options.focal_alpha, gamma=options.focal_gamma, reduction="sum"
    )
    return loss


def _centerness_loss(logits: Tensor, assigned: Assignment) -> Tensor:
    """Sum of the binary cross-entropy at the positive points."""
    logits = logits[assigned.image, assigned.point]
    return F.binary_cross_entropy_with_logits(logits, assigned.centerness, reduction="sum")


def _box_loss(
    distances: Tensor, assigned: Assignment, c_sum: Tensor, options: LossOptions
) -> Tensor:
    """GIoU loss of distances ``(N, 4)``, weighted by centre-ness."""
    giou = giou_of_distances(distances, assigned.distances, options.giou_smooth)
    return options.box_weight * ((1 - giou) * assigned.centerness).sum() / c_sum


def _code_loss(
    codes: Tensor, targets: Tensor, weight: Tensor, c_sum: Tensor, options: LossOptions
) -> Tensor:
    """Squared error of the codes ``(N, K)``, weighted by centre-ness."""
    error = (codes - targets).square().sum(-1)
    scale = (c_sum * codes.shape[1]).clamp(min=1.0)
    return options.code_weight * (error * weight).sum() / scale


def _pixel_losses(
    decoded: Tensor, masks: Tensor, weight: Tensor, c_sum: Tensor, options: LossOptions
) -> dict[str, Tensor]:
    """Cross-entropy and Dice loss of decoded logits ``(N, D)`` where they have a weight."""
    losses: dict[str, Tensor] = {}
    if not (options.pixel_weight or options.dice_weight):
        return losses
    targets = masks.flatten(1).to(decoded.dtype)  # (N, D)
    if options.pixel_weight:
        entropy = F.binary_cross_entropy_with_logits(decoded, targets, reduction="none").sum(-1)
        scale = (c_sum * decoded.shape[1]).clamp(min=1.0)
        losses["pixel"] = options.pixel_weight * (entropy * weight).sum() / scale
    if options.dice_weight:
        dice = dice_loss(decoded, targets)
        losses["dice"] = options.dice_weight * (dice * weight).sum() / c_sum
    return losses


def refinement_loss(
    refiner: MaskRefiner,
    outputs: HeadOutputs,
    assigned: Assignment,
    chosen: Tensor,
    distances: Tensor,
    decoded: Tensor,
    masks: Tensor,
) -> Tensor:
    """Cross-entropy plus Dice loss of refined masks, inside the boxes where they are refined.

    In inference these are the predicted boxes. A predicted box that is far off, as all are at
    first, would show another object; such a mask is refined in its annotated box instead.

    Args:
        refiner: refines masks.
        outputs: predictions with refinement features.
        assigned: the ``N`` positive points.
        chosen: ``(M,)`` int64, the positive points to refine.
        distances: ``(N, 4)`` predicted distances, in strides.
        decoded: ``(N, D)`` decoded logits.
        masks: ``(M, S, S)`` of 0 and 1, each stretched over its instance's box.

    Returns:
        ``(M,)``.
    """
    image, boxes = assigned.image[chosen], assigned.boxes[chosen]
    logits = decoded[chosen].view(-1, *masks.shape[1:])  # (M, S, S)
    reach = distances[chosen].detach() * assigned.strides[chosen, None]
    predicted = distances_to_boxes(assigned.points[chosen], reach)
    close = elementwise_box_iou(predicted, boxes) >= ROI_IOU
    rois = torch.where(close[:, None], predicted, boxes)
    refined = (logits + refiner.correct(outputs, image, rois, logits)).flatten(1)
    targets = masks_in_rois(masks, boxes, rois).flatten(1)
    entropy = F.binary_cross_entropy_with_logits(refined, targets, reduction="none").mean(-1)
    return entropy + dice_loss(refined, targets)
