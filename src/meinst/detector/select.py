"""From what the network says of every point to the few detections that are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meinst.codecs import Codec
from meinst.detections import Detections
from meinst.detector.sight import MaskRefiner, mask_sureness
from meinst.detector.votes import hold_votes
from meinst.ops.boxes import distances_to_boxes
from meinst.options import check_range
from meinst.types import HeadOutputs

UNTUNED = 0.5  # score threshold where none was given and no training found one


@dataclass(frozen=True)
class SelectOptions:
    """What counts as a detection.

    Attributes:
        candidate_threshold: smallest class score (before centre-ness) of a candidate, 0 to 1.
        score_threshold: smallest final score of a prediction, 0 to 1; evaluation has none. None
            is for training: a trained model has that of the best F1 in its validation. Until then
            it is 0.5.
        max_per_level: candidates kept of each pyramid level, the best by score.
        nms_threshold: of two boxes of a class that overlap more than this IoU, the better stays.
        max_detections: detections kept of an image.
        voting: candidates that overlap what is kept correct its box and its code, and how well
            they agree weighs its score (:mod:`meinst.detector.votes`).
    """

    candidate_threshold: float = 0.05
    score_threshold: float | None = None
    max_per_level: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    voting: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range, by name."""
        if not 0 < self.candidate_threshold < 1:
            raise ValueError(
                f"candidate_threshold must lie between 0 and 1, got {self.candidate_threshold}."
            )
        check_range(self, 0, 1, "score_threshold", "nms_threshold")
        check_range(self, 1, math.inf, "max_detections", "max_per_level")


@dataclass(frozen=True)
class ImageSize:
    """Heights and widths, in pixels, of an image as it was given and as the network saw it."""

    original: tuple[int, int]
    resized: tuple[int, int]


@torch.no_grad()
def select_detections(
    outputs: HeadOutputs,
    sizes: Sequence[ImageSize],
    codec: Codec,
    class_names: tuple[str, ...],
    options: SelectOptions,
    refiner: MaskRefiner | None = None,
) -> list[Detections]:
    """Score, keep the best of each level, suppress doubles (docs/method.md).

    The score is ``sqrt(class * centre-ness)``; with votes it is then multiplied by how well they
    agree, and with sight, which decodes the masks of what is kept, by how sure the mask is of
    its pixels. Boxes are gathered for candidates only, codes asked for of what is kept only, and
    of those that vote on it.

    Args:
        outputs: what the network said, ``B`` images.
        sizes: of each image.
        codec: goes with the detections, to decode them when asked.
        class_names: names of the ``C`` classes.
        options: thresholds and limits.
        refiner: corrects masks by the outputs' sight; None for models without.

    Returns:
        For each image its detections, the best first, in the original image's pixels.
    """
    return [
        _select_one(outputs, index, size, codec, class_names, options, refiner)
        for index, size in enumerate(sizes)
    ]


def _select_one(
    outputs: HeadOutputs,
    index: int,
    size: ImageSize,
    codec: Codec,
    class_names: tuple[str, ...],
    options: SelectOptions,
    refiner: MaskRefiner | None,
) -> Detections:
    from torchvision.ops import batched_nms, clip_boxes_to_image

    point, labels, scores = _candidates(outputs, index, options)
    points, strides = outputs.points[point], outputs.strides[point, None]
    boxes = distances_to_boxes(points, outputs.boxes[index, point] * strides)  # (N, 4)
    # From here on scores only fall: nobody pays for what will not be shown.
    threshold = UNTUNED if options.score_threshold is None else options.score_threshold
    (enough,) = (scores >= threshold).nonzero(as_tuple=True)
    keep = enough[batched_nms(boxes[enough], scores[enough], labels[enough], options.nms_threshold)]
    if len(keep) > options.max_detections:  # ties with the last one stay, as published
        last = scores[keep[options.max_detections - 1]]
        keep = keep[scores[keep] >= last]

    def codes_of(chosen: Tensor) -> Tensor:
        return outputs.codes[torch.full_like(chosen, index), point[chosen]]

    if options.voting:
        elected = hold_votes(boxes, scores, labels, keep, codes_of)
        boxes, codes, scores = elected.boxes, elected.codes, scores[keep] * elected.agreement
    else:
        boxes, codes, scores = boxes[keep], codes_of(keep), scores[keep]

    height, width = size.original
    ratio = boxes.new_tensor([width / size.resized[1], height / size.resized[0]]).repeat(2)
    boxes = clip_boxes_to_image(boxes * ratio, size.original)
    found = Detections(
        boxes=boxes,
        scores=scores,
        labels=labels[keep],
        codes=codes,
        image_size=size.original,
        codec=codec,
        class_names=class_names,
    )
    found = found[((boxes[:, 2:] - boxes[:, :2]) > 0).all(-1)]
    if refiner is not None:
        logits = codec.inverse_logits(found.codes, found.labels)
        image = torch.full_like(found.labels, index)
        correction = refiner.correct(outputs, image, found.boxes / ratio, logits)
        scores = found.scores * mask_sureness(logits + correction)
        # Halves are exact enough for logits, and a quarter of the size of a detection's pixels.
        found = replace(found, scores=scores, corrections=correction.half())
    found = found[found.scores.argsort(descending=True, stable=True)]
    return found[found.scores >= threshold]


def _candidates(
    outputs: HeadOutputs, index: int, options: SelectOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """Points, labels and scores ``(N,)`` of the best (point, class) pairs of each level."""
    threshold = options.candidate_threshold
    # Compared as logits, so that only candidates need a sigmoid.
    limit = math.log(threshold / (1 - threshold))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    start = 0
    for count in outputs.level_sizes:
        logits = outputs.logits[index, start : start + count]
        point, labels = (logits > limit).nonzero(as_tuple=True)
        centerness = outputs.centerness[index, start + point]
        scores = (logits[point, labels].sigmoid() * centerness.sigmoid()).sqrt()
        if len(scores) > options.max_per_level:
            scores, best = scores.topk(options.max_per_level)
            point, labels = point[best], labels[best]
        found.append((start + point, labels, scores))
        start += count
    points, classes, values = (torch.cat(part) for part in zip(*found, strict=True))
    return points, classes, values
