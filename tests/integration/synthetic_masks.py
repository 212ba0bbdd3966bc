"""Synthetic annotations, and shortcuts for `meinst codec`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meinst.cli.main import main
from meinst.codecs import AutoencoderCodec, Codec, CodecOptions
from meinst.data.coco import read_coco

SMALL = ("--n-components", 4, "--mask-size", 8)


class SmallAutoencoder(AutoencoderCodec):
    """Replaces the autoencoder in the registry of codecs, for fast fits."""

    @classmethod
    def from_options(
        cls,
        options: CodecOptions,
        class_names: tuple[str, ...] | None = None,  # noqa: ARG003
    ) -> SmallAutoencoder:
        size, count = options.mask_size, options.n_components
        return cls(count, size, hidden=6, iterations=4, batch_size=16, seed=options.seed)


def run(*arguments: object) -> int:
    return main(["codec", *map(str, arguments)])


def rectangle(
    number: int, x: float, y: float, w: float, h: float, **changes: Any
) -> dict[str, Any]:
    """An annotation of the lower left half of a box."""
    annotation = {
        "id": number,
        "image_id": 1,
        "category_id": 1 + number % 2,
        "bbox": [x, y, w, h],
        "segmentation": [[x, y, x + w, y + h, x, y + h]],
        "iscrowd": 0,
    }
    return annotation | changes


def random_polygons(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Polygons of four random points; boxes of ten pixels and more."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        (x, y), (w, h) = rng.uniform(0, 60, 2).tolist(), rng.uniform(10, 40, 2).tolist()
        points = rng.uniform([x, y], [x + w, y + h], (4, 2)).flatten().tolist()
        found.append(rectangle(number, x, y, w, h, segmentation=[points]))
    return found


def write_annotations(
    path: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("ant", "bee")
) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 1 + n, "name": name} for n, name in enumerate(names)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))  # Python's JSON supports NaN
    return path


def masks_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    data = read_coco(path)
    masks = [image.select(np.flatnonzero(~image.crowd)).masks(8) for image in data.instances]
    labels = [image.labels[~image.crowd] for image in data.instances]
    return torch.from_numpy(np.concatenate(masks)), torch.from_numpy(np.concatenate(labels))


def assert_finite(codec: Codec) -> None:
    """Assert that the codec's arrays and its outputs for random masks are finite."""
    assert all(array.isfinite().all() for array in codec.state_dict().values())
    size = codec.mask_size
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(50, size, size, generator=generator) < torch.rand(50, 1, 1)
    masks[0], masks[1] = False, True
    labels = torch.arange(50) % len(codec.class_names or ("all",))
    codes = codec.transform(masks, labels=labels)
    assert codes.isfinite().all()
    assert codec.inverse_transform(codes, labels).isfinite().all()
