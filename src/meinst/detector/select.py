"""Selection: from predictions for every point to the detections of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from meinst.codecs import Codec
from meinst.codecs.packed import PackedMaskCodec
from meinst.detections import Detections
from meinst.detector.box_voting import vote_boxes
from meinst.detector.mask_refinement import MaskRefiner, maskness
from meinst.ops.boxes import clip_boxes, distances_to_boxes
from meinst.ops.nms import batched_nms
from meinst.options import check_range
from meinst.types import HeadOutputs

DEFAULT_THRESHOLD = 0.5  # where neither a recipe nor a validation has set a score threshold


@dataclass(frozen=True)
class SelectOptions:
    """What counts as a detection.

    Attributes:
        candidate_threshold: smallest class score (before centre-ness) of a candidate, 0 to 1.
        score_threshold: smallest final score of a detection, 0 to 1. None: training sets it to
            the threshold that maximises F1 on the validation set; until then it is 0.5.
        max_per_level: limit of candidates per pyramid level, best first; :meth:`override` raises it
            with ``max_detections``.
        nms_threshold: of two boxes of one class whose IoU is above this, the better one is kept.
        max_detections: limit of detections per image.
        box_voting: whether suppressed candidates improve the box, code and score of the detection
            that is kept (:mod:`meinst.detector.box_voting`).
    """

    candidate_threshold: float = 0.05
    score_threshold: float | None = None
    max_per_level: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    box_voting: bool = False

    def __post_init__(self) -> None:
        """Reject values that are out of range."""
        check_range(self, 0, 1, "candidate_threshold", "score_threshold", "nms_threshold")
        if not 0 < self.candidate_threshold < 1:
            raise ValueError(
                f"candidate_threshold must be above 0 and below 1, got {self.candidate_threshold}."
            )
        check_range(self, 1, math.inf, "max_detections", "max_per_level")

    def override(
        self, score_threshold: float | None = None, max_detections: int | None = None
    ) -> SelectOptions:
        """A copy with the given values; None keeps the current one.

        A greater ``max_detections`` raises ``max_per_level`` in proportion, since each detection is
        chosen from several candidates, which may all be on one level.

        Raises:
            ValueError: if a value is not a number, or out of range.
        """
        selection = self
        if score_threshold is not None:
            selection = replace(selection, score_threshold=score_threshold)
        if max_detections is None:
            return selection
        selection = replace(selection, max_detections=max_detections)
        per_level = -(-self.max_per_level * max_detections // self.max_detections)
        return replace(selection, max_per_level=max(self.max_per_level, per_level))

    @property
    def threshold(self) -> float:
        """The score threshold in force."""
        return DEFAULT_THRESHOLD if self.score_threshold is None else self.score_threshold


@dataclass(frozen=True)
class ImageSizes:
    """``(H, W)`` of an image before and after resizing for the network."""

    original: tuple[int, int]
    resized: tuple[int, int]


@dataclass(frozen=True)
class _Candidates:
    """Promising (point, class) pairs of one image.

    Attributes:
        points: ``(M,)`` int64 indices of points.
        labels: ``(M,)`` int64.
        scores: ``(M,)``.
        boxes: ``(M, 4)`` ``x1 y1 x2 y2`` in pixels of the resized image, not clipped.
    """

    points: Tensor
    labels: Tensor
    scores: Tensor
    boxes: Tensor


@torch.no_grad()
def select_detections(
    outputs: HeadOutputs,
    sizes: Sequence[ImageSizes],
    codec: Codec,
    class_names: tuple[str, ...],
    options: SelectOptions,
    refiner: MaskRefiner | None = None,
) -> list[Detections]:
    """Score points, keep the best of each level and suppress duplicates.

    The score is ``sqrt(class * centre-ness)``. Box voting multiplies it by the agreement of the
    voters, mask refinement by the maskness of the refined mask. Codes are read only for kept
    detections and their voters.

    Args:
        outputs: predictions for ``B`` images.
        sizes: sizes of each image.
        codec: the codec of the codes; stored with the detections to decode them on request.
        class_names: names of the ``C`` classes.
        options: thresholds and limits.
        refiner: refines masks with the features in ``outputs``; None for models without.

    Returns:
        For each image its detections, best first, in pixels of the original image.
    """
    return [
        _select_one(outputs, index, size, codec, class_names, options, refiner)
        for index, size in enumerate(sizes)
    ]


def _select_one(
    outputs: HeadOutputs,
    index: int,
    size: ImageSizes,
    codec: Codec,
    class_names: tuple[str, ...],
    options: SelectOptions,
    refiner: MaskRefiner | None,
) -> Detections:
    candidates = _find_candidates(outputs, index, options)
    keep = _suppress(candidates, options)
    boxes, codes, scores = _merge_candidates(outputs, index, candidates, keep, options)
    boxes, scale = _to_original_image(boxes, size)
    detections = Detections(
        boxes=boxes,
        scores=scores,
        labels=candidates.labels[keep],
        codes=codes,
        image_size=size.original,
        codec=codec,
        class_names=class_names,
    )
    detections = detections[((boxes[:, 2:] - boxes[:, :2]) > 0).all(-1)]
    if refiner is not None:
        detections = _refine(detections, codec, refiner, outputs, index, scale)
    detections = detections[detections.scores.argsort(descending=True, stable=True)]
    return detections[detections.scores >= options.threshold]


def point_scores(logits: Tensor, centerness: Tensor) -> Tensor:
    """Scores of points, ``sqrt(class * centre-ness)``, from logits of shapes that broadcast."""
    return (logits.sigmoid() * centerness.sigmoid()).sqrt()


def _find_candidates(outputs: HeadOutputs, index: int, options: SelectOptions) -> _Candidates:
    """The best (point, class) pairs of each level."""
    # Compare logits, so that only candidates need a sigmoid.
    limit = math.log(options.candidate_threshold / (1 - options.candidate_threshold))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    start = 0
    for count in outputs.level_sizes:
        logits = outputs.logits[index, start : start + count]
        point, labels = (logits > limit).nonzero(as_tuple=True)
        centerness = outputs.centerness[index, start + point]
        scores = point_scores(logits[point, labels], centerness)
        if len(scores) > options.max_per_level:
            scores, best = scores.topk(options.max_per_level)
            point, labels = point[best], labels[best]
        found.append((start + point, labels, scores))
        start += count
    point, labels, scores = (torch.cat(part) for part in zip(*found, strict=True))
    distances = outputs.boxes[index, point] * outputs.strides[point, None]
    return _Candidates(point, labels, scores, distances_to_boxes(outputs.points[point], distances))


def _suppress(candidates: _Candidates, options: SelectOptions) -> Tensor:
    """Indices ``(N,)`` of the candidates that class-wise NMS and the limit keep, best first."""
    scores = candidates.scores
    # Scores only decrease from here on, so nothing below the threshold can come back.
    (above,) = (scores >= options.threshold).nonzero(as_tuple=True)
    boxes, labels = candidates.boxes[above], candidates.labels[above]
    keep = above[batched_nms(boxes, scores[above], labels, options.nms_threshold)]
    if len(keep) > options.max_detections:  # ties with the last one are kept, as published
        last = scores[keep[options.max_detections - 1]]
        keep = keep[scores[keep] >= last]
    return keep


def _merge_candidates(
    outputs: HeadOutputs,
    index: int,
    candidates: _Candidates,
    keep: Tensor,
    options: SelectOptions,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, codes and scores of the kept candidates, after box voting if it is on."""

    def codes_of(chosen: Tensor) -> Tensor:
        return outputs.codes[torch.full_like(chosen, index), candidates.points[chosen]]

    boxes, scores = candidates.boxes, candidates.scores
    if not options.box_voting:
        return boxes[keep], codes_of(keep), scores[keep]
    voted = vote_boxes(boxes, scores, candidates.labels, keep, codes_of)
    return voted.boxes, voted.codes, scores[keep] * voted.agreement


def _to_original_image(boxes: Tensor, size: ImageSizes) -> tuple[Tensor, Tensor]:
    """Boxes scaled to the original image and clipped, and the factors ``(4,)``."""
    height, width = size.original
    scale = boxes.new_tensor([width / size.resized[1], height / size.resized[0]]).repeat(2)
    return clip_boxes(boxes * scale, size.original), scale


def _refine(
    detections: Detections,
    codec: Codec,
    refiner: MaskRefiner,
    outputs: HeadOutputs,
    index: int,
    scale: Tensor,
) -> Detections:
    """Refine the masks, weight the scores by maskness, and store the masks as codes again."""
    logits = codec.inverse_logits(detections.codes, detections.labels)
    image = torch.full_like(detections.labels, index)
    logits = logits + refiner.correct(outputs, image, detections.boxes / scale, logits)
    packed = PackedMaskCodec(codec.mask_size)
    return replace(
        detections,
        scores=detections.scores * maskness(logits),
        codes=packed.encode(logits.sigmoid()),
        codec=packed,
    )
