"""The folder that the examples of the documentation run in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

CLASSES = ("nucleus", "person", "turtle")
MODELS = {"zoo/nuclei": CLASSES[:1], "zoo/photos": CLASSES, "runs/mine/best": CLASSES}
SIZE = (96, 128)  # (H, W) of each image


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, annotations, a codec and a model, by the names that the documentation uses."""
    from conftest import make_tiny_model

    from meinst.codecs import DCTCodec
    from meinst.models.checkpoint import save_model

    folder = tmp_path_factory.mktemp("docs")
    random = np.random.default_rng(0)
    write_data(folder, "train", 8, random)
    write_data(folder, "val", 2, random)
    for name in (
        "cells.png",
        "holiday.jpg",
        "street.jpg",
        "more/a.png",
        "more/b.png",
        "scans/a.tif",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(make_image(1, random)[0]).save(folder / name)
    tiles, _ = make_image(1, random)
    slide = np.tile(tiles, (4, 4, 1))[:300, :400]
    resolution = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / "slide.tif", slide, photometric="rgb", tile=(64, 64), **resolution)
    stack = np.repeat(np.stack([tiles[..., 0], tiles[..., 1]]), 6, axis=0).reshape(
        2, 2, 3, *tiles.shape[:2]
    )
    tifffile.imwrite(
        folder / "stack.tif", np.moveaxis(stack, 0, 2), imagej=True, metadata={"axes": "TZCYX"}
    )
    write_halves(folder)
    DCTCodec(60, 28).save(folder / "codec.npz")
    for name, classes in MODELS.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(make_tiny_model(classes), path)
    (folder / "runs/mine/recipe.yaml").write_text("base: photos\n")
    return folder


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are faster without threads, the more so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def world(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy for one page, in which small models replace the shipped ones."""
    monkeypatch.setattr("meinst.models.checkpoint.ZOO", prepared / "zoo")
    return Path(shutil.copytree(prepared, tmp_path / "world"))


def make_image(count: int, random: np.random.Generator) -> tuple[np.ndarray, list[list[float]]]:
    """Bright ellipses on noise, and their outlines as polygons."""
    height, width = SIZE
    pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    y, x = np.mgrid[:height, :width] + 0.5
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outlines = []
    for _ in range(count):
        a, b = random.uniform(6, 18, 2)
        cx, cy = random.uniform(a, width - a), random.uniform(b, height - b)
        pixels[((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 <= 1] = random.integers(120, 255, 3)
        bump = 1 - random.uniform(0, 0.5) * np.cos(angle * random.integers(1, 5)) ** 2
        points = np.stack([cx + a * bump * np.cos(angle), cy + b * bump * np.sin(angle)], -1)
        outlines.append([float(value) for value in points.reshape(-1)])
    return pixels, outlines


def write_data(folder: Path, name: str, images: int, random: np.random.Generator) -> None:
    """``images`` files in the folder ``name``, and their annotations in ``name.json``."""
    (folder / name).mkdir()
    content: dict[str, Any] = {
        "images": [],
        "categories": [{"id": k, "name": label} for k, label in enumerate(CLASSES, start=1)],
        "annotations": [],
    }
    for image_id in range(1, images + 1):
        pixels, outlines = make_image(20, random)
        file_name = f"{image_id}.png"
        Image.fromarray(pixels).save(folder / name / file_name)
        content["images"].append(
            {"id": image_id, "file_name": file_name, "width": SIZE[1], "height": SIZE[0]}
        )
        for outline in outlines:
            x, y = np.array(outline[::2]), np.array(outline[1::2])
            box = [x.min(), y.min(), x.max() - x.min(), y.max() - y.min()]
            number = len(content["annotations"]) + 1
            content["annotations"].append(
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": 1 + number % len(CLASSES),
                    "segmentation": [outline],
                    "bbox": [float(value) for value in box],
                    "area": float(box[2] * box[3]),
                    "iscrowd": 0,
                }
            )
    (folder / f"{name}.json").write_text(json.dumps(content))


def write_halves(folder: Path) -> None:
    """The training annotations as two files, as shards and as the files of two machines."""
    content = json.loads((folder / "train.json").read_text())
    (folder / "shards").mkdir()
    for part, name in enumerate(("a", "b")):
        images = content["images"][part::2]
        ids = {image["id"] for image in images}
        half = content | {
            "images": images,
            "annotations": [e for e in content["annotations"] if e["image_id"] in ids],
        }
        for path in (folder / f"{name}.json", folder / f"shards/{name}.json"):
            path.write_text(json.dumps(half))
