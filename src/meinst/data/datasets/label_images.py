"""Label images: every pixel holds the number of its object, 0 is background.

Cellpose and StarDist use them, with all objects of one class. The label image of ``x.tif`` is
``masks/x.tif`` beside a folder ``images``, or ``x_masks.tif`` in the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco import CocoData
from meinst.data.datasets.assemble import LabelledImage, assemble
from meinst.data.datasets.parts import (
    NO_MATCH,
    DatasetError,
    LayoutMatch,
    Part,
    ReadOptions,
    by_stem,
    list_images,
    name_parts,
    read_label_file,
    reject_unpaired,
)
from meinst.ops.label_runs import label_counts

CLASS_NAME = "object"

_BINARY = "label image with the single value 255; if it is a binary mask, number its objects"

_IMAGE_FOLDERS = ("images", "image", "img", "imgs", "raw")
_MASK_FOLDERS = ("masks", "mask", "labels", "label", "annotations")
_SUFFIX = re.compile(r"_(cp_)?(masks?|labels?)$", re.IGNORECASE)
_IMAGE_SUFFIX = re.compile(r"_(img|image|raw)$", re.IGNORECASE)


def find(root: Path) -> LayoutMatch:
    """Find folders of images with their label images, in the folder and one level below."""
    sources = [path for path in (root, *_folders(root)) if _pairs_in(path) is not None]
    if not sources:
        return NO_MATCH
    if sources[0] == root:
        sources = [root]
    named = name_parts(sources, root)
    return LayoutMatch({name: Part(path, partial(_read, path)) for name, path in named.items()})


def _read(folder: Path, options: ReadOptions) -> CocoData:
    found = _pairs_in(folder)
    assert found is not None
    images, labels = found
    reject_unpaired(
        folder,
        [labels[stem].name for stem in labels if stem not in images],
        "label images without an image",
        "add their images or remove them.",
    )
    reject_unpaired(
        folder,
        [images[stem].name for stem in images if stem not in labels],
        "images without a label image",
        "remove them, or add label images of zeros if they show no objects.",
    )
    pairs = [(images[stem], labels[stem]) for stem in sorted(images)]
    return assemble(_labelled(pairs), (CLASS_NAME,), folder, options)


def _labelled(pairs: Sequence[tuple[Path, Path]]) -> Iterator[LabelledImage]:
    for image, path in pairs:
        values = _read_label_image(path, image)
        height, width = values.shape
        _, counts = label_counts(values)
        masks = [{"size": [height, width], "counts": each} for each in counts]
        notes = [_BINARY] if len(masks) == 1 and values.max() == 255 else []
        yield LabelledImage(image, width, height, [0] * len(masks), masks, path.name, notes=notes)


def _read_label_image(path: Path, image: Path) -> NDArray[Any]:
    values = read_label_file(path, image)
    if values.ndim != 2:
        raise DatasetError(
            f"{path} has {values.shape[-1]} channels, a label image has one; save the number "
            "of each pixel's object in a single channel."
        )
    if values.dtype.kind not in "iub":
        raise DatasetError(
            f"{path} holds {values.dtype} values, a label image holds whole numbers; save it with "
            "8, 16 or 32 bits."
        )
    if values.dtype.kind == "i" and values.min() < 0:
        raise DatasetError(
            f"{path} has the value {values.min()}, labels are 0 (background) or more; correct it."
        )
    return values.astype(np.uint8) if values.dtype.kind == "b" else values


def _pairs_in(folder: Path) -> tuple[dict[str, Path], dict[str, Path]] | None:
    """Images and label images of a folder by their common name, or None if it has none."""
    present = {path.name.lower(): path for path in _folders(folder)}
    images = next((present[name] for name in _IMAGE_FOLDERS if name in present), None)
    masks = next((present[name] for name in _MASK_FOLDERS if name in present), None)
    if images is not None and masks is not None:
        labels = list_images(masks)
        if labels:
            return _by_name(list_images(images), images), _by_name(labels, masks)
        return None
    pictures = list_images(folder, recursive=False)
    labels = [path for path in pictures if _SUFFIX.search(path.stem)]
    if not labels:
        return None
    others = [path for path in pictures if not _SUFFIX.search(path.stem)]
    return _by_name(others, folder), _by_name(labels, folder)


def _by_name(paths: Sequence[Path], folder: Path) -> dict[str, Path]:
    found = by_stem(paths, folder)
    return {_IMAGE_SUFFIX.sub("", _SUFFIX.sub("", stem)): path for stem, path in found.items()}


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
