"""The report on a data set: one HTML file with all pictures, which needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from meinst.data.coco import CocoData
from meinst.data.images import ImageError, load_image
from meinst.data.shapes import Bitmap, Instances
from meinst.data.writers.masks import pixels
from meinst.data_tools.inspect import STRIDE, Inspection
from meinst.files import write_atomically
from meinst.html_page import render_page
from meinst.ops.draw import PALETTE, blend_masks

_TEMPLATE = "report.html.j2"
_PICTURES = 12  # of each part
_SIDE = 340  # pixels


def write_report(
    path: Path, title: str, inspection: Inspection, parts: Mapping[str, CocoData]
) -> None:
    """Write what an inspection found, with some pictures of each part and their masks.

    Args:
        path: the HTML file, written atomically.
        title: shown at the top: the data set and its layout.
        inspection: the figures.
        parts: the data that were inspected.

    Raises:
        OSError: if the file cannot be written.
    """
    page = render_page(
        "meinst.data_tools",
        _TEMPLATE,
        title=title,
        found=inspection,
        classes=_class_rows(inspection),
        pictures={name: list(_pictures(data)) for name, data in parts.items()},
        stride=STRIDE,
    )
    write_atomically(path, page)


def _class_rows(inspection: Inspection) -> list[tuple[str, dict[str, int], float]]:
    """Classes with their number of objects in each part and their share of the largest class."""
    parts = inspection.parts
    names = next(iter(parts.values())).objects
    rows = [
        (name, {part: figures.objects[name] for part, figures in parts.items()}) for name in names
    ]
    most = max((sum(counts.values()) for _, counts in rows), default=0) or 1
    rows.sort(key=lambda row: -sum(row[1].values()))
    return [(name, counts, sum(counts.values()) / most) for name, counts in rows]


def _pictures(data: CocoData) -> Iterator[tuple[str, str]]:
    """Caption and JPEG file, in base64, of evenly spaced images with their masks."""
    for index in np.unique(np.linspace(0, len(data) - 1, _PICTURES).round().astype(int)).tolist():
        record = data.images[index]
        assert record.path is not None
        try:
            image = load_image(record.path, (record.width, record.height)).copy()
        except ImageError:
            continue
        _draw(image, data.instances[index], len(data.class_names) > 1)
        tile = Image.fromarray(image)
        tile.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        tile.save(buffer, format="JPEG", quality=85)
        count = len(data.instances[index])
        caption = f"{record.path.name}: {count} object{'' if count == 1 else 's'}"
        yield caption, base64.b64encode(buffer.getvalue()).decode("ascii")


def _draw(image: np.ndarray, instances: Instances, by_class: bool) -> None:
    """Draw masks over an image ``(H, W, 3)``, in the colours of predictions."""
    height, width = image.shape[:2]
    crops, corners = [], []
    for shape, box in zip(instances.shapes, instances.boxes, strict=True):
        if isinstance(shape, Bitmap):
            crops.append(shape.array().astype(bool))
            corners.append(shape.offset)
            continue
        x1, y1 = np.floor(box[:2]).astype(int).tolist()
        x2, y2 = np.ceil(box[2:]).astype(int).tolist()
        part = tuple(outline - np.tile([x1, y1], len(outline) // 2) for outline in shape)
        crops.append(pixels(part, min(y2, height) - y1, min(x2, width) - x1))
        corners.append((x1, y1))
    numbers = instances.labels if by_class else np.arange(len(instances))
    colors = [PALETTE[number % len(PALETTE)] for number in numbers.tolist()]
    blend_masks(image, crops, np.array(corners).reshape(-1, 2), colors, 0.35)
