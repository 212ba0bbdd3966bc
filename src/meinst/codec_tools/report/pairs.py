"""Original and decoded masks of instances, as images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from meinst.codec_tools.evaluate import CodecScores
from meinst.codec_tools.ground_truth import shape_runs
from meinst.codecs import Codec
from meinst.data.coco import CocoData
from meinst.data.shapes import Instances, Shape, shape_bounds
from meinst.ops.draw import PALETTE
from meinst.ops.paste import crop_masks

BOTH, LOST, ADDED, OUTSIDE = (92, 102, 112), PALETTE[5], PALETTE[1], (247, 248, 249)
"""RGB colours of pixels in both masks, only the original, only the decoded, and neither."""


@dataclass(frozen=True, eq=False)
class Pair:
    """Original and decoded mask in the pixels of the image, cropped with a margin of one pixel.

    Attributes:
        original: ``(h, w)`` bool, the annotated mask.
        decoded: ``(h, w)`` bool, the annotated mask after encoding and decoding.
        iou: IoU of both masks, from the scores.
        annotation_id: id in the annotation file.
        class_name: name of the category.
    """

    original: NDArray[np.bool_]
    decoded: NDArray[np.bool_]
    iou: float
    annotation_id: int
    class_name: str

    def pictures(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Draw the original mask, and the decoded mask with lost and added pixels in colour.

        Returns:
            Two ``(h, w, 3)`` RGB images.
        """
        before = np.empty((*self.original.shape, 3), dtype=np.uint8)
        before[:] = OUTSIDE
        before[self.original] = BOTH
        after = before.copy()
        after[self.original & ~self.decoded] = LOST
        after[self.decoded & ~self.original] = ADDED
        return before, after


def spread(iou: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Choose instances from best to worst, evenly spaced by rank.

    Args:
        iou: ``(N,)`` IoU of the instances.
        count: number of instances; at most ``N`` are returned.

    Returns:
        Indices into ``iou``.

    Raises:
        ValueError: if the count is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}.")
    ranked = np.argsort(-iou, kind="stable")
    places = np.linspace(0, len(iou) - 1, min(count, len(iou))).round().astype(np.int64)
    return ranked[places]


def find_pairs(
    scores: CodecScores,
    codec: Codec,
    data: CocoData | Sequence[CocoData],
    chosen: NDArray[np.int64],
) -> list[Pair]:
    """Encode and decode some of the measured instances again.

    Args:
        scores: scores of ``codec`` on ``data``.
        codec: the codec, on the CPU.
        data: the annotations, in the same order as when they were measured.
        chosen: indices into the arrays of the scores.

    Raises:
        ValueError: if the scores are of other data.
    """
    files = [data] if isinstance(data, CocoData) else list(data)
    return [_pair(scores, codec, files, int(n)) for n in chosen]


def _pair(scores: CodecScores, codec: Codec, files: list[CocoData], n: int) -> Pair:
    file = files[scores.files[n]]
    image = next(i for i, record in enumerate(file.images) if record.id == scores.image_ids[n])
    instances = file.instances[image]
    # Scores are in the order of the image's measured instances.
    known = [name not in scores.unknown_categories for name in file.class_names]
    measured = np.flatnonzero(~instances.crowd & np.array(known)[instances.labels])
    same = (scores.files == scores.files[n]) & (scores.image_ids == scores.image_ids[n])
    if same.sum() != len(measured):
        raise ValueError(
            f"{file.annotations}: image {scores.image_ids[n]} has {len(measured)} instances, but "
            f"{same.sum()} scores; use the annotations that the scores were computed from."
        )
    instance = instances.select(measured[[same[:n].sum()]])
    name = file.class_names[instance.labels[0]]
    record = file.images[image]
    original, decoded = _before_and_after(codec, instance, name, (record.height, record.width))
    return Pair(original, decoded, float(scores.iou[n]), int(scores.annotation_ids[n]), name)


@torch.no_grad()
def _before_and_after(
    codec: Codec, instance: Instances, name: str, size: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Original and decoded mask, ``(h, w)``, of a single instance."""
    labels = None
    if codec.class_names is not None:
        labels = torch.tensor([codec.class_names.index(name)])
    masks = torch.from_numpy(instance.masks(codec.mask_size))  # (1, S, S)
    soft = codec.inverse_transform(codec.transform(masks, labels=labels), labels)
    (crop,), ((left, top),) = crop_masks(soft, torch.from_numpy(instance.boxes), size)
    x1, y1, x2, y2 = _window(instance, size)
    original = _draw(instance.shapes[0], (x1, y1, x2, y2), size)
    decoded = np.zeros_like(original)
    decoded[top - y1 : top - y1 + crop.shape[0], left - x1 : left - x1 + crop.shape[1]] = crop
    return original, decoded


def _window(instance: Instances, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Bounds ``x1 y1 x2 y2`` of an instance's box and mask, with a margin of one pixel."""
    bounds = np.array([instance.boxes[0], shape_bounds(instance.shapes[0])])
    x1, y1 = np.floor(bounds[:, :2].min(0) - 1).clip(0).astype(int).tolist()
    x2, y2 = np.ceil(bounds[:, 2:].max(0) + 1).clip(max=size[::-1]).astype(int).tolist()
    return x1, y1, x2, y2


def _draw(
    shape: Shape, window: tuple[int, int, int, int], size: tuple[int, int]
) -> NDArray[np.bool_]:
    """Rasterise a mask, ``(h, w)``, in a window that contains it, of an image of ``size``."""
    x1, y1, x2, y2 = window
    height = size[0]
    runs = shape_runs(shape, *size) - x1 * height  # (R, 2), down the window's columns
    changes = np.zeros((x2 - x1) * height + 1, dtype=np.int8)
    changes[runs[:, 0]] = 1
    changes[runs[:, 1]] = -1
    columns = np.cumsum(changes[:-1], dtype=np.int8).reshape(-1, height)  # (w, H)
    return columns[:, y1:y2].T > 0
