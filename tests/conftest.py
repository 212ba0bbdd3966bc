"""Shared fixtures: a synthetic COCO data set, a tiny untrained model, metrics of pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core to itself
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

if TYPE_CHECKING:
    from meinst.detector.meinst import MEInst

CATEGORIES = ({"id": 3, "name": "disc"}, {"id": 7, "name": "box"}, {"id": 20, "name": "star"})


@dataclass(frozen=True)
class SyntheticData:
    """A COCO data set on disk: 6 images, 9 instances, a crowd, and no instance of "star"."""

    images: Path
    annotations: Path

    def content(self) -> dict[str, Any]:
        return json.loads(self.annotations.read_text())


def make_synthetic_data(folder: Path, seed: int = 0) -> SyntheticData:
    """Draw shapes on noise, annotated as polygons and as compressed and uncompressed RLE.

    ``empty.png`` has no instance, ``crowd.png`` has a crowd, and ``tall.jpg`` is a JPEG file.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    plan: list[tuple[str, tuple[int, int], list[tuple[str, tuple[float, ...]]]]] = [
        ("two.png", (96, 128), [("disc", (40.0, 50.0, 22.0)), ("box", (80.0, 20.0, 115.0, 70.0))]),
        ("tall.jpg", (150, 90), [("box", (5.5, 10.25, 60.0, 120.5)), ("disc", (70, 130, 9))]),
        ("empty.png", (80, 100), []),
        ("crowd.png", (110, 130), [("crowd", (60, 0, 130, 50)), ("disc", (30, 60, 25))]),
        ("large.png", (200, 220), [("disc", (100, 100, 80)), ("parts", (10, 10, 60, 60))]),
        ("small.png", (64, 64), [("box", (10, 10, 20, 24)), ("disc", (40, 40, 6))]),
    ]
    content: dict[str, Any] = {"images": [], "categories": list(CATEGORIES), "annotations": []}
    for image_id, (name, (height, width), shapes) in enumerate(plan, start=11):
        pixels = rng.integers(0, 90, (height, width, 3))
        for kind, numbers in shapes:
            mask = draw_mask(kind, numbers, height, width)
            pixels[mask] = (230, 60, 40) if kind == "disc" else (60, 160, 230)
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 3 if kind == "disc" else 7,
                    "segmentation": _segmentation(kind, numbers, mask, image_id),
                    "bbox": _bounds(mask),
                    "area": float(mask.sum()),
                    "iscrowd": int(kind == "crowd"),
                }
            )
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name, quality=95)
        content["images"].append(
            {"id": image_id, "file_name": name, "width": width, "height": height}
        )
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(content))
    return SyntheticData(folder / "images", annotations)


def draw_mask(kind: str, numbers: tuple[float, ...], height: int, width: int) -> np.ndarray:
    """``(H, W)`` bool: pixels whose centres are in a disc (x, y, radius) or a box (corners)."""
    y, x = np.mgrid[:height, :width] + 0.5
    if kind == "disc":
        return (x - numbers[0]) ** 2 + (y - numbers[1]) ** 2 <= numbers[2] ** 2
    x1, y1, x2, y2 = numbers
    inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
    if kind == "parts":  # two halves with a gap between them
        inside &= (x < x1 + (x2 - x1) * 0.4) | (x > x1 + (x2 - x1) * 0.6)
    return inside


