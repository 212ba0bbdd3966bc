"""Figures of a data set: its faults, objects, doubles, and the input size that they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from meinst.codec_tools.evaluate import evaluate_codec
from meinst.codec_tools.fit import fit_codec
from meinst.data.coco import CocoData
from meinst.data.datasets.split import group_by_content
from meinst.data.image_check import unusable_images
from meinst.data.shapes import Floats
from meinst.data.transforms import ResizeOptions, resized_size
from meinst.options import first_few

INPUT_SIDES = (320, 416, 512, 640, 800, 1024, 1333)
"""Longer sides of the network's input that are compared, in pixels."""

STRIDE = 8
"""Finest stride of the shipped models, in pixels of the input."""

TOO_SMALL = 0.05
"""Share of objects below the finest stride that an input size may have."""

_CEILING_MASKS = 20_000  # masks on which the codec is measured at most
_FEWEST_MASKS = 600  # ten for each component; fewer are encoded too well to tell anything


@dataclass(frozen=True)
class PartFigures:
    """Figures of one part.

    Attributes:
        images: number of images.
        without_objects: images without objects.
        objects: number of objects of each class, by name.
        crowds: number of crowd regions.
        per_image: median and largest number of objects in an image.
        sides: smallest and largest width and height of an image, ``w x h``.
        faults: what was dropped, with the file and the remedy.
        notes: what was repaired or is unusual.
        unusable: image files that are missing, damaged or of another size than declared.
    """

    images: int
    without_objects: int
    objects: dict[str, int]
    crowds: int
    per_image: tuple[float, int]
    sides: tuple[str, str]
    faults: tuple[str, ...]
    notes: tuple[str, ...]
    unusable: tuple[str, ...]


@dataclass(frozen=True)
class InputSize:
    """How objects appear in the network's input.

    Attributes:
        side: longer side of the input in pixels.
        median: median side of the objects (root of the box's area) in pixels of the input.
        below_stride: share of objects whose side is below the finest stride.
        below_two: share below twice the finest stride.
        cost: time for an image relative to 416 pixels, by the number of pixels.
    """

    side: int
    median: float
    below_stride: float
    below_two: float
    cost: float


@dataclass(frozen=True)
class Inspection:
    """Result of :func:`inspect_dataset`.

    Attributes:
        parts: figures by name of the part.
        input_sizes: how objects appear at each input size.
        doubles: groups of files of the same content, within a part.
        leaks: groups of files of the same content in several parts.
        ceiling: mask AP that a codec of 60 components leaves to a detector; None if there are too
            few masks.
        advice: what follows, in sentences.
    """

    parts: dict[str, PartFigures]
    input_sizes: tuple[InputSize, ...]
    doubles: tuple[tuple[str, ...], ...]
    leaks: tuple[tuple[str, ...], ...]
    ceiling: float | None
    advice: tuple[str, ...]

    @property
    def faulty(self) -> bool:
        """Whether anything should be corrected before training."""
        parts = self.parts.values()
        return bool(self.leaks) or any(part.faults or part.unusable for part in parts)


def inspect_dataset(
    parts: Mapping[str, CocoData], on_image: Callable[[], None] = lambda: None
) -> Inspection:
    """Examine a data set with its image files.

    Args:
        parts: data by name of the part.
        on_image: called for each image whose file has been checked.
    """
    figures = {}
    for name, data in parts.items():
        figures[name] = _part_figures(data)
        for _ in data.images:
            on_image()
    sizes = _input_sizes(parts)
    doubles, leaks = _doubles(parts)
    ceiling = _ceiling(parts)
    advice = tuple(_advice(figures, sizes, leaks))
    return Inspection(figures, sizes, doubles, leaks, ceiling, advice)


def _part_figures(data: CocoData) -> PartFigures:
    usable = [int((~instances.crowd).sum()) for instances in data.instances]
    labels = np.concatenate([each.labels[~each.crowd] for each in data.instances])
    counts = np.bincount(labels, minlength=len(data.class_names)).tolist()
    sizes = sorted({(record.width, record.height) for record in data.images}, key=np.prod)
    report = data.report
    return PartFigures(
        images=len(data),
        without_objects=usable.count(0),
        objects=dict(zip(data.class_names, counts, strict=True)),
        crowds=sum(int(instances.crowd.sum()) for instances in data.instances),
        per_image=(float(np.median(usable)), max(usable)),
        sides=("{} x {}".format(*sizes[0]), "{} x {}".format(*sizes[-1])),
        faults=tuple(f"{finding}; correct the mask or remove it" for finding in report.dropped),
        notes=tuple(map(str, (*report.repaired, *report.noted))),
        unusable=tuple(map(str, unusable_images(data))),
    )


