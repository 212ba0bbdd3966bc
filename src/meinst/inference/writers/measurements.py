"""Measurements of all objects as one table, ``measurements.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from meinst.data.channels import grey_or_rgb, read_channels
from meinst.data.images import ImageError
from meinst.detections import Detections
from meinst.inference.writers.base import PredictedImage
from meinst.inference.writers.spool import SpooledWriter
from meinst.ops.measure import channel_statistics, measure_shapes
from meinst.ops.paste import crop_masks

COLUMNS = (
    *("image_id", "file", "object", "class", "score", "x1", "y1", "x2", "y2"),
    *("area", "centroid_x", "centroid_y", "perimeter", "major_axis", "minor_axis"),
    *("orientation", "solidity", "pixel_size_um", "area_um2", "centroid_x_um", "centroid_y_um"),
    *("perimeter_um", "major_axis_um", "minor_axis_um"),
)
"""The columns before ``mean_1``, ``deviation_1``, ``mean_2``, ... of the channels."""


class CSVWriter(SpooledWriter):
    """One line for each object; the header follows from the image with the most channels."""

    name = "csv"
    file_name = "measurements.csv"

    @classmethod
    @override
    def is_own(cls, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(4096).startswith(",".join(COLUMNS).encode())

    @override
    def add(self, image: PredictedImage) -> None:
        values = _channel_values(image)
        for start, detections in image.chunks():
            text = io.StringIO(newline="")
            table = csv.writer(text, lineterminator="\n")
            for n, row in enumerate(_rows(detections, values, image.pixel_size), start + 1):
                table.writerow((image.id, str(image.source), n, *row))
            self.spool.append(text.getvalue().encode(errors="surrogateescape"))

    @override
    def convert(self, file: BinaryIO) -> None:
        widest = max(map(len, self._lines()), default=0)
        channels = range(1, (widest - len(COLUMNS)) // 2 + 1)
        header = [*COLUMNS, *(f"{kind}_{c}" for c in channels for kind in ("mean", "deviation"))]
        text = _as_text(file)
        table = csv.writer(text, lineterminator="\n")
        table.writerow(header)
        for line in self._lines():
            table.writerow(line + [""] * (len(header) - len(line)))
        text.detach()  # which writes the rest; the file stays open

    def _lines(self) -> Iterator[list[str]]:
        """The lines of the spool, one after the other."""
        with _as_text(self.spool.read(self.done)) as text:
            yield from csv.reader(text)


def _channel_values(image: PredictedImage) -> NDArray[Any] | None:
    """The values of the image as its file stores them, ``(H, W, C)``.

    None if the image was read in windows, so that only a reduced copy is at hand.
    """
    if image.pixels.shape[:2] != image.detections.image_size:
        return None
    deep = image.notes.stretch is not None
    if not deep and not image.is_tiff:
        return grey_or_rgb(image.pixels)
    try:
        return read_channels(image.source)
    except ImageError:
        if deep:
            raise
        return grey_or_rgb(image.pixels)  # 8 bits of a kind that only Pillow reads


def _rows(
    detections: Detections, values: NDArray[Any] | None, pixel_size: float | None
) -> Iterator[list[str]]:
    """The measurements of each detection, from its class on."""
    crops, corners = crop_masks(detections.soft_masks(), detections.boxes, detections.image_size)
    shapes = measure_shapes(crops, corners)
    columns = [
        detections.scores.double().numpy()[:, None],
        detections.boxes.double().numpy(),
        shapes.area[:, None],
        shapes.centroid,
        np.stack((shapes.perimeter, shapes.major_axis, shapes.minor_axis), 1),
        np.stack((shapes.orientation, shapes.solidity), 1),
    ]
    side = np.nan if pixel_size is None else pixel_size
    lengths = np.stack((shapes.perimeter, shapes.major_axis, shapes.minor_axis), 1) * side
    sizes = np.full((len(detections), 1), side)
    columns += [sizes, shapes.area[:, None] * side**2, shapes.centroid * side, lengths]
    if values is not None:
        statistics = np.stack(channel_statistics(crops, corners, values), axis=2)  # (N, C, 2)
        columns.append(statistics.reshape(len(detections), -1))
    table = np.concatenate(columns, axis=1)
    for label, numbers in zip(detections.labels.tolist(), table.tolist(), strict=True):
        yield [detections.class_names[label], *map(_text, numbers)]


def _as_text(file: BinaryIO) -> io.TextIOWrapper:
    """A binary file as text for the module csv; file names may contain any bytes."""
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")


def _text(value: float) -> str:
    """A number with up to ten digits; empty if it is not known."""
    return "" if np.isnan(value) else format(value, ".10g")
