"""What a data set holds, and whether a model can learn from it or be measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meinst.data.coco import CocoData
from meinst.data.shapes import Floats
from meinst.data.transforms import MIN_SIDE, ResizeOptions, resized_size
from meinst.options import first_few


@dataclass(frozen=True)
class DataSummary:
    """Figures of a data set, as a model of a certain input size sees it.

    Attributes:
        images: number of images.
        without_objects: images without usable objects.
        smallest: height and width of the image of the fewest pixels.
        largest: height and width of the image of the most pixels.
        objects: number of usable objects of each class, by name; crowds do not count.
        crowds: number of crowd regions.
        dropped: number of faulty annotations.
        below_pixel: usable objects with a side of less than a pixel in the network's input.
        below_stride: usable objects with both sides below the finest stride in the network's input.
        stride: the finest stride, in pixels of the network's input.
        crowded: images with more objects than ``max_detections``.
        max_detections: largest number of detections per image.
    """

    images: int
    without_objects: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    objects: dict[str, int]
    crowds: int
    dropped: int
    below_pixel: int
    below_stride: int
    stride: int
    crowded: int
    max_detections: int

    @property
    def total(self) -> int:
        """Number of usable objects."""
        return sum(self.objects.values())

    def __str__(self) -> str:
        sizes = " to ".join(dict.fromkeys(f"{w} x {h}" for h, w in (self.smallest, self.largest)))
        classes = first_few([f"{count} {name}" for name, count in self.objects.items()], 20)
        lines = [
            f"images: {self.images} of {sizes} pixels, {self.without_objects} without objects",
            f"objects: {self.total} ({classes})",
        ]
        if self.crowds or self.dropped:
            lines.append(
                f"not used: crowd regions {self.crowds}, faulty annotations {self.dropped}"
            )
        if self.below_pixel or self.below_stride:
            lines.append(
                f"smaller than the finest stride ({self.stride} pixels) in the network's input: "
                f"{self.below_stride} objects, {self.below_pixel} of them below a pixel and not "
                "used"
            )
        if self.crowded:
            lines.append(
                f"images with more objects than max_detections = {self.max_detections}: "
                f"{self.crowded}; raise it, or the rest cannot be found"
            )
        return "\n".join(lines)


def summarize(
    data: CocoData, resize: ResizeOptions, stride: int, max_detections: int
) -> DataSummary:
    """Count what a data set holds.

    Args:
        data: the data set.
        resize: size of the network's input.
        stride: finest stride of the network.
        max_detections: largest number of detections per image.
    """
    sizes = [(record.height, record.width) for record in data.images]
    usable = [instances.boxes[~instances.crowd] for instances in data.instances]
    sides = _input_sides(usable, sizes, resize)
    labels = np.concatenate([each.labels[~each.crowd] for each in data.instances])
    counts = np.bincount(labels, minlength=len(data.class_names)).tolist()
    return DataSummary(
        images=len(sizes),
        without_objects=sum(not len(boxes) for boxes in usable),
        smallest=min(sizes, key=lambda size: size[0] * size[1]),
        largest=max(sizes, key=lambda size: size[0] * size[1]),
        objects=dict(zip(data.class_names, counts, strict=True)),
        crowds=sum(int(instances.crowd.sum()) for instances in data.instances),
        dropped=sum(finding.count for finding in data.report.dropped),
        below_pixel=int((sides < MIN_SIDE).any(axis=1).sum()),
        below_stride=int((sides < stride).all(axis=1).sum()),
        stride=stride,
        crowded=sum(len(boxes) > max_detections for boxes in usable),
        max_detections=max_detections,
    )


def check_learnable(data: CocoData, summary: DataSummary) -> None:
    """Reject training data from which nothing can be learned.

    Raises:
        ValueError: if there is no usable object, naming the commonest reason, or all objects are
            smaller than a pixel in the network's input.
    """
    if not summary.total:
        raise ValueError(
            f"{data.annotations}: no usable objects to train on: {commonest_reason(data)}"
        )
    if not any((each.has_mask & ~each.crowd).any() for each in data.instances):
        raise ValueError(
            f"{data.annotations}: none of the {summary.total} objects has a mask, only boxes, from "
            "which masks cannot be learned; draw the outlines of some objects."
        )
    if summary.below_pixel == summary.total:
        raise ValueError(
            f"{data.annotations}: no usable objects to train on: all {summary.total} objects are "
            "smaller than a pixel in the network's input; raise resize.shorter_side and "
            "resize.longer_side, or cut the images into tiles."
        )


def commonest_reason(data: CocoData) -> str:
    """Why a data set has no usable object, and the remedy."""
    crowds = sum(int(instances.crowd.sum()) for instances in data.instances)
    reasons = [(finding.count, f"{finding}; correct the file.") for finding in data.report.dropped]
    if crowds:
        text = (
            f"{crowds} x crowd region (iscrowd 1); use --crowd-as-instances if each is an object."
        )
        reasons.append((crowds, text))
    if not reasons:
        return "its list of annotations is empty; use a file with annotated objects."
    return max(reasons)[1]


def _input_sides(
    boxes: Sequence[Floats], sizes: Sequence[tuple[int, int]], resize: ResizeOptions
) -> Floats:
    """Width and height of all boxes in pixels of the network's input, ``(N, 2)``."""
    if not boxes:
        return np.zeros((0, 2))
    resized = np.array([resized_size(height, width, resize) for height, width in sizes])
    scales = (resized / np.array(sizes))[:, ::-1]  # of x and y
    counts = [len(each) for each in boxes]
    joined = np.concatenate(list(boxes))
    sides: Floats = (joined[:, 2:] - joined[:, :2]) * np.repeat(scales, counts, axis=0)
    return sides