def _object_sides(parts: Mapping[str, CocoData], longer_side: int) -> Floats:
    """Side of every object, root of its box's area, with images of a given longer side."""
    resize = ResizeOptions(longer_side, longer_side)
    sides = []
    for data in parts.values():
        for record, instances in zip(data.images, data.instances, strict=True):
            boxes = instances.boxes[~instances.crowd]
            height, _ = resized_size(record.height, record.width, resize)
            area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            sides.append(np.sqrt(area) * height / record.height)
    return np.concatenate(sides) if sides else np.zeros(0)


def _input_sizes(parts: Mapping[str, CocoData]) -> tuple[InputSize, ...]:
    found = []
    for longer in INPUT_SIDES:
        sides = _object_sides(parts, longer)
        if len(sides):
            found.append(
                InputSize(
                    longer,
                    float(np.median(sides)),
                    float((sides < STRIDE).mean()),
                    float((sides < 2 * STRIDE).mean()),
                    (longer / 416) ** 2,
                )
            )
    return tuple(found)


def _doubles(
    parts: Mapping[str, CocoData],
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, ...], ...]]:
    """Groups of identical files within a part, and across parts."""
    files: list[tuple[str, Path]] = [
        (name, record.path)
        for name, data in parts.items()
        for record in data.images
        if record.path is not None
    ]
    doubles: list[tuple[str, ...]] = []
    leaks: list[tuple[str, ...]] = []
    for group in group_by_content([path for _, path in files]):
        if len(group) > 1:
            names = {files[i][0] for i in group}
            shown = tuple(str(files[i][1]) for i in group)
            (leaks if len(names) > 1 else doubles).append(shown)
    return tuple(doubles), tuple(leaks)


def _ceiling(parts: Mapping[str, CocoData]) -> float | None:
    """AP of the decoded masks of a codec that is fitted on them, at most some thousand images."""
    chosen = []
    for data in parts.values():
        total = sum(map(len, data.instances))
        step = max(1, -(-total * len(parts) // _CEILING_MASKS))
        chosen.append(data.select(range(0, len(data), step)))
    if sum(len(each) for data in chosen for each in data.instances) < _FEWEST_MASKS:
        return None
    try:
        codec = fit_codec(chosen)
    except ValueError:  # all masks are the same
        return None
    return evaluate_codec(codec, chosen).ap_ceiling.ap


def _advice(
    figures: Mapping[str, PartFigures],
    sizes: tuple[InputSize, ...],
    leaks: tuple[tuple[str, ...], ...],
) -> list[str]:
    advice = []
    fit = next((size for size in sizes if size.below_stride <= TOO_SMALL), None)
    if fit is not None:
        advice.append(
            f"Input of {fit.side} pixels: {fit.below_stride:.1%} of the objects are then smaller "
            f"than the finest stride of {STRIDE} pixels, half of them larger than "
            f"{fit.median:.0f} pixels (resize.shorter_side and resize.longer_side)."
        )
    elif sizes:
        advice.append(
            f"Even with {sizes[-1].side} pixels, {sizes[-1].below_stride:.1%} of the objects are "
            f"smaller than the finest stride of {STRIDE} pixels: cut the images into tiles, or use "
            "a finest stride of 4 (model.strides, model.backbone_levels)."
        )
    if leaks:
        advice.append(
            f"{len(leaks)} images are in several parts, for example {first_few(list(leaks[0]), 2)}:"
            " remove them from one, or divide the data anew with `meinst data split`."
        )
    for name, part in figures.items():
        if part.unusable:
            advice.append(
                f"{len(part.unusable)} images of {name} cannot be used: replace or remove them."
            )
    totals = {
        label: sum(part.objects.get(label, 0) for part in figures.values())
        for label in dict.fromkeys(label for part in figures.values() for label in part.objects)
    }
    rare = [label for label, count in totals.items() if 0 < count < 20]
    if rare:
        advice.append(
            f"Fewer than 20 objects of {first_few(rare, 5)}: label more, or expect them to be "
            "missed."
        )
    none = [label for label, count in totals.items() if not count]
    if none:
        advice.append(f"No objects of {first_few(none, 5)}: label some, or remove the class.")
    return advice
