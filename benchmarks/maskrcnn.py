"""The peer in accuracy: torchvision's Mask R-CNN with the same backbone and training time.

    cd benchmarks
    python maskrcnn.py nuclei ../../shared/data/nuclei --minutes 25 --output /tmp/peer

EfficientNet-Lite0 with ImageNet weights, a pyramid of 128 channels at strides 4 to 32, a box head
of two layers, a mask head of four convs; `nuclei` and `photos` select sizes, anchors and limits.
As for this project's models, masks of 28 x 28 values are pasted by `meinst.ops.paste` and AP is
computed by `meinst.data.metrics`. The output folder gets the moving average of the weights
(`ema.safetensors`) and `metrics.json`. During training it contains `last.pt`, from which the same
command with `--resume` continues. Needs `pip install '.[train]'`.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import versions
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import MaskRCNN, anchor_utils, faster_rcnn, mask_rcnn, transform
from torchvision.ops import MultiScaleRoIAlign, masks_to_boxes

from meinst.cli.memory import keep_for_reuse
from meinst.data import transforms
from meinst.data.coco import CocoData, ImageRecord, read_coco
from meinst.data.ground_truth import ground_truth
from meinst.data.images import load_image
from meinst.data.metrics import coco_metrics
from meinst.data.shapes import Bitmap, Instances
from meinst.data.training_dataset import ResumableSampler, collate
from meinst.data.transforms import AugmentOptions, Geometry, ResizeOptions
from meinst.detector.backbone import LITE0, Backbone, load_imagenet_weights
from meinst.detector.fpn import FPN
from meinst.files import write_atomically
from meinst.images.rgb import Pixels
from meinst.models.recipe import OptimizerOptions
from meinst.ops.paste import soft_masks_to_rle
from meinst.ops.rasterize import rasterize_polygons
from meinst.training.schedule import make_optimizer

CHANNELS, NORM_GROUPS, LEVELS = 128, 32, ["0", "1", "2", "3"]
BATCH, WARMUP, FINAL_FACTOR, EMA_DECAY = 2, 80, 0.01, 0.995
OPTIMIZER = OptimizerOptions(lr=4e-4, backbone_lr_factor=0.5, weight_decay=0.02, clip_norm=5.0)
ENDLESS, NOWHERE = 10**9, np.zeros((0, 4))
STATE, SAVE_EVERY = "last.pt", 200  # file to resume from, and updates between two saves
SAME = ("setting", "data", "minutes", "images", "seed", "bfloat16")  # must not change when resuming

Truth = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """Settings of a data set; sides are in pixels of the network's input."""

    anchors: tuple[int, int, int, int]  # side on each level
    rois: int  # sampled in a training image
    proposals: int
    limits: Sequence[int]  # limits of detections per image for AP, largest first
    test_size: ResizeOptions
    longer_sides: tuple[int, int] | None  # range of the longer side in training, see below
    augment: AugmentOptions

    def sample_size(self, height: int, width: int, generator: torch.Generator) -> ResizeOptions:
        """Sample the size to which a training image is resized before it is cropped."""
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        if self.longer_sides is not None:
            shortest, longest = self.longer_sides
            side = shortest + int(share * (longest - shortest + 1))
            return ResizeOptions(side, side)
        side = max(
            min(height, width), self.test_size.shorter_side
        )  # images are enlarged, never shrunk
        return ResizeOptions(round(side * 0.7 * (1.3 / 0.7) ** share), ENDLESS)


SIDES, FLIP = (320, 480), AugmentOptions(horizontal_flip=0.5)
CROP = AugmentOptions(crop_size=384, horizontal_flip=0.5, vertical_flip=0.5, transpose=0.5)
SETTINGS = {
    "nuclei": Setting(
        (10, 24, 60, 150), 192, 600, [300, 100], ResizeOptions(512, 1333), None, CROP
    ),
    "photos": Setting((32, 90, 220, 512), 128, 300, [100], ResizeOptions(480, 480), SIDES, FLIP),
}


class Pyramid(nn.Module):
    """Backbone and pyramid with the interface of torchvision's detectors."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(LITE0, (1, 2, 3, 4))
        load_imagenet_weights(self.backbone, LITE0)
        self.fpn = FPN(self.backbone.channels, CHANNELS, len(LEVELS), NORM_GROUPS)
        self.out_channels = CHANNELS

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Pyramid levels of normalised images ``(B, 3, H, W)``, finest first, float32."""
        levels = self.fpn(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))
        # Anchors take the type of the maps, and bfloat16 cannot represent all pixels above 256.
        return OrderedDict(zip(LEVELS, (level.float() for level in levels), strict=True))


