"""Measure a mask codec: encode and decode every instance, and compare at image resolution."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from meinst.codec_tools.ground_truth import CodecGroundTruth, ImageMasks, join_ground_truth
from meinst.codecs import Codec
from meinst.data.coco import CocoData
from meinst.data.metrics import APSummary, coco_metrics
from meinst.data.shapes import read_counts
from meinst.files import write_atomically
from meinst.ops.mask_iou import boundary_distance, boundary_runs, mask_runs, runs_iou
from meinst.ops.paste import soft_masks_to_rle

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

METRICS, INSTANCES = "metrics.json", "instances.csv"

_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of areas, in pixels
_CHUNK = 2**22  # pixels of S x S masks that are encoded at a time, which bounds the memory


@dataclass(frozen=True)
class ShapeScores:
    """How well a group of instances is reconstructed; None where the group is empty.

    Attributes:
        instances: number of instances.
        mean_iou: mean IoU of the instances.
        iou_p1: 1st percentile of the IoU: one instance in a hundred is worse.
        iou_p5: 5th percentile of the IoU.
        iou_p25: 25th percentile of the IoU.
        mean_boundary_iou: mean boundary IoU of the instances.
    """

    instances: int
    mean_iou: float | None
    iou_p1: float | None
    iou_p5: float | None
    iou_p25: float | None
    mean_boundary_iou: float | None


@dataclass(frozen=True, eq=False)
class CodecScores:
    """Result of :func:`evaluate_codec`.

    Arrays list the ``N`` measured instances file by file and image by image, in the order of
    ``CocoData.instances``, without crowds and unknown categories.

    Attributes:
        codec: configuration of the codec.
        bytes_per_instance: size of a code in bytes, ``4 K``.
        annotations: paths of the annotation files.
        overall: scores of all instances.
        by_size: scores of ``small``, ``medium`` and ``large`` instances (masks smaller than 32 x 32
            pixels, smaller than 96 x 96 pixels, and larger).
        by_category: scores of each category, by name.
        pooled_miou: the figure of the published tool: mean IoU of foreground and background, from
            one confusion matrix over the ``S x S`` masks of all instances.
        ap_ceiling: COCO's mask AP of the decoded ground truth, the most that a detector can reach.
        unknown_categories: categories that a class-specific codec does not have; not measured.
        iou: ``(N,)`` float32.
        boundary_iou: ``(N,)`` float32.
        areas: ``(N,)`` int64, pixels of the annotated masks.
        files: ``(N,)`` int64, indices into ``annotations``.
        image_ids: ``(N,)`` int64, as in the instance's file.
        annotation_ids: ``(N,)`` int64, as in the instance's file.
        labels: ``(N,)`` int64, indices into ``class_names``.
        class_names: names of the measured categories.
    """

    codec: dict[str, Any]
    bytes_per_instance: int
    annotations: tuple[str, ...]
    overall: ShapeScores
    by_size: dict[str, ShapeScores]
    by_category: dict[str, ShapeScores]
    pooled_miou: float
    ap_ceiling: APSummary
    unknown_categories: tuple[str, ...]
    iou: Floats
    boundary_iou: Floats
    areas: Integers
    files: Integers
    image_ids: Integers
    annotation_ids: Integers
    labels: Integers
    class_names: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, without the arrays of single instances."""
        return {
            "codec": self.codec,
            "bytes_per_instance": self.bytes_per_instance,
            "annotations": list(self.annotations),
            "overall": asdict(self.overall),
            "by_size": {name: asdict(scores) for name, scores in self.by_size.items()},
            "by_category": {name: asdict(scores) for name, scores in self.by_category.items()},
            "pooled_miou": self.pooled_miou,
            "ap_ceiling": self.ap_ceiling.to_dict(),
            "unknown_categories": list(self.unknown_categories),
        }


