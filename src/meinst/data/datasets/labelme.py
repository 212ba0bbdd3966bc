"""labelme: one JSON file for each image, beside it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from meinst.data.coco import CocoData, Finding
from meinst.data.datasets.assemble import LabelledImage, assemble
from meinst.data.datasets.parts import (
    NO_MATCH,
    DatasetError,
    LayoutMatch,
    Part,
    ReadOptions,
    list_files,
    list_images,
    name_parts,
    part_name,
    reject_unpaired,
)
from meinst.files import is_file
from meinst.images.readers import check_pixels
from meinst.ops.label_runs import crop_counts

_SNIFFED = 4096  # bytes; labelme writes its shapes before the image
_CIRCLE_POINTS = 64
RECTANGLE = "label file with rectangles, which are used as outlines"
CIRCLE = "label file with circles, which are used as outlines"
GROUPED = "label file with shapes of the same group_id, which are parts of one object"


def find(root: Path) -> LayoutMatch:
    """Find folders with JSON files of labelme, the folder itself or folders named after parts."""
    files = _label_files(root)
    if not files:
        return NO_MATCH
    folders = sorted(
        path for path in root.iterdir() if path.is_dir() and part_name(path.name) is not None
    )
    inside = {path for folder in folders for path in files if path.is_relative_to(folder)}
    parts = [folder for folder in folders if any(path.is_relative_to(folder) for path in files)]
    sources = parts if parts and len(inside) == len(files) else [root]
    named = name_parts(sources, root)
    return LayoutMatch(
        {name: Part(path, partial(_read, path, root)) for name, path in named.items()}
    )


def is_labelme(path: Path) -> bool:
    """Whether a JSON file is one of labelme's, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(_SNIFFED)
    return b'"shapes"' in head and b'"images"' not in head


def _read(folder: Path, root: Path, options: ReadOptions) -> CocoData:
    files = {path: _load(path) for path in _label_files(root)}
    # Names of all parts, so that their labels agree.
    names = sorted({shape["label"] for content in files.values() for shape in content["shapes"]})
    files = {path: content for path, content in files.items() if path.is_relative_to(folder)}
    pictures = {path.with_suffix(""): path for path in reversed(list_images(folder))}
    images = {path: _image_of(path, content, pictures) for path, content in files.items()}
    missing = [path.name for path, image in images.items() if not is_file(image)]
    reject_unpaired(
        folder, missing, "label files whose image does not exist", "put the images beside them."
    )
    used = {image.resolve() for image in images.values()}
    unlabelled = sum(path.resolve() not in used for path in list_images(folder))
    index = {name: label for label, name in enumerate(names)}
    labelled = (_labelled(path, content, images[path], index) for path, content in files.items())
    data = assemble(labelled, names, folder, options)
    if not unlabelled:
        return data
    finding = Finding("images without a label file, not used", unlabelled, (folder.name,), "folder")
    return replace(data, report=replace(data.report, noted=(*data.report.noted, finding)))


def _labelled(
    path: Path,
    content: Mapping[str, Any],
    image: Path,
    index: Mapping[str, int],
) -> LabelledImage:
    size: Any = content.get("imageWidth"), content.get("imageHeight")
    if not all(type(side) is int and side > 0 for side in size):
        raise DatasetError(
            f"{path}: imageWidth and imageHeight are {size[0]!r} and {size[1]!r}, not the size of "
            "the image; save the file again with labelme."
        )
    width, height = size
    notes: list[str] = []
    labels, masks = _objects(content["shapes"], width, height, path, notes)
    found = [index[label] for label in labels]
    return LabelledImage(image, width, height, found, masks, path.name, notes=notes)


