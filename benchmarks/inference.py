"""From a decoded picture to run lengths: this project, the published way, and torchvision's models.

    python benchmarks/inference.py [--rounds 5] [--rows shipped] [--no-int8]

A 640 x 480 photograph, two threads, 100 detections on every side. `baseline` is this project's own
parity path: torchvision's deformable conv, torch's plain convs, batch norms as they are, full-size
pasting, pycocotools' run lengths; it stands for the published code. Published recipes have random
weights, their class scores shifted so that as many candidates pass as in a real picture. Shipped
models see a shorter side of 512, against eager as `meinst.load` gives it. All sides keep freed
memory, as the command line does. The sides take turns; medians of the ratios and their range are
printed. Needs `pip install '.[export,demo]'`.
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
from results import drawn_results, paste_and_encode
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from meinst.codecs import PCACodec
from meinst.data.transforms import InputOptions, resize_image
from meinst.detections import Detections
from meinst.detector import head, layers
from meinst.detector.meinst import MEInst, Predictor
from meinst.engine.checkpoint import build_model, load_model
from meinst.engine.config import load_recipe
from meinst.engine.memory import keep_for_reuse

DETECTIONS, CANDIDATES, CLASSES = 100, 2000, 80


def photograph(width: int = 640, height: int = 480) -> np.ndarray:
    """A real photograph that scikit-image ships, ``(H, W, 3)`` uint8."""
    from skimage import data

    return np.asarray(Image.fromarray(data.astronaut()).resize((width, height)))


def published_model(recipe_name: str, picture: np.ndarray) -> MEInst:
    """A recipe's network with random weights that finds 100 objects in the picture."""
    recipe = load_recipe(recipe_name)
    torch.manual_seed(0)
    masks = drawn_results(800, 800)[0].repeat(2, 1, 1) > torch.rand(200, 1, 1) * 0.8
    codec = PCACodec(recipe.codec.n_components, recipe.codec.mask_size).fit(masks)
    names = tuple(f"class {n}" for n in range(CLASSES))
    model = build_model(names, recipe, codec).eval()
    with torch.no_grad():
        pixels = torch.from_numpy(resize_image(picture, model.image_size)).permute(2, 0, 1)
        outputs = model([pixels])
        # Boxes of some strides; as many class scores above the threshold as in a real picture.
        model.head.boxes.bias += 3.0  # type: ignore[operator]
        model.head.logits.weight *= 40.0
        outputs = model([pixels])
        least = outputs.logits.flatten().topk(CANDIDATES).values[-1]
        wanted = np.log(0.05 / 0.95)
        model.head.logits.bias += wanted - least  # type: ignore[operator]
    model.selection = replace(model.selection, score_threshold=0.0, max_detections=DETECTIONS)
    return model


@contextmanager
def published_way() -> Iterator[None]:
    """Torchvision's deformable conv, torch's plain convs, and the codes of all points."""

    def theirs(feature: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None) -> Tensor:
        result: Tensor = torchvision_deform_conv2d(feature, offset, weight, padding=1, mask=mask)
        return result

    never = patch.object(layers, "_FAST_TILES", sys.maxsize)
    all_convs = patch.object(layers, "_FEW_OUTPUTS", 0)
    codes = patch.object(head.Head, "_codes", lambda self, maps: head._everywhere(self.codes, maps))
    with patch.object(layers, "_deform_conv", theirs), never, all_convs, codes:
        yield


def to_rle(model: Predictor, picture: np.ndarray) -> Callable[[], Any]:
    """Our way: compact detections, run lengths inside their boxes."""
    return lambda: model.predict(picture).rle()


def ready(model: MEInst) -> MEInst:
    """A copy as `meinst.load` gives it."""
    model = copy.deepcopy(model)
    model.backbone.fold_norms()
    return model


def baseline(model: MEInst, picture: np.ndarray) -> Callable[[], Any]:
    """The published way."""

    def run() -> None:
        with published_way():
            found: Detections = model.predict(picture)
        paste_and_encode(found.soft_masks(), found.boxes, *found.image_size)

    return run


def torch_convs(model: MEInst, picture: np.ndarray) -> Callable[[], Any]:
    """Our way but for the convs and norms, which are torch's."""

    def run() -> None:
        with published_way():
            model.predict(picture).rle()

    return run


def torchvision_model(name: str, picture: np.ndarray) -> Callable[[], Any]:
    """A torchvision detector of random weights that keeps 100 detections, with run lengths."""
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
    """The model in OpenVINO; in 8 bits if there are pictures to calibrate it with."""
    from meinst.engine.export import export_model
    from meinst.engine.runtime import load_exported

    export_model(model, folder, calibration=pictures)
    found = load_exported(folder)
    found.selection = model.selection
    return found


def published_rows(picture: np.ndarray, rounds: int, int8: bool) -> None:
    """The recipes in random weights, eager and exported, against the published way."""
    for name in ("MEInst_R_50_1x", "MEInst_R_50_1x_none"):
        model = published_model(name, picture)
        print(f"{name}: {len(model.predict(picture))} detections", flush=True)
        plain = baseline(model, picture)
        eager = ready(model)
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
    """The shipped models, exported, against eager."""
    for name in ("nuclei", "photos"):
        model = load_model(name)
        model.selection = replace(model.selection, score_threshold=0.0)
        model.image_size = InputOptions(512, 1333)
        eager = ready(model)
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
    parser.add_argument("--no-int8", action="store_true", help="leave the quantised rows out")
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