def evaluate_codec(
    codec: Codec,
    data: Sequence[CocoData] | CocoData,
    on_masks: Callable[[int], None] | None = None,
) -> CodecScores:
    """Encode and decode every instance that is not a crowd, and compare.

    Decoded masks are stretched over the annotated boxes, as those of detections are, and compared
    with the annotated masks in the pixels of the original image. The IoU of two empty masks is 1.
    Categories are matched to the classes of a class-specific codec by name. Time and memory do not
    grow with the number of pixels of the images.

    Args:
        codec: a fitted codec.
        data: content of one or more annotation files; images are not needed.
        on_masks: called with the number of masks done since the last call.

    Raises:
        NotFittedError: if the codec is not fitted.
        ValueError: if there are no instances to measure.
    """
    files = [data] if isinstance(data, CocoData) else list(data)
    truth = join_ground_truth(files, codec.class_names)
    return score_codec(codec, truth, truth.images(), on_masks)


def score_codec(
    codec: Codec,
    truth: CodecGroundTruth,
    images: Iterable[ImageMasks],
    on_masks: Callable[[int], None] | None = None,
) -> CodecScores:
    """Measure a codec on ground truth that can be shared by several codecs.

    Args:
        codec: a fitted codec.
        truth: the instances, of the codec's classes only.
        images: the result of ``truth.images()``.
        on_masks: as in :func:`evaluate_codec`.
    """
    tally = _Tally()
    for chunk in _chunks(images, _CHUNK // codec.mask_size**2):
        masks = [image.instances.masks(codec.mask_size) for image in chunk]
        original = torch.from_numpy(np.concatenate(masks))  # (N, S, S)
        labels = np.concatenate([image.instances.labels for image in chunk])
        soft = _decoded(codec, original, [truth.class_names[label] for label in labels])
        tally.add_pooled(soft >= 0.5, original.bool())
        parts = torch.split(soft, [len(each) for each in masks])
        for image, part in zip(chunk, parts, strict=True):
            tally.add_image(image, part)
            if on_masks is not None:
                on_masks(len(part))
    return _summarise(codec, truth, tally)


def _summarise(codec: Codec, truth: CodecGroundTruth, tally: _Tally) -> CodecScores:
    iou = np.array(tally.iou, dtype=np.float32)
    boundary_iou = np.array(tally.boundary_iou, dtype=np.float32)
    areas = np.array(tally.areas, dtype=np.int64)
    sizes = {
        "small": areas < _SMALL,
        "medium": (areas >= _SMALL) & (areas < _MEDIUM),
        "large": areas >= _MEDIUM,
    }
    categories = {name: truth.labels == label for label, name in enumerate(truth.class_names)}

    def groups(members: dict[str, NDArray[np.bool_]]) -> dict[str, ShapeScores]:
        return {name: _shape_scores(iou[of], boundary_iou[of]) for name, of in members.items()}

    return CodecScores(
        codec=codec.get_config(),
        bytes_per_instance=4 * codec.n_components,
        annotations=tuple(str(file.annotations) for file in truth.data),
        overall=_shape_scores(iou, boundary_iou),
        by_size=groups(sizes),
        by_category=groups(categories),
        pooled_miou=tally.pooled_miou(),
        ap_ceiling=coco_metrics(truth.document, tally.results, truth.max_instances).segm,
        unknown_categories=truth.unknown_categories,
        iou=iou,
        boundary_iou=boundary_iou,
        areas=areas,
        files=truth.files,
        image_ids=truth.image_ids,
        annotation_ids=truth.annotation_ids,
        labels=truth.labels,
        class_names=truth.class_names,
    )


class _Tally:
    """Collects scores and COCO results, image by image."""

    def __init__(self) -> None:
        self.iou: list[float] = []
        self.boundary_iou: list[float] = []
        self.areas: list[int] = []
        self.results: list[dict[str, Any]] = []
        self._pixels = np.zeros(
            (2, 2), dtype=np.int64
        )  # (foreground, background) x (intersection, union)

    def add_pooled(self, decoded: Tensor, original: Tensor) -> None:
        """Count the pixels of ``(N, S, S)`` bool masks."""
        for row, (a, b) in enumerate(((decoded, original), (~decoded, ~original))):
            self._pixels[row] += int((a & b).sum()), int((a | b).sum())

    def pooled_miou(self) -> float:
        """Mean IoU of foreground and background."""
        intersection, union = self._pixels.T
        return float(np.where(union > 0, intersection / np.maximum(union, 1), 1.0).mean())

    def add_image(self, image: ImageMasks, soft: Tensor) -> None:
        """Compare the decoded masks of an image, ``(G, S, S)``, with its annotated masks."""
        boxes, labels = image.instances.boxes, image.instances.labels
        size = (image.height, image.width)
        distance = boundary_distance(*size)
        coded = soft_masks_to_rle(soft, torch.from_numpy(boxes), size)
        for rle, mask, boundary in zip(coded, image.masks, image.boundaries, strict=True):
            decoded = mask_runs(read_counts(rle["counts"]))
            self.iou.append(runs_iou(decoded, mask))
            edge = boundary_runs(decoded, image.height, distance)
            self.boundary_iou.append(runs_iou(edge, boundary))
        self.areas += image.areas
        sides = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
        self.results += [
            {
                "image_id": image.id,
                "category_id": label + 1,
                "score": 1.0,
                "bbox": box,
                "segmentation": rle,
            }
            for label, box, rle in zip(labels.tolist(), sides.tolist(), coded, strict=True)
        ]


def _chunks(images: Iterable[ImageMasks], count: int) -> Iterator[list[ImageMasks]]:
    """Group images so that each group has at least ``count`` instances, except the last."""
    group: list[ImageMasks] = []
    instances = 0
    for image in images:
        group.append(image)
        instances += len(image.masks)
        if instances >= count:
            yield group
            group, instances = [], 0
    if group:
        yield group


@torch.no_grad()
def _decoded(codec: Codec, masks: Tensor, names: Sequence[str]) -> Tensor:
    """Encode and decode ``(N, S, S)`` masks of the named classes; the result is on the CPU."""
    device = next((buffer.device for buffer in codec.buffers()), masks.device)
    labels = None
    if codec.class_names is not None:
        label_of = {name: label for label, name in enumerate(codec.class_names)}
        labels = torch.tensor([label_of[name] for name in names], device=device)
    codes = codec.transform(masks.to(device), labels=labels)
    return codec.inverse_transform(codes, labels).cpu()


def _shape_scores(iou: Floats, boundary_iou: Floats) -> ShapeScores:
    if not len(iou):
        return ShapeScores(0, None, None, None, None, None)
    p1, p5, p25 = np.percentile(iou, (1, 5, 25)).tolist()
    mean, boundary = (float(each.mean(dtype=np.float64)) for each in (iou, boundary_iou))
    return ShapeScores(len(iou), mean, p1, p5, p25, boundary)


def check_scores_folder(folder: Path) -> None:
    """Reject a folder whose ``metrics.json`` is not that of a codec, but of a training run.

    Raises:
        FileExistsError: naming the file.
    """
    path = folder / METRICS
    try:
        of_codec = "codec" in json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        of_codec = False
    if not of_codec:
        raise FileExistsError(
            f"{path} was not written by `meinst codec evaluate` and would be overwritten; choose "
            "another --output."
        )


def write_scores(scores: CodecScores, folder: Path) -> None:
    """Write ``metrics.json``, and ``instances.csv`` with one line per instance.

    Raises:
        OSError: if the folder cannot be written.
    """
    write_atomically(folder / METRICS, json.dumps(scores.to_dict(), indent=2).encode())
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(
        ("file", "image_id", "annotation_id", "category", "area", "iou", "boundary_iou")
    )
    writer.writerows(
        zip(
            (scores.annotations[file] for file in scores.files),
            scores.image_ids.tolist(),
            scores.annotation_ids.tolist(),
            (scores.class_names[label] for label in scores.labels),
            scores.areas.tolist(),
            (f"{value:.6f}" for value in scores.iou),
            (f"{value:.6f}" for value in scores.boundary_iou),
            strict=True,
        )
    )
    write_atomically(folder / INSTANCES, table.getvalue().encode())