def build(setting: Setting, classes: int) -> MaskRCNN:
    """The model: ImageNet weights in the backbone, random ones elsewhere (global generator)."""
    sides = tuple((side,) for side in setting.anchors)
    model = MaskRCNN(
        Pyramid(),
        rpn_anchor_generator=anchor_utils.AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        rpn_pre_nms_top_n_train=1000,  # of each level, as in testing
        rpn_post_nms_top_n_train=setting.proposals,
        rpn_post_nms_top_n_test=setting.proposals,
        box_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=7, sampling_ratio=2),
        box_head=faster_rcnn.TwoMLPHead(CHANNELS * 7 * 7, 512),
        box_predictor=faster_rcnn.FastRCNNPredictor(512, classes + 1),
        box_score_thresh=0.03,
        box_detections_per_img=setting.limits[0],
        box_batch_size_per_image=setting.rois,
        mask_roi_pool=MultiScaleRoIAlign(LEVELS, output_size=14, sampling_ratio=2),
        mask_head=mask_rcnn.MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1),
        mask_predictor=mask_rcnn.MaskRCNNPredictor(CHANNELS, CHANNELS, classes + 1),
    )
    # Normalise and pad only: images are already resized, and masks stay (N, 1, 28, 28).
    model.transform = transform.GeneralizedRCNNTransform(0, 0, [127 / 255] * 3, [128 / 255] * 3)
    model.transform.resize = lambda image, target: (image, target)
    model.transform.postprocess = lambda result, _shapes, _original_sizes: result
    # Compute boxes, losses and scores in float32 under autocast too.
    for module in (model.rpn.head, model.roi_heads.box_predictor, model.roi_heads.mask_predictor):
        module.register_forward_hook(lambda _module, _inputs, outputs: _in_float32(outputs))
    return model.to(memory_format=torch.channels_last)


def _in_float32(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_in_float32(output) for output in outputs)


class TrainingImages(Dataset[tuple[Tensor, Truth]]):
    """Augmented images with full-size masks; sample ``k`` depends only on ``k`` and the seed."""

    def __init__(self, data: CocoData, setting: Setting, seed: int) -> None:
        self._data, self._setting, self._seed = data, setting, seed

    def __getitem__(self, number: int) -> tuple[Tensor, Truth]:
        """Image ``(3, H, W)`` uint8 RGB and its instances."""
        epoch, place = divmod(number, len(self._data))
        order = torch.randperm(len(self._data), generator=_generator(self._seed, 0, epoch))
        record, instances = (x[order[place]] for x in (self._data.images, self._data.instances))
        generator, sides = _generator(self._seed, 1, number), (record.height, record.width)
        size, augment = self._setting.sample_size(*sides, generator), self._setting.augment
        # Crops are not aligned to instances.
        geometry = transforms.sample_geometry(*sides, NOWHERE, size, augment, generator)
        pixels = geometry.image(_load(record)).transpose(2, 0, 1)
        return torch.from_numpy(np.ascontiguousarray(pixels)), truth_of(instances, geometry)


def _generator(*numbers: int) -> torch.Generator:
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(seed[0]))


def _load(record: ImageRecord) -> Pixels:
    assert record.path is not None
    return load_image(record.path, (record.width, record.height))


def truth_of(instances: Instances, geometry: Geometry) -> Truth:
    """Boxes, labels from 1 and masks ``(G, H, W)`` uint8 of the instances in a crop.

    Crowds and empty masks are left out; an instance cut by the crop gets the box of its mask.
    """
    x1, y1, x2, y2 = geometry.window
    low, high = instances.boxes[:, :2], instances.boxes[:, 2:]
    visible = ((low < (x2, y2)) & (high > (x1, y1))).all(1) & ~instances.crowd
    instances = instances.select(np.flatnonzero(visible))
    mapped = mapped_masks(instances, geometry)
    filled = np.flatnonzero(mapped.any((1, 2)))
    instances, masks = instances.select(filled), torch.from_numpy(mapped[filled])
    low, high = instances.boxes[:, :2], instances.boxes[:, 2:]
    whole = torch.from_numpy(((low >= (x1, y1)) & (high <= (x2, y2))).all(1, keepdims=True))
    tight = masks_to_boxes(masks) + torch.tensor([0.0, 0.0, 1.0, 1.0])  # ends excluded
    boxes = torch.where(whole, torch.from_numpy(geometry.boxes(instances.boxes)), tight)
    labels = torch.from_numpy(instances.labels) + 1
    return {"boxes": boxes.float(), "labels": labels, "masks": masks}


