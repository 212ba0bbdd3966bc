"""GeoJSON that QuPath opens: one FeatureCollection for each image, in pixels of the image.

Coordinates are corners of pixels, with the origin at the top left, as in QuPath.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from typing_extensions import override

from meinst.detections import Detections
from meinst.files import open_atomically
from meinst.inference.writers.base import FolderWriter, PredictedImage
from meinst.ops.draw import PALETTE
from meinst.ops.measure import measure_shapes
from meinst.ops.outlines import mask_to_rings
from meinst.ops.paste import crop_masks


class GeoJSONWriter(FolderWriter):
    """``geojson/NAME.geojson``: polygons with holes, class with colour, score and measurements."""

    name = "geojson"
    suffix = ".geojson"

    @override
    def write(self, image: PredictedImage) -> None:
        with open_atomically(self.path(image)) as file:
            file.write(b'{"type": "FeatureCollection", "features": [')
            separator = b"\n"
            for _, detections in image.chunks():
                for feature in features(detections, image.pixel_size):
                    file.write(separator + json.dumps(feature, ensure_ascii=False).encode())
                    separator = b",\n"
            file.write(b"\n]}\n")


def features(detections: Detections, pixel_size: float | None = None) -> Iterator[dict[str, Any]]:
    """The GeoJSON feature of each detection that has pixels.

    Args:
        detections: the detections.
        pixel_size: side of a pixel in micrometres, if known.
    """
    crops, corners = crop_masks(detections.soft_masks(), detections.boxes, detections.image_size)
    shapes = measure_shapes(crops, corners)
    columns = {"Score": detections.scores.double().numpy(), "Solidity": shapes.solidity}
    for name, values, power in (
        ("Area", shapes.area, 2),
        ("Perimeter", shapes.perimeter, 1),
        ("Major axis", shapes.major_axis, 1),
        ("Minor axis", shapes.minor_axis, 1),
    ):
        unit = "px" if pixel_size is None else "µm"
        columns[f"{name} {unit}{'^2' * (power == 2)}"] = values * (pixel_size or 1.0) ** power
    rows = zip(crops, corners.tolist(), detections.labels.tolist(), strict=True)
    for n, (crop, (x, y), label) in enumerate(rows):
        if not crop.any():
            continue
        yield {
            "type": "Feature",
            "geometry": _geometry(mask_to_rings(crop, (x, y))),
            "properties": {
                "objectType": "detection",
                "classification": {
                    "name": detections.class_names[label],
                    "color": list(PALETTE[label % len(PALETTE)]),
                },
                "measurements": {
                    name: round(float(values[n]), 6) for name, values in columns.items()
                },
            },
        }


def _geometry(parts: list[tuple[np.ndarray, list[np.ndarray]]]) -> dict[str, Any]:
    """A Polygon, or a MultiPolygon for a mask of several parts."""
    polygons = [[_closed(ring) for ring in (outer, *holes)] for outer, holes in parts]
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "MultiPolygon", "coordinates": polygons}


def _closed(ring: np.ndarray) -> list[list[int]]:
    """The corners of a ring ``(V, 2)``, with the first one repeated at the end."""
    points: list[list[int]] = ring.tolist()
    return [*points, points[0]]
