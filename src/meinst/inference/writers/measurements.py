"""Measurements of all objects as one table, ``measurements.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from meinst.data.channels import ChannelRegions, grey_or_rgb, read_channels
from meinst.data.frames import PictureReader
from meinst.data.images import ImageError, Picture, file_error
from meinst.detections import Detections
from meinst.images.frames import file_of
from meinst.images.intensity import InputOptions
from meinst.images.readers import UnsupportedImageError
from meinst.images.sources import to_file
from meinst.images.tiff_levels import DamagedRegionError
from meinst.inference.writers.base import PredictedImage
from meinst.inference.writers.spool import SpooledWriter
from meinst.ops.measure import channel_statistics, measure_shapes
from meinst.ops.paste import crop_masks

Crops: TypeAlias = Sequence[NDArray[np.bool_]]
Statistics: TypeAlias = Callable[[Crops, NDArray[np.int64]], NDArray[Any]]
"""From masks and their first pixels to mean and deviation of each channel, ``(N, C, 2)``."""

_CELL = 1024  # side of the squares whose objects are measured together, in pixels
_MOST_PIXELS = 2**24  # of an object that is measured in an image that was read in windows

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
        with _statistics(image) as measure:
            for start, detections in image.chunks():
                text = io.StringIO(newline="")
                table = csv.writer(text, lineterminator="\n")
                for n, row in enumerate(_rows(detections, measure, image.pixel_size), start + 1):
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


@contextmanager
def _statistics(image: PredictedImage) -> Iterator[Statistics]:
    """What measures the channels of an image inside masks.

    The values are those of its file; an image that was read in windows is read in parts again.
    """
    with ExitStack() as stack:
        measure: Statistics | None = None
        if image.is_tiff and image.pixels.shape[:2] != image.detections.image_size:
            try:
                regions = stack.enter_context(ChannelRegions(image.source))
                measure = partial(_of_regions, regions)
            except UnsupportedImageError:  # Pillow has read it as a whole
                pass
            except Exception as error:  # tifffile raises almost anything for damaged files
                raise file_error(error, to_file(file_of(image.source))) from error
        yield measure or partial(_of_values, _channel_values(image))


def _channel_values(image: PredictedImage) -> NDArray[Any]:
    """The values of the image as its file stores them, ``(H, W, C)``."""
    deep = image.notes.stretch is not None
    if deep or image.is_tiff:
        try:
            return read_channels(image.source)
        except ImageError:
            if deep:
                raise
    # 8 bits, among them kinds of TIFF that only Pillow reads.
    if image.pixels.shape[:2] == image.detections.image_size:
        return grey_or_rgb(image.pixels)
    with closing(PictureReader(InputOptions(), lambda *_: True)) as reader:
        picture = reader.read(image.source)
    assert isinstance(picture, Picture)
    return grey_or_rgb(picture.pixels)


def _of_values(values: NDArray[Any], crops: Crops, corners: NDArray[np.int64]) -> NDArray[Any]:
    """Mean and deviation of each channel inside masks, ``(N, C, 2)``."""
    return np.stack(channel_statistics(crops, corners, values), axis=2)


def _of_regions(regions: ChannelRegions, crops: Crops, corners: NDArray[np.int64]) -> NDArray[Any]:
    """As :func:`_of_values`, reading the surroundings of some objects after the other.

    Objects that are too large or damaged have no values.
    """
    sizes = np.array([crop.shape for crop in crops], np.int64).reshape(-1, 2)[:, ::-1]
    cells = corners // _CELL
    found = np.full((len(crops), regions.channels, 2), np.nan)
    measured = (sizes.prod(1) > 0) & (sizes.prod(1) <= _MOST_PIXELS)
    groups = [
        np.flatnonzero(measured & (cells == cell).all(1))
        for cell in np.unique(cells[measured], axis=0)
    ]
    while groups:
        chosen = groups.pop()
        places, some = corners[chosen], [crops[n] for n in chosen.tolist()]
        (x1, y1), (x2, y2) = places.min(0).tolist(), (places + sizes[chosen]).max(0).tolist()
        if (x2 - x1) * (y2 - y1) > _MOST_PIXELS:
            groups += np.split(chosen, len(chosen))
            continue
        try:
            values = regions.read((x1, y1, x2, y2))
            found[chosen] = _of_values(values, some, places - (x1, y1))
        except DamagedRegionError:
            groups += np.split(chosen, len(chosen)) if len(chosen) > 1 else []
    return found


def _rows(
    detections: Detections, measure: Statistics, pixel_size: float | None
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
    columns.append(measure(crops, corners).reshape(len(detections), -1))
    table = np.concatenate(columns, axis=1)
    for label, numbers in zip(detections.labels.tolist(), table.tolist(), strict=True):
        yield [detections.class_names[label], *map(_text, numbers)]


def _as_text(file: BinaryIO) -> io.TextIOWrapper:
    """A binary file as text for the module csv; file names may contain any bytes."""
    return io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")


def _text(value: float) -> str:
    """A number with up to ten digits; empty if it is not known."""
    return "" if np.isnan(value) else format(value, ".10g")
