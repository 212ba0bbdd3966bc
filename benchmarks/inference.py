"""From a decoded image to COCO RLE: this project, the published code, and torchvision's models.

    python benchmarks/inference.py [--rounds 5] [--rows shipped] [--no-int8]

A 640 x 480 photograph, two threads, 100 detections each. `baseline` stands for the published code:
this project's network with torchvision's deformable conv, torch's plain convs, batch norms that are
not fused, full-size masks, and pycocotools' encoder. Published recipes have random weights, with
class scores shifted so that as many candidates pass as in a real image. Shipped models run at a
shorter side of 512 and are compared with `meinst.load(...).fuse()`. Freed memory is kept, as on the
command line. Implementations are timed alternately; the median and range of the ratios are printed.
Needs `pip install '.[export,demo]'`.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import compare, versions
from PIL import Image
from results import paste_and_encode, synthetic_results
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from meinst.cli.memory import keep_for_reuse
from meinst.codecs import PCACodec
from meinst.data.transforms import ResizeOptions, resize_image
from meinst.detections import Detections
from meinst.detector import head, layers
from meinst.detector.meinst import MEInst
from meinst.detector.predictor import Predictor
from meinst.models.checkpoint import build_model, load_model
from meinst.models.recipe import load_recipe
from meinst.ops import conv2d

DETECTIONS, CANDIDATES, CLASSES = 100, 2000, 80


def photograph(width: int = 640, height: int = 480) -> np.ndarray:
    """A photograph from scikit-image, ``(H, W, 3)`` uint8."""
    from skimage import data

    return np.asarray(Image.fromarray(data.astronaut()).resize((width, height)))


def published_model(recipe_name: str, picture: np.ndarray) -> MEInst:
    """A recipe's network with random weights that detects 100 objects in the picture."""
    recipe = load_recipe(recipe_name)
    torch.manual_seed(0)
    masks = synthetic_results(800, 800)[0].repeat(2, 1, 1) > torch.rand(200, 1, 1) * 0.8
    codec = PCACodec(recipe.codec.n_components, recipe.codec.mask_size).fit(masks)
    names = tuple(f"class {n}" for n in range(CLASSES))
    model = build_model(names, recipe, codec).eval()
    with torch.no_grad():
        pixels = torch.from_numpy(resize_image(picture, model.resize_options)).permute(2, 0, 1)
        outputs = model([pixels])
        # Make boxes some strides wide, and as many candidates as in a real image.
        model.head.boxes.bias += 3.0  # type: ignore[operator]
        model.head.logits.weight *= 40.0
        outputs = model([pixels])
        least = outputs.logits.flatten().topk(CANDIDATES).values[-1]
        threshold = np.log(0.05 / 0.95)
        model.head.logits.bias += threshold - least  # type: ignore[operator]
    model.selection = replace(model.selection, score_threshold=0.0, max_detections=DETECTIONS)
    return model


@contextmanager
def published_code() -> Iterator[None]:
    """Use torchvision's deformable conv and torch's convs, and compute the codes of all points."""

    def torchvision_conv(
        feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None
    ) -> Tensor:
        result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=1, mask=mask)
        return result

    on_demand = head.CodesOnDemand
    with (
        patch.object(layers, "_deform_conv2d", torchvision_conv),
        patch.object(layers, "_FAST_TILES", sys.maxsize),
        patch.object(conv2d, "_FEW_OUTPUTS", 0),
        patch.object(head, "CodesOnDemand", lambda conv, maps: on_demand(conv, maps).dense()),
    ):
        yield


def to_rle(model: Predictor, picture: np.ndarray) -> Callable[[], Any]:
    """Compact detections, encoded inside their boxes."""
    return lambda: model.predict(picture).rle()


def fused(model: MEInst) -> MEInst:
    """A fused copy."""
    return copy.deepcopy(model).fuse()


def baseline(model: MEInst, picture: np.ndarray) -> Callable[[], Any]:
    """Inference as in the published code."""

    def run() -> None:
        with published_code():
            found: Detections = model.predict(picture)
        paste_and_encode(found.soft_masks(), found.boxes, *found.image_size)

    return run


