"""Annotations of drawn masks, and `meinst codec` on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meinst.cli.main import main
from meinst.codecs import Codec
from meinst.data.coco import read_coco

SMALL = ("--components", 4, "--mask-size", 8)


def run(*arguments: object) -> int:
    return main(["codec", *map(str, arguments)])


def rectangle(
    number: int, x: float, y: float, w: float, h: float, **changes: Any
) -> dict[str, Any]:
    """An annotation of the lower left half of a box."""
    plain = {
        "id": number,
        "image_id": 1,
        "category_id": 1 + number % 2,
        "bbox": [x, y, w, h],
        "segmentation": [[x, y, x + w, y + h, x, y + h]],
        "iscrowd": 0,
    }
    return plain | changes


def drawn(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Polygons of four random points; boxes of ten pixels and more."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        (x, y), (w, h) = rng.uniform(0, 60, 2).tolist(), rng.uniform(10, 40, 2).tolist()
        points = rng.uniform([x, y], [x + w, y + h], (4, 2)).flatten().tolist()
        found.append(rectangle(number, x, y, w, h, segmentation=[points]))
    return found


def written(
    path: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("ant", "bee")
) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 1 + n, "name": name} for n, name in enumerate(names)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))  # NaN too, as Python's JSON has it
    return path


def masks_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    data = read_coco(path)
    masks = [one.select(np.flatnonzero(~one.crowd)).masks(8) for one in data.instances]
    labels = [one.labels[~one.crowd] for one in data.instances]
    return torch.from_numpy(np.concatenate(masks)), torch.from_numpy(np.concatenate(labels))


def assert_sound(codec: Codec) -> None:
    """Nothing that the codec holds or says of any mask is NaN or infinite."""
    assert all(array.isfinite().all() for array in codec.state_dict().values())
    size = codec.mask_size
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(50, size, size, generator=generator) < torch.rand(50, 1, 1)
    masks[0], masks[1] = False, True
    labels = torch.arange(50) % len(codec.class_names or ("all",))
    codes = codec.transform(masks, labels=labels)
    assert codes.isfinite().all()
    assert codec.inverse_transform(codes, labels).isfinite().all()


# What is written
