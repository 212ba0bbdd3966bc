"""ImageJ's regions of interest: a zip file for each image, which the ROI Manager opens."""

from __future__ import annotations

import re
import zipfile

import numpy as np
from typing_extensions import override

from meinst.files import open_atomically
from meinst.inference.writers.base import FolderWriter, PredictedImage
from meinst.ops.draw import PALETTE

_OPAQUE = 255
_MODE = 0o100644  # a file that its owner may write and others may read
_MOVE, _LINE, _CLOSE = 0, 1, 4  # segments of a composite ROI, as in java.awt.geom.PathIterator
_LONGEST_NAME = 60  # characters of a class name in the name of a ROI


class ImageJWriter(FolderWriter):
    """``imagej/NAME.zip``: polygons, and composite ROIs for masks with holes or several parts."""

    name = "imagej"
    suffix = ".zip"

    @override
    def write(self, image: PredictedImage) -> None:
        with (
            open_atomically(self.path(image)) as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
        ):
            for start, detections in image.chunks():
                labels = [detections.class_names[label] for label in detections.labels.tolist()]
                scores = detections.scores.tolist()
                rows = zip(detections.rings(), detections.labels.tolist(), strict=True)
                for n, (parts, label) in enumerate(rows):
                    if not parts:
                        continue
                    word = re.sub(r"[^\w.-]+", "_", labels[n])[:_LONGEST_NAME]
                    name = f"{start + n + 1:06}-{word}"
                    color = PALETTE[label % len(PALETTE)]
                    properties = {"class": labels[n], "score": f"{scores[n]:.6f}"}
                    entry = zipfile.ZipInfo(f"{name}.roi")  # dated 1980, so that files are equal
                    entry.external_attr = _MODE << 16
                    content = roi_bytes(parts, name, color, properties)
                    archive.writestr(entry, content, zipfile.ZIP_DEFLATED)


def roi_bytes(
    parts: list[tuple[np.ndarray, list[np.ndarray]]],
    name: str,
    color: tuple[int, int, int],
    properties: dict[str, str],
) -> bytes:
    """A region of interest in ImageJ's format.

    Args:
        parts: outer ring and rings of the holes of each part, ``(V, 2)`` corners of pixels.
        name: its name.
        color: colour of its outline.
        properties: its properties.
    """
    from roifile import ROI_TYPE, ImagejRoi

    if len(parts) == 1 and not parts[0][1]:
        roi = ImagejRoi.frompoints(parts[0][0], name=name)
        roi.roitype = ROI_TYPE.POLYGON
    else:
        rings = [ring for outer, holes in parts for ring in (outer, *holes)]
        corners = np.concatenate(rings)
        low, high = corners.min(0).tolist(), corners.max(0).tolist()
        segments = np.concatenate([_segments(ring) for ring in rings])
        roi = ImagejRoi()
        roi.version = 228
        roi.roitype = ROI_TYPE.RECT
        roi.left, roi.top = low
        roi.right, roi.bottom = high
        roi.multi_coordinates = segments
        roi.shape_roi_size = len(segments)
        roi.name = name
    roi.stroke_color = bytes((_OPAQUE, *color))
    roi.props = "".join(f"{key}: {' '.join(value.split())}\n" for key, value in properties.items())
    content: bytes = roi.tobytes()
    return content


def _segments(ring: np.ndarray) -> np.ndarray:
    """The path around a ring: a move, lines, and the end."""
    kinds = np.full((len(ring), 1), _LINE)
    kinds[0] = _MOVE
    steps = np.concatenate((kinds, ring), axis=1).ravel()
    path: np.ndarray = np.append(steps, _CLOSE).astype(np.float32)
    return path