def torch_convs(model: MEInst, picture: np.ndarray) -> Callable[[], Any]:
    """Inference with torch's convs and norms, but with compact detections."""

    def run() -> None:
        with published_code():
            model.predict(picture).rle()

    return run


def torchvision_model(name: str, picture: np.ndarray) -> Callable[[], Any]:
    """A torchvision detector of random weights that keeps 100 detections, with encoding."""
    from pycocotools import mask as coco_mask
    from torchvision.models import detection

    torch.manual_seed(0)
    limits = {"fcos": {"score_thresh": 0.0, "detections_per_img": DETECTIONS}}.get(
        name.split("_")[0], {"box_score_thresh": 0.0, "box_detections_per_img": DETECTIONS}
    )
    model = getattr(detection, name)(weights=None, weights_backbone=None, **limits).eval()
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1).float() / 255

    @torch.inference_mode()
    def run() -> None:
        found = model([pixels])[0]
        for mask in found.get("masks", ()):
            coco_mask.encode(np.asfortranarray(mask[0].numpy() >= 0.5, dtype=np.uint8))

    return run


def exported(model: MEInst, folder: Path, pictures: list[np.ndarray] | None = None) -> Predictor:
    """The model in OpenVINO; in 8 bits if pictures for calibration are given."""
    from meinst.export.export import export_model
    from meinst.models.exported import load_exported

    export_model(model, folder, calibration=pictures)
    found = load_exported(folder)
    found.selection = model.selection
    return found


def published_rows(picture: np.ndarray, rounds: int, int8: bool) -> None:
    """Compare recipes with random weights, eager and exported, with the published code."""
    for name in ("MEInst_R_50_1x", "MEInst_R_50_1x_none"):
        model = published_model(name, picture)
        print(f"{name}: {len(model.predict(picture))} detections", flush=True)
        plain = baseline(model, picture)
        eager = fused(model)
        print(
            "  eager against baseline:", compare(to_rle(eager, picture), plain, rounds), flush=True
        )
        with tempfile.TemporaryDirectory() as folder:
            for bits, pictures in (("float32", None), ("INT8", [picture]))[: 1 + int8]:
                fast = exported(model, Path(folder) / bits, pictures)
                ratio = compare(to_rle(fast, picture), plain, rounds)
                print(f"  OpenVINO {bits} against baseline:", ratio, flush=True)
    model = published_model("MEInst_R_50_3x_512", picture)
    with tempfile.TemporaryDirectory() as folder:
        fast = exported(model, Path(folder) / "float32")
        for peer in ("maskrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn_v2", "fcos_resnet50_fpn"):
            ratio = compare(to_rle(fast, picture), torchvision_model(peer, picture), rounds)
            print(f"MEInst_R_50_3x_512 OpenVINO float32 against {peer}:", ratio, flush=True)


def shipped_rows(picture: np.ndarray, rounds: int, int8: bool) -> None:
    """Compare the shipped models, eager and exported."""
    for name in ("nuclei", "photos"):
        model = load_model(name)
        model.selection = replace(model.selection, score_threshold=0.0)
        model.resize_options = ResizeOptions(512, 1333)
        eager = fused(model)
        plain = torch_convs(model, picture)
        print(
            f"{name}: eager against torch's convs:", compare(to_rle(eager, picture), plain, rounds)
        )
        with tempfile.TemporaryDirectory() as folder:
            for bits, pictures in (("float32", None), ("INT8", [picture]))[: 1 + int8]:
                fast = exported(model, Path(folder) / bits, pictures)
                ratio = compare(to_rle(fast, picture), to_rle(eager, picture), rounds)
                print(f"{name}: OpenVINO {bits} against eager:", ratio, flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", choices=("shipped", "published", "all"), default="all")
    parser.add_argument("--no-int8", action="store_true", help="leave out the quantized rows")
    options = parser.parse_args()
    torch.set_num_threads(2)
    keep_for_reuse()
    print(versions("meinst", "torch", "torchvision", "openvino", "nncf", "pycocotools"))
    picture = photograph()
    if options.rows != "published":
        shipped_rows(picture, options.rounds, not options.no_int8)
    if options.rows != "shipped":
        published_rows(picture, options.rounds, not options.no_int8)


if __name__ == "__main__":
    main()