def mapped_masks(instances: Instances, geometry: Geometry) -> NDArray[np.uint8]:
    """Masks on the network's input, ``(G, H, W)`` of 0 and 1.

    Bitmaps are resampled like the image and thresholded at one half; polygons are mapped, then
    rasterised.
    """
    height, width = geometry.size[::-1] if geometry.transpose else geometry.size
    side = max(height, width)
    masks = np.zeros((len(instances), height, width), dtype=np.uint8)
    for mask, shape in zip(masks, instances.shapes, strict=True):
        if isinstance(shape, Bitmap):
            x1, y1, x2, y2 = shape.box
            whole = np.zeros(shape.image_size, dtype=np.uint8)
            whole[y1:y2, x1:x2] = 255 * shape.array()
            mask[:] = geometry.image(whole) >= 128
        else:
            outline = [geometry.points(part.reshape(-1, 2)).reshape(-1) for part in shape]
            square = np.array([[0.0, 0.0, side, side]])
            mask[:] = rasterize_polygons([outline], square, side)[0, :height, :width]
    return masks


def lr_factor(update: int, progress: float) -> float:
    """Linear warm-up over updates, then a cosine over ``progress``, 0 to 1."""
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return min(1.0, (update + 1) / WARMUP) * (FINAL_FACTOR + (1 - FINAL_FACTOR) * cosine)


def train(
    model: MaskRCNN, dataset: TrainingImages, options: argparse.Namespace
) -> tuple[nn.Module, int, float]:
    """Train until the budget is used; the state is saved regularly for ``--resume``.

    A resumed run uses the same samples, and the elapsed time continues from the saved value.

    Returns:
        The moving average in evaluation mode, the number of images, and the seconds.
    """
    rest = (model.backbone.fpn, model.rpn, model.roi_heads)
    optimizer = make_optimizer(model.backbone.backbone, rest, OPTIMIZER)
    rates = [group["lr"] for group in optimizer.param_groups]
    average = copy.deepcopy(model).eval()
    averages, weights = list(average.parameters()), list(model.parameters())
    model.train()
    sums: Counter[str] = Counter()  # since the last printed line
    images = update = 0
    start = last = time.perf_counter()
    parts = {"model": model, "average": average, "optimizer": optimizer}
    chosen = {name: str(getattr(options, name)) for name in SAME}
    state = None
    if options.resume:
        state = torch.load(options.output / STATE, weights_only=True)
        if state["chosen"] != chosen:
            raise ValueError(f"{options.output}: started with {state['chosen']}, not {chosen}.")
        for name, part in parts.items():
            part.load_state_dict(state[name])
        update, images, start = state["update"], state["images"], start - state["seconds"]
    elif (options.output / STATE).exists():
        raise ValueError(
            f"{options.output} contains an unfinished run: use --resume, or remove it."
        )
    sampler = ResumableSampler(ENDLESS, start=images)
    loader = DataLoader(dataset, BATCH, sampler=sampler, num_workers=1, collate_fn=collate)
    batches: Iterator[tuple[list[Tensor], list[Truth]]] = iter(loader)  # uses a random number
    if state is not None:
        torch.set_rng_state(state["generator"])
    while True:
        elapsed = time.perf_counter() - start
        progress = images / options.images if options.images else elapsed / 60 / options.minutes
        if progress >= 1:
            return average, images, elapsed
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * lr_factor(update, progress)
        pixels, truths = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            losses = model([image.float() / 255 for image in pixels], truths)
        losses["total"] = torch.stack(list(losses.values())).sum()
        if not losses["total"].isfinite():
            raise FloatingPointError(f"the losses became {losses} at update {update}.")
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(weights, OPTIMIZER.clip_norm)
        optimizer.step()
        update, images = update + 1, images + len(pixels)
        with torch.no_grad():  # the first updates keep less of the average, as in meinst.training
            kept = min(EMA_DECAY, (1 + update) / (10 + update))
            torch._foreach_lerp_(averages, weights, 1 - kept)
        values = {name: loss.item() for name, loss in losses.items()}
        sums.update({"images": len(pixels), "updates": 1, **values})
        if update % 50 == 0 or update == 1:
            speed = (time.perf_counter() - last) / sums["images"]
            means = ", ".join(f"{name} {sums[name] / sums['updates']:.3f}" for name in losses)
            print(f"update {update}, {images} images: {means}; {speed:.3f} s/image", flush=True)
            sums, last = Counter(), time.perf_counter()
        if update % SAVE_EVERY == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"update": update, "images": images, "seconds": time.perf_counter() - start}
            state |= {"generator": torch.get_rng_state(), "chosen": chosen}
            torch.save(state, buffer := io.BytesIO())
            write_atomically(options.output / STATE, buffer.getvalue())


