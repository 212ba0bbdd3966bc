"""What a mask codec loses: every instance encoded, decoded and compared at its own resolution."""

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

from meinst.codecs import Codec
from meinst.data.coco import CocoData
from meinst.data.shapes import read_counts
from meinst.engine.codec_truth import CodecTruth, TrueImage, gather_truth
from meinst.engine.evaluate import coco_metrics
from meinst.files import write_atomically
from meinst.ops.mask_iou import boundary_distance, boundary_runs, mask_runs, runs_iou
from meinst.ops.paste import soft_masks_to_rle

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

METRICS, INSTANCES = "metrics.json", "instances.csv"

_SMALL, _MEDIUM = 32**2, 96**2  # COCO's limits of areas in pixels
_CHUNK = 2**22  # pixels of S x S masks that are encoded at a time; bounds the memory


@dataclass(frozen=True)
class ShapeScores:
    """How well a group of instances is kept; all None for a group without instances.

    Attributes:
        instances: how many.
        mean_iou: mean of the instances' IoU.
        iou_p1: 1st percentile of the instances' IoU: one in a hundred is worse.
        iou_p5: 5th percentile.
        iou_p25: 25th percentile.
        mean_boundary_iou: mean of the instances' boundary IoU.
    """

    instances: int
    mean_iou: float | None
    iou_p1: float | None
    iou_p5: float | None
    iou_p25: float | None
    mean_boundary_iou: float | None


@dataclass(frozen=True, eq=False)
class CodecScores:
    """What :func:`evaluate_codec` found.

    The arrays have an entry for each measured instance: file after file, image after image, in
    the order of ``CocoData.instances``, without crowds and unknown categories.

    Attributes:
        codec: the codec's configuration.
        bytes_per_instance: of a code, ``4 K``.
        annotations: the annotation files.
        overall: of all instances.
        by_size: of ``small``, ``medium`` and ``large`` ones (masks below 32 x 32 and below
            96 x 96 pixels, and larger ones).
        by_category: of each category, by name.
        pooled_miou: the published tool's figure: one confusion matrix over the ``S x S`` masks
            of all instances, mean of foreground's and background's IoU.
        ap_ceiling: COCO's mask metrics of the ground truth after encoding and decoding, as of
            :func:`meinst.engine.evaluate.coco_metrics`: the most a detector can reach.
        unknown_categories: categories that a class-specific codec does not know; nothing of
            them is measured.
        iou: ``(N,)`` float32.
        boundary_iou: ``(N,)`` float32.
        areas: ``(N,)`` int64, pixels of the annotated masks.
        files: ``(N,)`` int64, indices into ``annotations``.
        image_ids: ``(N,)`` int64, as in the instance's file.
        annotation_ids: ``(N,)`` int64, as in the instance's file.
        labels: ``(N,)`` int64, indices into ``class_names``.
        class_names: the measured categories.
    """

    codec: dict[str, Any]
    bytes_per_instance: int
    annotations: tuple[str, ...]
    overall: ShapeScores
    by_size: dict[str, ShapeScores]
    by_category: dict[str, ShapeScores]
    pooled_miou: float
    ap_ceiling: dict[str, Any]
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
        """Plain values for a JSON file: all but what is of single instances."""
        return {
            "codec": self.codec,
            "bytes_per_instance": self.bytes_per_instance,
            "annotations": list(self.annotations),
            "overall": asdict(self.overall),
            "by_size": {name: asdict(scores) for name, scores in self.by_size.items()},
            "by_category": {name: asdict(scores) for name, scores in self.by_category.items()},
            "pooled_miou": self.pooled_miou,
            "ap_ceiling": self.ap_ceiling,
            "unknown_categories": list(self.unknown_categories),
        }


def evaluate_codec(
    codec: Codec,
    data: Sequence[CocoData] | CocoData,
    on_masks: Callable[[int], None] | None = None,
) -> CodecScores:
    """Encode and decode every instance that is no crowd, and measure what was lost.

    The decoded mask is stretched over the annotation's box, as a detection's is, and compared
    with the annotated one in the pixels of the original image. Two masks without pixels are
    alike (IoU 1). Categories are matched to the classes of a class-specific codec by their
    names. Work and memory do not follow the number of pixels of the images.

    Args:
        codec: a fitted one.
        data: one or more annotation files; no image is read.
        on_masks: called with the number of masks that were done, for a progress bar.

    Raises:
        NotFittedError: the codec is not fitted.
        ValueError: there is no instance to measure.
    """
    files = [data] if isinstance(data, CocoData) else list(data)
    truth = gather_truth(files, codec.class_names)
    return score_codec(codec, truth, truth.images(), on_masks)


