"""Checks before an export is written: does the graph compute what the model computes?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from meinst.data.coco import CocoData
from meinst.data.transforms import resize_image
from meinst.detector.predictor import Predictor
from meinst.detector.select import point_scores
from meinst.images.rgb import Pixels
from meinst.inference.evaluate import Metrics, evaluate
from meinst.ops.boxes import distances_to_boxes
from meinst.types import HeadOutputs

MASK_LIMIT, SCORE_LIMIT, BOX_LIMIT = 1e-3, 1e-3, 0.05
_MAX_COMPARED = 300  # points compared per picture, best first
_PICTURE_SIZES = ((480, 640), (500, 375))  # (H, W)


class ExportError(ValueError):
    """An export that was not written because it does not compute what the model computes."""


@dataclass(frozen=True)
class Differences:
    """The largest differences between the outputs of two models at the same points.

    Attributes:
        masks: of soft masks, 0 to 1.
        scores: of scores, 0 to 1.
        boxes: of distances to the sides of the box, in pixels of the network's input.
    """

    masks: float
    scores: float
    boxes: float

    def __str__(self) -> str:
        return f"soft masks {self.masks:.1g}, scores {self.scores:.1g}, boxes {self.boxes:.1g} px"


def check_outputs(model: Predictor, exported: Predictor) -> Differences:
    """Compare the outputs for synthetic pictures of two sizes.

    Raises:
        ExportError: if they differ by more than rounding explains.
    """
    each = [compare_outputs(model, exported, picture) for picture in _synthetic_pictures()]
    # A tensor's maximum propagates NaN, Python's max() does not.
    masks, scores, boxes = torch.tensor(each).amax(0).tolist()
    differences = Differences(masks, scores, boxes)
    if not (masks <= MASK_LIMIT and scores <= SCORE_LIMIT and boxes <= BOX_LIMIT):
        raise ExportError(
            f"nothing written: the exported network differs from the model ({differences}; "
            f"rounding explains at most {Differences(MASK_LIMIT, SCORE_LIMIT, BOX_LIMIT)})."
        )
    return differences


@torch.inference_mode()
def compare_outputs(
    model: Predictor, other: Predictor, picture: Pixels
) -> tuple[float, float, float]:
    """The largest differences between two models at the best points of the first.

    Points are compared rather than detections, because nearly equal detections may swap places.

    Returns:
        The fields of :class:`Differences`.
    """
    resized = torch.from_numpy(resize_image(picture, model.resize_options)).permute(2, 0, 1)
    outputs = [each([resized]) for each in (model, other)]
    scores = [
        point_scores(output.logits[0], output.centerness[0, :, None]) for output in outputs
    ]  # (P, C) each
    best, labels = scores[0].max(1)
    points = best.topk(min(_MAX_COMPARED, len(best))).indices
    strides = outputs[0].strides[points, None]
    distances = [output.boxes[0, points] * strides for output in outputs]
    boxes = distances_to_boxes(outputs[0].points[points], distances[0])
    masks = [
        _soft_masks(each, output, points, labels[points], boxes)
        for each, output in zip((model, other), outputs, strict=True)
    ]

    def largest(first: Tensor, second: Tensor) -> float:
        return float((first - second).abs().max())

    return largest(*masks), largest(scores[0], scores[1]), largest(*distances)


def _soft_masks(
    model: Predictor, outputs: HeadOutputs, points: Tensor, labels: Tensor, boxes: Tensor
) -> Tensor:
    image = torch.zeros_like(points)
    codes = outputs.codes[image, points]
    if model.refiner is None:
        return model.codec.inverse_transform(codes, labels)
    logits = model.codec.inverse_logits(codes, labels)
    soft: Tensor = (logits + model.refiner.correct(outputs, image, boxes, logits)).sigmoid()
    return soft


def _synthetic_pictures() -> Iterator[Pixels]:
    """Coloured clouds with some noise, the same every time."""
    rng = np.random.default_rng(0)
    for height, width in _PICTURE_SIZES:
        small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        clouds = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int64)
        noisy = clouds + rng.integers(-10, 11, clouds.shape)
        yield noisy.clip(0, 255).astype(np.uint8)


def measure(
    exported: Predictor, data: CocoData, on_image: Callable[[], None] | None = None
) -> Metrics:
    """Evaluate an export and require a measurable mask AP, so that a drop cannot go unnoticed.

    Raises:
        ExportError: if an image cannot be read, or there is nothing to find.
    """
    try:
        metrics = evaluate(exported, data, on_image=on_image)
    except ValueError as error:
        raise ExportError(f"nothing written: {error}") from error
    if metrics.failures:
        raise ExportError(
            f"nothing written: {len(metrics.failures)} of {metrics.images} images of "
            f"{data.annotations} cannot be read; the first: {metrics.failures[0].reason} Repair "
            "them or remove them from the annotations."
        )
    return metrics


def check_ap(before: float, after: float, max_drop: float) -> None:
    """Reject a quantized network that loses too much mask AP.

    Args:
        before: mask AP in float32, 0 to 1.
        after: mask AP in 8 bits.
        max_drop: allowed loss in points (hundredths).

    Raises:
        ExportError: if more is lost.
    """
    drop = 100 * (before - after)
    if drop > max_drop:
        raise ExportError(
            f"nothing written: quantization lowers mask AP from {before:.3f} to {after:.3f}, by "
            f"{drop:.1f} points (allowed: {max_drop:g}); calibrate with more images like those to "
            "be segmented, export in float32, or raise --max-ap-drop."
        )