def column_runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, starting with zeros."""
    values = np.concatenate([[False], mask.flatten(order="F")])
    changes = np.flatnonzero(values[1:] != values[:-1])
    return np.diff(np.concatenate([[0], changes, [mask.size]])).tolist()


def _segmentation(kind: str, numbers: tuple[float, ...], mask: np.ndarray, image_id: int) -> Any:
    if kind in ("box", "parts"):
        x1, y1, x2, y2 = numbers
        gap = (x2 - x1) * 0.4
        sides = [(x1, x2)] if kind == "box" else [(x1, x1 + gap), (x2 - gap, x2)]
        return [[a, y1, b, y1, b, y2, a, y2] for a, b in sides]
    runs = {"size": list(mask.shape), "counts": column_runs(mask)}
    if kind == "crowd" or image_id % 2:
        return runs
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": encoded["counts"].decode()}


def _bounds(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x, y = float(columns[0]), float(rows[0])
    return [x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y]


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> SyntheticData:
    """The synthetic data set; shared, so copy before changing it."""
    return make_synthetic_data(tmp_path_factory.mktemp("synthetic"))


def make_tiny_model(
    class_names: tuple[str, ...] = ("box", "disc"), seed: int = 0, refine_channels: int = 0
) -> MEInst:
    """A network of random weights with many detections, in evaluation mode.

    Scores are near 0.7, boxes extend about 2 strides to each side, and the codec (8 numbers for
    14 x 14 pixels) is fitted on discs and boxes.
    """
    from meinst.codecs import PCACodec
    from meinst.data.transforms import ResizeOptions
    from meinst.detector.head import HeadOptions
    from meinst.detector.meinst import MEInst
    from meinst.detector.predictor import ModelOptions
    from meinst.detector.select import SelectOptions

    rng = np.random.default_rng(seed)
    discs = [draw_mask("disc", tuple(rng.uniform(4, 10, 3)), 14, 14) for _ in range(40)]
    boxes = [
        draw_mask("box", (*rng.uniform(0, 6, 2), *rng.uniform(8, 14, 2)), 14, 14) for _ in range(40)
    ]
    codec = PCACodec(8, mask_size=14).fit(torch.from_numpy(np.stack(discs + boxes)))
    options = ModelOptions(
        backbone="test_efficientnet",
        strides=(8, 16, 32),
        distance_limits=(32, 64),
        channels=16,
        head=HeadOptions(num_convs=1, norm_groups=4),
        refine_channels=refine_channels,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)  # timm and torch.nn use the global generator
    model = MEInst(class_names, codec, options, ResizeOptions(64, 96), SelectOptions())
    with torch.no_grad():
        model.head.logits.weight.mul_(40)
        model.head.logits.bias.zero_()
        model.head.boxes.bias.fill_(2.0)
        model.head.codes.weight.mul_(40)
        if model.refiner is not None:  # initially zero, so that it would change nothing
            model.refiner.layers[-1].weight.normal_()
    torch.set_rng_state(state)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model() -> MEInst:
    """A random model with the classes "box" and "disc"; shared, so copy before changing it."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def tiny_model_file(tiny_model: MEInst, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the same model."""
    from meinst.models.checkpoint import save_model

    return save_model(tiny_model, tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def finished_run(synthetic_data: SyntheticData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted short training run; shared, so copy before changing it."""
    from short_training import make_options

    from meinst.training.train import train

    output = tmp_path_factory.mktemp("run") / "whole"
    assert train(make_options(synthetic_data, output, report=True)) == output / "best.safetensors"
    return output


def pycocotools_metrics(
    ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str, limit: int
) -> dict[str, Any]:
    """Metrics of pycocotools, read from its tables, since its AP always uses a limit of 100."""
    hidden = {"bbox": "segmentation", "segm": "bbox"}[kind]
    coco = COCO()
    coco.dataset = copy.deepcopy(ground_truth)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 on NumPy 2
        coco.createIndex()
        found = coco.loadRes([{k: v for k, v in r.items() if k != hidden} for r in results])
        evaluation = COCOeval(coco, found, kind)
        evaluation.params.maxDets = [1, 10, limit]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    if limit == 100:  # the tables give the values of its summary
        assert evaluation.stats[0] == _mean(precision[..., 0, 2])
        assert evaluation.stats[8] == _mean(recall[..., 0, 2])

    def summary(k: slice) -> list[float]:
        p, r = precision[:, :, k, :, 2], recall[:, k, :, 2]
        tables = [p[..., 0], p[0, ..., 0], p[5, ..., 0], p[..., 1], p[..., 2], p[..., 3], r[..., 0]]
        return [_mean(table) for table in tables]

    ids = evaluation.params.catIds
    per_class = {coco.cats[c]["name"]: summary(slice(k, k + 1)) for k, c in enumerate(ids)}
    return {"all": summary(slice(None)), "per_class": per_class, "stats": evaluation.stats}


def _mean(table: np.ndarray) -> float:
    return float(table[table > -1].mean()) if (table > -1).any() else -1.0


@pytest.fixture(scope="session")
def coco_reference() -> Callable[..., dict[str, Any]]:
    """:func:`pycocotools_metrics`; -1 means that there are no such objects."""
    return pycocotools_metrics


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the engines' tests last: after nncf has quantized a graph, a fork kills the process."""
    items.sort(key=lambda item: item.path.name == "test_export_engines.py")
