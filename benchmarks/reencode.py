"""Refined masks encoded again: mask AP, bytes and time of linear codecs and packed pixels.

    cd benchmarks
    python reencode.py photos ../../shared/data/photos

Mask refinement adds detail to the mask decoded from a code. To keep detections compact, the
refined mask must become a code again. This benchmark runs a shipped model once on the set's
``val``, encodes and decodes every refined mask with each codec, and evaluates the result; boxes,
classes and scores are the same in all rows. IoU compares the S x S binary masks before and after.
Time is for encoding and decoding 100 masks. Results: docs/experiments/reencoding.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measure import seconds, versions
from torch import Tensor

import meinst
from meinst.cli.memory import keep_for_reuse
from meinst.codec_tools.fit import fit_codec
from meinst.codecs import DCTCodec
from meinst.codecs.linear import LinearCodec
from meinst.codecs.options import CodecOptions
from meinst.codecs.packed import PackedMaskCodec
from meinst.data.coco import CocoData
from meinst.data.ground_truth import ground_truth, match_classes
from meinst.data.metrics import APSummary, coco_metrics
from meinst.detector import select
from meinst.detector.predictor import Predictor
from meinst.ops.paste import soft_masks_to_rle

COUNTS = (60, 120, 240)
CLAMPS = (None, 8.0, 4.0, 2.0)  # of logits, before encoding
TIMED, REPEATS = 100, 21
BYTES = {"float32": 4, "float16": 2, "int8": 1}


class UnpackedMasks(PackedMaskCodec):
    """Keeps soft masks as float32, so that the benchmark sees them before any loss."""

    code_dtype = torch.float32

    def __init__(self, mask_size: int) -> None:
        super().__init__(mask_size)
        self.n_components = mask_size**2

    def encode(self, soft_masks: Tensor) -> Tensor:
        """Flatten soft masks ``(N, S, S)``."""
        return soft_masks.flatten(1)

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Restore soft masks ``(N, S, S)``."""
        return codes.view(-1, self.mask_size, self.mask_size)