def score_codec(
    codec: Codec,
    truth: CodecTruth,
    images: Iterable[TrueImage],
    on_masks: Callable[[int], None] | None = None,
) -> CodecScores:
    """Measure a codec on instances that may serve several codecs.

    Args:
        codec: a fitted one.
        truth: what to measure on, of the codec's classes.
        images: ``truth.images()``, or what it gave.
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
    iou, boundary_iou = (
        np.array(values, dtype=np.float32) for values in (tally.iou, tally.boundary_iou)
    )
    areas = np.array(tally.areas, dtype=np.int64)
    sizes = {
        "small": areas < _SMALL,
        "medium": (areas >= _SMALL) & (areas < _MEDIUM),
        "large": areas >= _MEDIUM,
    }
    by_category = {name: truth.labels == label for label, name in enumerate(truth.class_names)}

    def groups(members: dict[str, NDArray[np.bool_]]) -> dict[str, ShapeScores]:
        return {name: _shape_scores(iou[of], boundary_iou[of]) for name, of in members.items()}

    return CodecScores(
        codec=codec.get_config(),
        bytes_per_instance=4 * codec.n_components,
        annotations=tuple(str(one.annotations) for one in truth.data),
        overall=_shape_scores(iou, boundary_iou),
        by_size=groups(sizes),
        by_category=groups(by_category),
        pooled_miou=tally.pooled_miou(),
        ap_ceiling=coco_metrics(truth.document, tally.results, truth.max_instances)["segm"],
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
    """Collects what is measured, image by image."""

    def __init__(self) -> None:
        self.iou: list[float] = []
        self.boundary_iou: list[float] = []
        self.areas: list[int] = []
        self.results: list[dict[str, Any]] = []
        self._pixels = np.zeros((2, 2), dtype=np.int64)  # (foreground or not, shared or either)

    def add_pooled(self, decoded: Tensor, original: Tensor) -> None:
        """Count pixels of masks ``(N, S, S)`` of bool."""
        for row, (found, wanted) in enumerate(((decoded, original), (~decoded, ~original))):
            self._pixels[row] += int((found & wanted).sum()), int((found | wanted).sum())

    def pooled_miou(self) -> float:
        """Mean of foreground's and background's IoU."""
        shared, either = self._pixels.T
        return float(np.where(either > 0, shared / np.maximum(either, 1), 1.0).mean())

    def add_image(self, image: TrueImage, soft: Tensor) -> None:
        """Compare an image's decoded masks ``(G, S, S)`` with its own ones."""
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


def _chunks(images: Iterable[TrueImage], count: int) -> Iterator[list[TrueImage]]:
    """Images one after the other, until they hold so many instances."""
    held: list[TrueImage] = []
    instances = 0
    for image in images:
        held.append(image)
        instances += len(image.masks)
        if instances >= count:
            yield held
            held, instances = [], 0
    if held:
        yield held


@torch.no_grad()
def _decoded(codec: Codec, masks: Tensor, names: Sequence[str]) -> Tensor:
    """Encode and decode masks ``(N, S, S)`` of the named classes; on the CPU."""
    device = next((buffer.device for buffer in codec.buffers()), masks.device)
    labels = None
    if codec.class_names is not None:
        places = {name: label for label, name in enumerate(codec.class_names)}
        labels = torch.tensor([places[name] for name in names], device=device)
    codes = codec.transform(masks.to(device), labels=labels)
    return codec.inverse_transform(codes, labels).cpu()


def _shape_scores(iou: Floats, boundary_iou: Floats) -> ShapeScores:
    if not len(iou):
        return ShapeScores(0, None, None, None, None, None)
    p1, p5, p25 = np.percentile(iou, (1, 5, 25)).tolist()
    mean, boundary = (float(each.mean(dtype=np.float64)) for each in (iou, boundary_iou))
    return ShapeScores(len(iou), mean, p1, p5, p25, boundary)


def check_scores_folder(folder: Path) -> None:
    """Refuse a folder whose ``metrics.json`` is of something else, as that of a training run.

    Raises:
        FileExistsError: if it is.
    """
    path = folder / METRICS
    try:
        ours = "codec" in json.loads(path.read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        ours = False
    if not ours:
        raise FileExistsError(
            f"{path}: not of `meinst codec evaluate`, and would be overwritten; choose another "
            "--output."
        )


def write_scores(scores: CodecScores, folder: Path) -> None:
    """Write ``metrics.json`` and, with a line for each instance, ``instances.csv``.

    Raises:
        OSError: the folder cannot be written.
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
