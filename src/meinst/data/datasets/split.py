"""Divide a data set into training and validation, so that doubles of a picture stay together."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco import CocoData
from meinst.data.datasets.parts import DatasetError
from meinst.files import write_atomically

SHARE = 0.2
"""Share of the images that become the validation part."""

SPLIT = "split.json"
"""Name of the file in a run's folder that lists the images of both parts."""

_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Split:
    """Which images are for training and which for validation, as indices into a data set."""

    train: tuple[int, ...]
    val: tuple[int, ...]


def split(data: CocoData, *, share: float = SHARE, seed: int = 0) -> Split:
    """Draw a validation part.

    Files of the same content stay together. An image is left in the training part if it shows the
    last object of a class there, so no class is missing from it. The same images, by content of
    folder and seed, give the same parts.

    Args:
        data: the data set, with image files.
        share: share of the images that become the validation part; at least one does.
        seed: seed of the draw.

    Raises:
        DatasetError: if there are fewer than two different images, or no image can be left out of
            training because each is the only one of a class.
    """
    groups = group_by_content([record.path for record in data.images if record.path is not None])
    if len(groups) < 2:
        raise DatasetError(
            f"{data.annotations}: {len(data)} images, {len(groups)} of them different, cannot be "
            "divided into training and validation; add images, or give a validation part."
        )
    chosen = _draw(groups, _objects(data, groups), max(1, round(share * len(data))), seed)
    if not chosen:
        raise DatasetError(
            f"{data.annotations}: every image is the only one of a class, so none can be left out "
            "of training; add images of each class, or give a validation part."
        )
    val = set(chosen)
    return Split(tuple(i for i in range(len(data)) if i not in val), tuple(sorted(val)))


def _objects(data: CocoData, groups: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Number of objects of each class in each group of images: ``(groups, C)``."""
    counts = np.zeros((len(groups), len(data.class_names)), dtype=np.int64)
    for row, group in zip(counts, groups, strict=True):
        for index in group:
            instances = data.instances[index]
            np.add.at(row, instances.labels[~instances.crowd], 1)
    return counts


def _draw(
    groups: Sequence[Sequence[int]], objects: NDArray[np.int64], count: int, seed: int
) -> list[int]:
    """Draw groups until there are ``count`` images, without the last object of any class."""
    left = objects.sum(axis=0)  # in the training part
    chosen: list[int] = []
    for number in np.random.default_rng(seed).permutation(len(groups)).tolist():
        last = (objects[number] > 0) & (left == objects[number])
        too_many = bool(chosen) and len(chosen) + len(groups[number]) > count
        if too_many or last.any():
            continue
        chosen += groups[number]
        left = left - objects[number]
        if len(chosen) >= count:
            break
    return chosen


def group_by_content(paths: Sequence[Path]) -> list[list[int]]:
    """Group files of the same bytes, in the order of their first file.

    Only files of equal size are read.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        by_size[path.stat().st_size if path.is_file() else -index - 1].append(index)
    groups: list[list[int]] = []
    for same in by_size.values():
        if len(same) == 1:
            groups.append(same)
            continue
        by_hash: dict[str, list[int]] = defaultdict(list)
        for index in same:
            by_hash[_hash(paths[index])].append(index)
        groups += by_hash.values()
    return sorted(groups)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_split(
    path: Path, data: CocoData, parts: Split, *, share: float = SHARE, seed: int = 0
) -> None:
    """Write down which images are in which part (JSON)."""
    names = [str(record.path) for record in data.images]
    content = {
        "data": str(data.annotations),
        "share": share,
        "seed": seed,
        "train": [names[i] for i in parts.train],
        "val": [names[i] for i in parts.val],
    }
    write_atomically(path, json.dumps(content, indent=2).encode())


def read_split(path: Path, data: CocoData) -> Split:
    """Read which images are in which part, written by :func:`write_split`.

    Raises:
        DatasetError: if the file is damaged, or the images are not the same as when it was written.
    """
    try:
        content = json.loads(path.read_bytes())
        train, val = (list(map(str, content[name])) for name in ("train", "val"))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is damaged ({error}); start a new run.") from error
    index = {str(record.path): i for i, record in enumerate(data.images)}
    if index.keys() != {*train, *val}:
        raise DatasetError(
            f"{path}: the images of {data.annotations} are not those that were divided "
            f"({len(index)} now, {len(train) + len(val)} then); restore them, or start a new run."
        )
    return Split(tuple(index[name] for name in train), tuple(index[name] for name in val))