@dataclass
class Predictions:
    """Detections of a set, image after image.

    Attributes:
        results: COCO results.
        boxes: ``(N, 4)``.
        soft: ``(N, S, S)`` refined masks.
        sizes: height and width of each image.
        counts: number of detections of each image.
    """

    results: list[dict[str, Any]]
    boxes: Tensor
    soft: Tensor
    sizes: list[tuple[int, int]]
    counts: list[int]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: codec, its input, K and number format.
        size: bytes per mask.
        apply: encodes and decodes soft masks ``(N, S, S)``.
    """

    name: tuple[object, ...]
    size: int
    apply: Callable[[Tensor], Tensor]


def predict(model: Predictor, data: CocoData) -> Predictions:
    """Run the model once on each image, like `meinst evaluate`."""
    ids = [category or 0 for category in match_classes(model.class_names, data).category_ids]
    predictions = Predictions([], torch.empty(0), torch.empty(0), [], [])
    parts = []
    with patch.object(select, "PackedMaskCodec", UnpackedMasks):
        for record in data.images:
            detections = model.predict(str(record.path), score_threshold=0.0)
            predictions.results += detections.to_coco(record.id, ids)
            parts.append((detections.boxes, detections.soft_masks()))
            predictions.sizes.append(detections.image_size)
            predictions.counts.append(len(detections))
    predictions.boxes, predictions.soft = map(torch.cat, zip(*parts, strict=True))
    return predictions


def rounded(codes: Tensor, number: str) -> Tensor:
    """Codes ``(N, K)`` after storage; int8 has one float32 scale per mask."""
    if number == "float16":
        return codes.half().float()
    if number == "int8":
        scale = codes.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
        return (codes / scale).round().char().float() * scale
    return codes


def linear(codec: LinearCodec, count: int, clamp: float | None, number: str, *, soft: bool) -> Row:
    """The first ``count`` components of a codec, applied to logits or to soft masks."""
    components, mean = codec.components_[0, :count].contiguous(), codec.mean_[0]
    side = codec.mask_size

    def apply(masks: Tensor) -> Tensor:
        values = masks if soft else masks.logit(1e-6)
        values = values if clamp is None else values.clamp(-clamp, clamp)
        codes = rounded((values.flatten(1) - mean) @ components.T, number)
        decoded = (codes @ components + mean).view(-1, side, side)
        return decoded.clamp(0.01, 0.99) if soft else decoded.sigmoid()

    source = "soft mask" if soft else "logits" + (f" to {clamp:g}" if clamp else "")
    size = BYTES[number] * count + 4 * (number == "int8")
    return Row((codec.kind, source, count, number), size, apply)


def packed(side: int, bits: int) -> Row:
    """The soft mask with a few bits per pixel."""
    levels = 2**bits - 1
    name = ("pixels", "soft mask", side**2, f"{bits} bit")
    return Row(name, side**2 * bits // 8, lambda soft: (soft * levels).round() / levels)


def make_rows(side: int, train: Path) -> Iterator[Row]:
    """All codecs to compare."""
    yield from (packed(side, bits) for bits in (4, 3, 2, 1))
    dct = DCTCodec(max(COUNTS), side)
    pca = fit_codec(train, CodecOptions(n_components=max(COUNTS), mask_size=side, whiten=False))
    assert isinstance(pca, LinearCodec)
    for codec in (dct, pca):
        for clamp in CLAMPS:
            yield from (linear(codec, k, clamp, "float32", soft=False) for k in COUNTS)
        yield from (linear(codec, k, 4.0, "float16", soft=False) for k in COUNTS)
    soft_dct = DCTCodec(400, side, sigmoid=False)
    yield from (linear(soft_dct, k, None, "float16", soft=True) for k in COUNTS)
    yield from (linear(soft_dct, k, None, "int8", soft=True) for k in (*COUNTS, 320, 400))


def mask_ap(predictions: Predictions, soft: Tensor, truth: dict[str, Any], limit: int) -> APSummary:
    """Figures of the detections with these soft masks."""
    rles: list[dict[str, Any]] = []
    parts = (soft.split(predictions.counts), predictions.boxes.split(predictions.counts))
    for masks, boxes, size in zip(*parts, predictions.sizes, strict=True):
        rles += soft_masks_to_rle(masks, boxes, size)
    pairs = zip(predictions.results, rles, strict=True)
    results = [{**result, "segmentation": rle} for result, rle in pairs]
    return coco_metrics(truth, results, limit).segm


def mask_iou(before: Tensor, after: Tensor) -> Tensor:
    """IoU ``(N,)`` of binary masks."""
    first, second = (before >= 0.5).flatten(1), (after >= 0.5).flatten(1)
    union = (first | second).sum(1)
    return torch.where(union > 0, (first & second).sum(1) / union.clamp(min=1), 1.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", choices=("photos", "nuclei"))
    parser.add_argument("data", type=Path, help="folder of val/ and annotations/")
    options = parser.parse_args()
    keep_for_reuse()
    torch.set_grad_enabled(False)
    print(versions("meinst", "torch"), f"{torch.get_num_threads()} threads")
    annotations = options.data / "annotations"
    data = meinst.read_coco(annotations / "val.json", options.data / "val")
    model = meinst.load(options.model).fuse()
    truth, limit = ground_truth(data), model.selection.max_detections
    predictions = predict(model, data)
    baseline = mask_ap(predictions, predictions.soft, truth, limit)
    assert baseline.ap is not None
    print(f"{len(predictions.boxes)} detections; refined masks as float32: {100 * baseline.ap:.2f}")
    print("| codec | input | K | numbers | bytes | AP | change | AP75 | IoU | IoU 5 % | ms |")
    print("|---|---|---:|---|" + 7 * "---:|")
    sample = predictions.soft[:TIMED].clone()
    for row in make_rows(predictions.soft.shape[-1], annotations / "train.json"):
        row.apply(sample)
        milliseconds = 1000 * statistics.median(
            seconds(lambda apply=row.apply: apply(sample)) for _ in range(REPEATS)
        )
        soft = row.apply(predictions.soft)
        figures, iou = mask_ap(predictions, soft, truth, limit), mask_iou(predictions.soft, soft)
        assert figures.ap is not None
        assert figures.ap75 is not None
        cells = (
            *row.name,
            row.size,
            f"{100 * figures.ap:.2f}",
            f"{100 * (figures.ap - baseline.ap):+.2f}",
            f"{100 * figures.ap75:.2f}",
            f"{iou.mean():.4f}",
            f"{iou.quantile(0.05):.4f}",
            f"{milliseconds:.2f}",
        )
        print("|", " | ".join(map(str, cells)), "|", flush=True)


if __name__ == "__main__":
    main()