@torch.inference_mode()
def find(model: nn.Module, image: Pixels, size: ResizeOptions) -> list[tuple[Any, ...]]:
    """Score, label from 1, box and RLE of each detection, in pixels of the image."""
    resized = transforms.resize_image(image, size)
    found = model([torch.from_numpy(resized).permute(2, 0, 1).float() / 255])[0]
    height, width = image.shape[:2]
    factors = (width / resized.shape[1], height / resized.shape[0])
    boxes = found["boxes"] * torch.tensor(factors).repeat(2)
    masks = soft_masks_to_rle(found["masks"][:, 0], boxes, (height, width))
    boxes[:, 2:] -= boxes[:, :2]  # x, y, width, height
    scores, labels = found["scores"].tolist(), found["labels"].tolist()
    return list(zip(scores, labels, boxes.tolist(), masks, strict=True))


def measure(
    model: nn.Module, data: CocoData, setting: Setting, count: int | None
) -> tuple[dict[str, dict[str, Any]], float]:
    """Metrics by limit on the first ``count`` images, and seconds per image without reading it."""
    records, truth = data.images[:count], ground_truth(data)
    ids = {record.id for record in records}
    for entries, key in (("images", "id"), ("annotations", "image_id")):
        truth[entries] = [entry for entry in truth[entries] if entry[key] in ids]
    find(model, _load(records[0]), setting.test_size)  # compiles the kernels
    results: list[dict[str, Any]] = []
    seconds = 0.0
    for record in track(records, "evaluating"):
        image = _load(record)
        start = time.perf_counter()
        found = find(model, image, setting.test_size)
        seconds += time.perf_counter() - start
        for score, label, box, mask in found:
            result = {"image_id": record.id, "category_id": data.category_ids[label - 1]}
            results.append({**result, "score": score, "bbox": box, "segmentation": mask})
    metrics = {}
    for limit in setting.limits:
        summary = coco_metrics(truth, results, limit)
        metrics[str(limit)] = {"bbox": summary.bbox.to_dict(), "segm": summary.segm.to_dict()}
    return metrics, seconds / len(records)


def main() -> None:
    """Train, save and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("data", type=Path, help="folder of train/, val/ and annotations/")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=float, help="minutes of training")
    budget.add_argument("--images", type=int, help="number of training samples")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--resume", action="store_true", help="continue an unfinished run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="mixed precision in training")
    parser.add_argument("--limit-images", type=int, help="evaluate on the first few images only")
    options = parser.parse_args()
    keep_for_reuse()  # as `meinst train` does
    torch.set_num_threads(2)
    torch.manual_seed(
        options.seed
    )  # initial weights, and torchvision's sampling of anchors and RoIs
    print(versions("meinst", "torch", "torchvision", "timm"), f"{torch.get_num_threads()} threads")

    setting, notes = SETTINGS[options.setting], options.data / "annotations"
    training = read_coco(notes / "train.json", options.data / "train")
    validation = read_coco(notes / "val.json", options.data / "val")
    assert training.category_ids == validation.category_ids
    model = build(setting, len(training.class_names))
    average, images, seconds = train(
        model, TrainingImages(training, setting, options.seed), options
    )
    state = {name: tensor.contiguous() for name, tensor in average.state_dict().items()}
    write_atomically(options.output / "ema.safetensors", save(state))
    metrics, latency = measure(average, validation, setting, options.limit_images)
    found = {
        "images": images,
        "minutes": seconds / 60,
        "seconds_per_training_image": seconds / images,
        "seconds_per_inference_image": latency,
        "parameters": sum(weight.numel() for weight in average.parameters()),
        "options": {name: str(value) for name, value in vars(options).items()},
        "setting": asdict(setting),
    }
    print(found)
    for limit, by_kind in metrics.items():
        for kind, summary in by_kind.items():
            shown = {name: summary[name] for name in summary if name != "per_class"}
            print(f"at most {limit} detections, {kind}:", shown)
    content = json.dumps({**found, "metrics": metrics}, indent=2)
    write_atomically(options.output / "metrics.json", content.encode())
    (options.output / STATE).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
