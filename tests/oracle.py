"""A model that finds the objects of a drawn picture by colour, as far as a window shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from meinst.codecs.packed import PackedMaskCodec
from meinst.data.images import Picture
from meinst.data.transforms import ResizedImage, ResizeOptions, resize_image
from meinst.detections import Detections
from meinst.detector.select import SelectOptions
from meinst.images.intensity import InputOptions
from meinst.images.notes import ImageNotes

SIDE = 28
MIN_PIXELS = 9  # smaller parts are not found
CODEC = PackedMaskCodec(SIDE)


def color_of(number: int) -> tuple[int, int, int]:
    """The colour of an object; multiples of 8, so that mixtures are hardly ever another colour."""
    number += 1
    return 8 * (number % 31 + 1), 8 * (number // 31 % 31 + 1), 120


def draw_discs(
    size: tuple[int, int], discs: Sequence[tuple[float, float, float]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture of discs (x, y, radius), and their masks."""
    picture = np.zeros((*size, 3), np.uint8)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    masks = []
    for number, (cx, cy, radius) in enumerate(discs):
        mask = (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
        picture[mask] = color_of(number)
        masks.append(mask)
    return picture, masks


def random_discs(
    rng: np.random.Generator, size: tuple[int, int], count: int, low: float, high: float
) -> list[tuple[float, float, float]]:
    """Discs that do not touch each other."""
    discs: list[tuple[float, float, float]] = []
    for _ in range(40 * count):
        radius = float(rng.uniform(low, high))
        x, y = (float(rng.uniform(radius, side - radius)) for side in (size[1], size[0]))
        if all((x - a) ** 2 + (y - b) ** 2 > (radius + r + 2) ** 2 for a, b, r in discs):
            discs.append((x, y, radius))
        if len(discs) == count:
            break
    return discs


@dataclass
class Oracle:
    """What :mod:`meinst.detector.tiled` uses of a model, with ground truth for a network.

    Attributes:
        side: of the input, in pixels.
        missed: sides of the input's objects, in pixels, above which they are not found.
        blind: whether objects are found at all, by the scale of the window.
    """

    side: int = 128
    stride: int = 4
    largest: float = 1e9
    seen: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.resize_options = ResizeOptions(self.side, self.side)
        self.options = SimpleNamespace(strides=(self.stride,))
        self.input_options = InputOptions()
        self.selection = SelectOptions(score_threshold=0.1)
        self.class_names = ("disc",)
        self.metadata: dict[str, Any] = {}

    def resize(self, image: np.ndarray | Picture) -> ResizedImage:
        image = image.pixels if isinstance(image, Picture) else image
        resized = resize_image(image, self.resize_options)
        shrink = max(image.shape[:2]) / max(resized.shape[:2])
        return ResizedImage(image, resized, ImageNotes(shrink=shrink))

    def predict_batch(
        self,
        images: Sequence[ResizedImage],
        selection: SelectOptions | None = None,  # noqa: ARG002
    ) -> list[Detections]:
        return [self._find(image) for image in images]

    def _find(self, image: ResizedImage) -> Detections:
        pixels = image.resized.astype(np.int64)
        self.seen.append(image.resized.shape[:2])
        codes = np.where(pixels[..., 2] == 120, pixels[..., 0] * 256 + pixels[..., 1], 0)
        boxes, scores, masks = [], [], []
        for code in np.unique(codes[codes > 0]).tolist():
            if code // 256 % 8 or code % 8:
                continue
            mask = codes == code
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            if mask.sum() < MIN_PIXELS or max(box[2] - box[0], box[3] - box[1]) > self.largest:
                continue
            crop = torch.from_numpy(mask[box[1] : box[3], box[0] : box[2]]).float()
            soft = F.interpolate(crop[None, None], (SIDE, SIDE), mode="bilinear")[0, 0]
            boxes.append(box)
            masks.append(soft)
            scores.append(0.5 + 0.4 * float(mask.mean()) + code % 64 / 1000)
        height, width = image.original.shape[:2]
        scale = torch.tensor([width / pixels.shape[1], height / pixels.shape[0]]).repeat(2)
        found = torch.tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4)) * scale
        soft_masks = torch.stack(masks) if masks else torch.zeros(0, SIDE, SIDE)
        detections = Detections(
            found.float(),
            torch.tensor(scores),
            torch.zeros(len(scores), dtype=torch.int64),
            CODEC.encode(soft_masks),
            (height, width),
            CODEC,
            self.class_names,
        )
        return detections[detections.scores.argsort(descending=True, stable=True)]
