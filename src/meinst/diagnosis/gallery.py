"""Pictures of a diagnosis: the worst ones, truth beside prediction, and suspicious labels."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meinst.data.images import ImageError, read_image
from meinst.data.shapes import bitmap_from_counts, read_counts
from meinst.diagnosis.colors import COLORS
from meinst.diagnosis.diagnose import Diagnosis
from meinst.diagnosis.findings import PictureSummary
from meinst.diagnosis.kinds import Kind
from meinst.diagnosis.overlaps import mask_areas, shape_rle
from meinst.ops.draw import Color, blend_masks

Pixels = NDArray[np.uint8]

_SIDE = 520  # pixels of a picture in the report
_CROP = 220  # pixels of a picture of one label
_AROUND = 0.6  # margin around a label, as a fraction of its longer side
_SMALLEST_CROP = 48  # pixels of the original
_QUALITY = 82
_ALPHA = 0.35  # opacity of masks in whole pictures


@dataclass(frozen=True)
class Drawing:
    """A JPEG file in base64, and its alternative text."""

    base64: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Pair:
    """A picture with its objects and with its detections."""

    summary: PictureSummary
    truth: Drawing
    prediction: Drawing
    kinds: dict[Kind, int]


@dataclass(frozen=True)
class Suspect:
    """A label, or a missing one, that a person should look at.

    Attributes:
        drawing: the part of the picture around it.
        name: class of the detection, or of the object if there is none.
        score: of the detection; None if there is none.
        annotation_id: of the object; None if there is none.
        annotated: class of the object, where it differs from that of the detection.
        image_id: of the picture.
        file: name of its file.
    """

    drawing: Drawing
    name: str
    score: float | None
    annotation_id: int | None
    annotated: str | None
    image_id: int
    file: str | None


@dataclass(frozen=True)
class Mark:
    """A mask to draw, and its colour."""

    rle: dict[str, str]
    color: Color


class Gallery:
    """Draws pictures of a diagnosis; at most one picture is in memory.

    Args:
        diagnosis: the diagnosis.
    """

    def __init__(self, diagnosis: Diagnosis) -> None:
        self.diagnosis = diagnosis
        self._index = {record.id: n for n, record in enumerate(diagnosis.data.images)}
        self._object_kinds = diagnosis.assignments.object_kinds()

    def worst(self, count: int) -> list[Pair]:
        """The pictures with most errors, without those that have none or cannot be read."""
        pairs: list[Pair] = []
        for summary in self.diagnosis.pictures:
            if len(pairs) == count or not summary.errors:
                break
            index = self._index[summary.image_id]
            pixels = self._read(index)
            if pixels is None:
                continue
            detections = self._detections(index)
            kinds = self.diagnosis.assignments.kinds[0, detections]
            alt = summary.file or f"image {summary.image_id}"
            found = {Kind(kind): int((kinds == kind).sum()) for kind in np.unique(kinds)}
            hidden = self._object_kinds[self._objects(index)] == Kind.MISSED
            pairs.append(
                Pair(
                    summary,
                    _drawing(_draw(pixels, self._truth(index)), _SIDE, f"objects in {alt}"),
                    _drawing(_draw(pixels, self._predicted(index)), _SIDE, f"detections in {alt}"),
                    found | ({Kind.MISSED: int(hidden.sum())} if hidden.any() else {}),
                )
            )
        return pairs

    def unlabelled(self, count: int) -> list[Suspect]:
        """The false detections of highest score: objects that may lack a label.

        Of each picture only the first is taken, here and in the other lists.
        """
        return self._suspects(Kind.FALSE, count)

    def contradicted(self, count: int) -> list[Suspect]:
        """The detections of highest score whose object has another class."""
        return self._suspects(Kind.WRONG_CLASS, count)

    def unseen(self, count: int) -> list[Suspect]:
        """The largest objects that no detection of any class and score overlaps."""
        table = self.diagnosis.assignments
        objects = np.flatnonzero(~table.touched & ~table.crowd)
        objects = objects[np.argsort(-table.object_areas[objects], kind="stable")]
        suspects = []
        for g, pixels in self._first_of_pictures(objects, table.object_images, count):
            index = int(table.object_images[g])
            mark = Mark(self._object_rle(g), COLORS[Kind.MISSED])
            part = _crop(_draw(pixels, [*self._predicted(index), mark], 0.0), mark)
            suspects.append(self._suspect(part, index, None, g))
        return suspects

    def _suspects(self, kind: Kind, count: int) -> list[Suspect]:
        """The detections of highest score of a kind, with their objects."""
        table = self.diagnosis.assignments
        chosen = np.flatnonzero((table.kinds[0] == kind) & table.confident)
        suspects = []
        for n, pixels in self._first_of_pictures(chosen, table.images, count):
            index, target = int(table.images[n]), int(table.targets[0, n])
            mark = Mark(self._detection_rle(n), COLORS[kind])
            truth = [replace(each, color=COLORS[Kind.CORRECT]) for each in self._truth(index)]
            part = _crop(_draw(pixels, [*truth, mark], 0.0), mark)
            suspects.append(self._suspect(part, index, n, target if target >= 0 else None))
        return suspects

    def _first_of_pictures(
        self, chosen: NDArray[np.int64], images: NDArray[np.int64], count: int
    ) -> Iterator[tuple[int, Pixels]]:
        """The first of each picture that can be read, at most ``count``, with its pixels."""
        _, first = np.unique(images[chosen], return_index=True)
        readable = (
            (n, pixels)
            for n in chosen[np.sort(first)].tolist()
            if (pixels := self._read(int(images[n]))) is not None
        )
        return islice(readable, count)

    def _suspect(
        self, part: Pixels, index: int, detection: int | None, target: int | None
    ) -> Suspect:
        table, data = self.diagnosis.assignments, self.diagnosis.data
        record = data.images[index]
        annotated = None if target is None else table.class_names[table.object_labels[target]]
        name = annotated if detection is None else table.class_names[table.labels[detection]]
        assert name is not None
        row = None if target is None else int(table.object_rows[target])
        return Suspect(
            drawing=_drawing(part, _CROP, f"{name} in image {record.id}"),
            name=name,
            score=None if detection is None else float(table.scores[detection]),
            annotation_id=None if row is None else int(data.fields[index].ids[row]),
            annotated=annotated if annotated != name else None,
            image_id=record.id,
            file=None if record.path is None else record.path.name,
        )

    def _read(self, index: int) -> Pixels | None:
        """The pixels of a picture; None if it cannot be read."""
        record = self.diagnosis.data.images[index]
        if record.path is None:
            return None
        try:
            size = (record.width, record.height)
            return read_image(record.path, self.diagnosis.input_options, size).pixels
        except ImageError:
            return None

    def _objects(self, index: int) -> NDArray[np.int64]:
        """The objects of a picture, without crowds."""
        table = self.diagnosis.assignments
        return np.flatnonzero((table.object_images == index) & ~table.crowd)

    def _detections(self, index: int) -> NDArray[np.int64]:
        """The detections of a picture with at least the working score."""
        table = self.diagnosis.assignments
        return np.flatnonzero((table.images == index) & table.confident)

    def _truth(self, index: int) -> list[Mark]:
        """The objects of a picture, coloured by what became of them."""
        return [
            Mark(self._object_rle(g), COLORS[Kind(self._object_kinds[g])])
            for g in self._objects(index).tolist()
        ]

    def _predicted(self, index: int) -> list[Mark]:
        """The detections of a picture, coloured by their kind."""
        kinds = self.diagnosis.assignments.kinds[0]
        return [
            Mark(self._detection_rle(n), COLORS[Kind(kinds[n])])
            for n in self._detections(index).tolist()
        ]

    def _object_rle(self, g: int) -> dict[str, str]:
        table, data = self.diagnosis.assignments, self.diagnosis.data
        index = int(table.object_images[g])
        record = data.images[index]
        shape = data.instances[index].shapes[table.object_rows[g]]
        rle = shape_rle(shape, (record.height, record.width))
        return {"size": rle["size"], "counts": rle["counts"].decode()}

    def _detection_rle(self, n: int) -> dict[str, str]:
        table = self.diagnosis.assignments
        rle: dict[str, str] = self.diagnosis.results[table.results[n]]["segmentation"]
        return rle


def _draw(pixels: Pixels, marks: Sequence[Mark], alpha: float = _ALPHA) -> Pixels:
    """A copy of a picture with masks drawn over it, large ones first; one is decoded at a time."""
    drawn = pixels.copy()
    for k in np.argsort(-mask_areas([mark.rle for mark in marks]), kind="stable"):
        crop, corner = _decode(marks[k], pixels.shape[0])
        blend_masks(drawn, [crop], corner[None], [marks[k].color], alpha)
    return drawn


def _decode(mark: Mark, height: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """The mask inside its box, and the corner ``x y`` of the box."""
    counts = read_counts(mark.rle["counts"])
    bitmap = bitmap_from_counts(counts, height, int(counts.sum()) // height)
    if bitmap is None:
        return np.zeros((0, 0), dtype=np.bool_), np.zeros(2, dtype=np.int64)
    return bitmap.array() > 0, np.array(bitmap.offset)


def _crop(pixels: Pixels, mark: Mark) -> Pixels:
    """The part of a picture around a mask, which is not drawn."""
    crop, corner = _decode(mark, pixels.shape[0])
    extent = np.array(crop.shape[::-1])
    side = max(int(extent.max() * (1 + 2 * _AROUND)), _SMALLEST_CROP)
    height, width = pixels.shape[:2]
    left, top = (corner + extent // 2 - side // 2).tolist()
    left, top = min(max(left, 0), max(width - side, 0)), min(max(top, 0), max(height - side, 0))
    return np.ascontiguousarray(pixels[top : top + side, left : left + side])


def _drawing(pixels: Pixels, side: int, alt: str) -> Drawing:
    """A picture as a JPEG file, shrunk to a longer side, or enlarged if it is much smaller."""
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    if scale < 1 or scale >= 1.5:
        image = image.resize(
            size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
        )
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_QUALITY)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Drawing(text, alt, image.width, image.height)