def _objects(
    shapes: Sequence[Mapping[str, Any]], width: int, height: int, path: Path, notes: list[str]
) -> tuple[list[str], list[Any]]:
    """Class and mask of each object; shapes of a group are one object."""
    labels: list[str] = []
    masks: list[Any] = []
    groups: dict[tuple[str, Any], int] = {}
    for shape in shapes:
        mask = _mask(shape, width, height, path, notes)
        group = shape["label"], shape.get("group_id")
        if group[1] is not None and group in groups:
            first = masks[groups[group]]
            if isinstance(first, list) and isinstance(mask, list):
                first += mask
                notes.append(GROUPED)
                continue
        if group[1] is not None:
            groups[group] = len(masks)
        labels.append(shape["label"])
        masks.append(mask)
    return labels, masks


def _mask(shape: Mapping[str, Any], width: int, height: int, path: Path, notes: list[str]) -> Any:
    """The mask of a shape as in COCO; None for points and lines, which have no area."""
    kind, points = shape.get("shape_type", "polygon"), shape["points"]
    if kind == "polygon":
        return [[value for point in points for value in point]]
    if kind == "rectangle" and len(points) >= 2:
        notes.append(RECTANGLE)
        (x1, y1), (x2, y2) = points[0], points[-1] if len(points) == 2 else points[2]
        return [[x1, y1, x2, y1, x2, y2, x1, y2]]
    if kind == "circle" and len(points) == 2:
        notes.append(CIRCLE)
        (x, y), (u, v) = points
        angles = np.linspace(0, 2 * math.pi, _CIRCLE_POINTS, endpoint=False)
        rim = np.array([x, y]) + math.hypot(u - x, v - y) * np.stack(
            (np.cos(angles), np.sin(angles)), 1
        )
        return [rim.ravel().tolist()]
    if kind == "mask":
        return _bitmap(shape, width, height, path)
    notes.append(f"label file with shapes of type {kind}, which have no area")
    return None


def _bitmap(shape: Mapping[str, Any], width: int, height: int, path: Path) -> dict[str, Any]:
    """A mask that labelme stores as a PNG file, placed by the first of its two points."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            check_pixels(image.width, image.height)
            inside = np.asarray(image) != 0
        x, y = (round(value) for value in shape["points"][0])
        if inside.ndim != 2:
            raise ValueError("it is not grey")
    except Exception as error:  # Pillow raises almost anything for damaged files
        reason = " ".join(str(error).split())
        raise DatasetError(
            f"{path}: the mask of a {shape['label']!r} cannot be read ({reason}); draw it again."
        ) from error
    return {"size": [height, width], "counts": crop_counts(inside, (x, y), (height, width))}


def _label_files(folder: Path) -> list[Path]:
    return [path for path in list_files(folder) if path.suffix == ".json" and is_labelme(path)]


def _load(path: Path) -> dict[str, Any]:
    """The content of a file without the image, after a check of its structure."""
    try:
        content: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} is not JSON: {reason}; save it again with labelme.") from error
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise DatasetError(f"{path}: shapes is not a list; save the file again with labelme.")
    wrong = next((n for n, shape in enumerate(shapes, 1) if not _is_shape(shape)), None)
    if wrong is not None:
        raise DatasetError(
            f"{path}: shape {wrong} has no label, no points or no valid group_id; save the file "
            "again with labelme."
        )
    return {key: value for key, value in content.items() if key != "imageData"}


def _is_shape(shape: Any) -> bool:
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str):
        return False
    if not isinstance(shape.get("group_id"), (int, float, str, type(None))):
        return False
    points = shape.get("points")
    return isinstance(points, list) and all(
        isinstance(point, list)
        and len(point) == 2
        and all(type(value) in (int, float) and math.isfinite(value) for value in point)
        for point in points
    )


def _image_of(path: Path, content: Mapping[str, Any], pictures: Mapping[Path, Path]) -> Path:
    """The image of a label file: the one it names, or else the one of the same name beside it."""
    name = str(content.get("imagePath") or "").replace("\\", "/")
    for candidate in (path.parent / name, path.parent / name.rpartition("/")[2]):
        if name and is_file(candidate):
            return candidate
    return pictures.get(path.with_suffix(""), path.parent / name)
