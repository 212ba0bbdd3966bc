"""OME-Zarr: label images as multiscale arrays, version 0.4 of the format (Zarr version 2)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from meinst.detections import Detections
from meinst.inference.writers.base import FolderWriter, PredictedImage, Run
from meinst.inference.writers.strips import LabelStrips, reductions, report_depth

_VERSION = "0.4"
_CHUNK = 1024  # pixels
_LARGEST_TOP = 512  # longer side of the smallest level, in pixels
_MOST_PROPERTIES = 65_535  # objects whose class and score are in the metadata
_UNFINISHED = ".meinst-unfinished"


class OMEZarrWriter(FolderWriter):
    """``ome-zarr/NAME.ome.zarr``: a multiscale label image with class and score of its objects.

    It can be moved to ``labels`` of an image in OME-Zarr.
    """

    name = "ome-zarr"
    suffix = ".ome.zarr"

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._unfinished = self.folder / _UNFINISHED
        shutil.rmtree(self._unfinished, ignore_errors=True)  # of a process that was killed

    @override
    def write(self, image: PredictedImage) -> None:
        path = self.path(image)
        report_depth(path, image.detections)
        try:
            _write_labels(self._unfinished, image)
            if path.exists():  # of an earlier run; a folder cannot be replaced at once
                shutil.rmtree(path)
            self._unfinished.rename(path)
        finally:
            shutil.rmtree(self._unfinished, ignore_errors=True)


def _write_labels(path: Path, image: PredictedImage) -> None:
    """Write the levels and their metadata to a new folder."""
    import zarr
    from numcodecs import Zlib

    detections = image.detections
    factors = reductions(detections.image_size, _LARGEST_TOP)
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    for level, factor in enumerate(factors):
        strips = LabelStrips(detections, factor)
        array = group.create_array(
            str(level),
            shape=strips.size,
            chunks=(_CHUNK, _CHUNK),
            dtype=np.dtype(strips.dtype).name,
            compressors=Zlib(),
            fill_value=0,
            chunk_key_encoding={"name": "v2", "separator": "/"},
        )
        for top in range(0, strips.size[0], _CHUNK):
            array[top : top + _CHUNK] = strips[top : top + _CHUNK]
    group.attrs.update(_metadata(image.name, detections, factors, image.pixel_size))


def _metadata(
    name: str, detections: Detections, factors: list[int], pixel_size: float | None
) -> dict[str, Any]:
    """The metadata of a multiscale label image."""
    unit = {} if pixel_size is None else {"unit": "micrometer"}
    side = pixel_size or 1.0
    datasets = [
        {
            "path": str(level),
            "coordinateTransformations": [
                {"type": "scale", "scale": [factor * side] * 2},
                # The centre of the first pixel, from that of the first pixel of the image.
                {"type": "translation", "translation": [(factor - 1) / 2 * side] * 2},
            ],
        }
        for level, factor in enumerate(factors)
    ]
    multiscale = {
        "version": _VERSION,
        "name": name,
        "axes": [{"name": axis, "type": "space", **unit} for axis in "yx"],
        "datasets": datasets,
    }
    label: dict[str, Any] = {"version": _VERSION}
    if 0 < len(detections) <= _MOST_PROPERTIES:
        rows = zip(detections.labels.tolist(), detections.scores.tolist(), strict=True)
        label["properties"] = [
            {"label-value": n, "class": detections.class_names[k], "score": round(score, 6)}
            for n, (k, score) in enumerate(rows, start=1)
        ]
    return {"multiscales": [multiscale], "image-label": label}
