"""A model for another engine: converted, quantised if asked for, checked, then written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from meinst.data.coco import CocoData
from meinst.data.images import ImageLike, Pixels, to_rgb
from meinst.data.transforms import resize_image
from meinst.detector.meinst import MEInst, Predictor
from meinst.engine.checkpoint import EXPORT_FORMAT, write_described
from meinst.engine.config import Recipe
from meinst.engine.evaluate import Metrics, evaluate
from meinst.engine.graphs import write_graph
from meinst.engine.quantise import quantise_graph
from meinst.engine.runtime import DESCRIPTION, GRAPHS, Format, is_export, load_exported
from meinst.ops.boxes import distances_to_boxes
from meinst.types import HeadOutputs

MAX_CALIBRATION = 300
MASK_LIMIT, SCORE_LIMIT, BOX_LIMIT = 1e-3, 1e-3, 0.05
_COMPARED = 300  # points of each picture, the best by score
_PICTURES = ((480, 640), (500, 375))  # their sizes, rows first


class ExportError(ValueError):
    """An export that was not written because it does not do what the model does."""


@dataclass(frozen=True)
class Differences:
    """The largest differences between what two models say of the same points.

    Attributes:
        masks: of soft masks, 0 to 1.
        scores: of scores, 0 to 1.
        boxes: of distances to the box's sides, in pixels that the network sees.
    """

    masks: float
    scores: float
    boxes: float

    def __str__(self) -> str:
        return f"soft masks {self.masks:.1g}, scores {self.scores:.1g}, boxes {self.boxes:.1g} px"


@dataclass(frozen=True)
class ExportReport:
    """What :func:`export_model` did.

    Attributes:
        folder: what was written.
        differences: between the graph in float and the model.
        float32: the metrics of the graph in float; None if there was no data.
        int8: those of the quantised graph; None if there is none, or no data.
    """

    folder: Path
    differences: Differences
    float32: Metrics | None
    int8: Metrics | None


def export_model(
    model: MEInst,
    output: Path,
    kind: Format = "openvino",
    *,
    calibration: Sequence[ImageLike] | None = None,
    data: CocoData | None = None,
    max_ap_drop: float = 1.0,
    seed: int = 0,
    recipe: Recipe | None = None,
    metrics: dict[str, Any] | None = None,
    on_step: Callable[[str, int], None] | None = None,
    on_image: Callable[[], None] | None = None,
) -> ExportReport:
    """Write a model's network for OpenVINO or ONNX Runtime, and beside it all else it needs.

    The folder is written whole or not at all, and only if the graph in float says what the model
    says of drawn pictures of two sizes. An older export in its place is replaced.

    Args:
        model: in evaluation mode.
        output: the folder.
        kind: whose graph it is.
        calibration: images with which the network is quantised to 8 bits; of more than
            :data:`MAX_CALIBRATION` so many are drawn. None for float.
        data: annotated images to measure the graph on, before it is quantised and after.
        max_ap_drop: points (hundredths) of mask AP that quantising may cost.
        seed: of the draw.
        recipe: how the model was trained, noted with it.
        metrics: what was measured of it, noted with it.
        on_step: called with what is done next, and how many images it measures (0: none).
        on_image: called after each image that was measured, for a progress bar.

    Raises:
        ExportError: if the graph differs from the model, or loses too much AP.
        OSError: if the folder holds anything else, or cannot be written.
        ImportError: if a package of the extra "export" is missing.
        RuntimeError: if the network cannot be recorded.
        ValueError: if a calibration image cannot be read.
    """
    tell = on_step or (lambda *_: None)
    _check_output(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    before = after = None
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".meinst.") as place:
        folder = _new_folder(place, "float32", model, recipe, metrics)
        tell(f"converting the network for {kind}", 0)
        write_graph(model, folder, kind)
        tell("comparing it with the model", 0)
        exported = load_exported(folder)
        differences = _check(model, exported)
        if data is not None:
            tell(f"measuring it on {len(data)} images", len(data))
            before = _measure(exported, data, on_image)
        if calibration is not None:
            chosen = _choose(calibration, seed)
            tell(f"quantising it with {len(chosen)} images", 0)
            source = folder / GRAPHS[kind]
            folder = _new_folder(place, "int8", model, recipe, metrics)
            quantise_graph(source, folder, kind, chosen, lambda image: _prepared(model, image))
            exported = load_exported(folder)
            if data is not None and before is not None:
                tell("measuring it again", len(data))
                after = _measure(exported, data, on_image)
                _check_ap(before.segm["AP"], after.segm["AP"], max_ap_drop)
        _replace(output, folder)
    return ExportReport(output, differences, before, after)


def _check_output(output: Path) -> None:
    if not output.exists():
        return
    there = {entry.name for entry in output.iterdir()} if output.is_dir() else {output.name}
    if there and not is_export(output):
        raise FileExistsError(
            f"{output} is there and no export, so it is not overwritten: choose another --output."
        )
    foreign = sorted(there - {DESCRIPTION, *GRAPHS.values(), "model.bin"})
    if foreign:
        raise FileExistsError(
            f"{output}: besides an export it holds {foreign[0]}, which would be lost: move that "
            "away, or choose another --output."
        )
    if output.is_mount() or output.resolve() == Path.cwd():
        raise FileExistsError(
            f"{output}: a folder that cannot be renamed; choose a new one in it as --output."
        )


def _new_folder(
    place: str, name: str, model: MEInst, recipe: Recipe | None, metrics: dict[str, Any] | None
) -> Path:
    """A folder with all of an export but the graph."""
    folder = Path(place, name)
    folder.mkdir()
    # What a Predictor needs beside its network.
    kept = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("codec.", "refiner."))
    }
    write_described(folder / DESCRIPTION, model, kept, EXPORT_FORMAT, recipe, metrics)
    return folder


def _replace(output: Path, folder: Path) -> None:
    """Move a folder to its place; an older one goes where the temporary folders are."""
    if not output.exists():
        folder.rename(output)
        return
    old = folder.with_name("old")
    output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        old.rename(output)
        raise


def _choose(images: Sequence[ImageLike], seed: int) -> list[ImageLike]:
    if not images:
        raise ValueError("there are no calibration images: quantising needs some.")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [images[i] for i in order[:MAX_CALIBRATION].tolist()]


def _prepared(model: MEInst, image: ImageLike) -> NDArray[np.float32]:
    """An image as the network takes it, ``(1, 3, H, W)``."""
    resized = torch.from_numpy(resize_image(to_rgb(image), model.image_size))
    pixels: NDArray[np.float32] = model.prepare([resized.permute(2, 0, 1)]).contiguous().numpy()
    return pixels


def _check(model: MEInst, exported: Predictor) -> Differences:
    """Compare what both say of drawn pictures.

    Raises:
        ExportError: if that differs by more than rounding explains.
    """
    each = [compare(model, exported, picture) for picture in _drawn_pictures()]
    # max() would pass over a NaN, a tensor's does not.
    masks, scores, boxes = torch.tensor(each).amax(0).tolist()
    found = Differences(masks, scores, boxes)
    if not (masks <= MASK_LIMIT and scores <= SCORE_LIMIT and boxes <= BOX_LIMIT):
        raise ExportError(
            f"nothing written: the exported network differs from the model ({found}; at most "
            f"{Differences(MASK_LIMIT, SCORE_LIMIT, BOX_LIMIT)} would be rounding)."
        )
    return found


@torch.inference_mode()
def compare(one: Predictor, other: Predictor, picture: Pixels) -> tuple[float, float, float]:
    """The largest differences between two models on a picture, at the best points of the first.

    Points are compared, not detections: two that are nearly as good may change places.

    Returns:
        As :class:`Differences`.
    """
    resized = torch.from_numpy(resize_image(picture, one.image_size)).permute(2, 0, 1)
    outputs = [model([resized]) for model in (one, other)]
    scores = [
        (outputs.logits[0].sigmoid() * outputs.centerness[0, :, None].sigmoid()).sqrt()
        for outputs in outputs
    ]  # (P, C) each
    best, labels = scores[0].max(1)
    points = best.topk(min(_COMPARED, len(best))).indices
    strides = outputs[0].strides[points, None]
    distances = [said.boxes[0, points] * strides for said in outputs]
    boxes = distances_to_boxes(outputs[0].points[points], distances[0])
    masks = [
        _soft_masks(model, said, points, labels[points], boxes)
        for model, said in zip((one, other), outputs, strict=True)
    ]

    def largest(first: Tensor, second: Tensor) -> float:
        return float((first - second).abs().max())

    return (
        largest(*masks),
        largest(scores[0], scores[1]),
        largest(*distances),
    )


def _soft_masks(
    model: Predictor, outputs: HeadOutputs, points: Tensor, labels: Tensor, boxes: Tensor
) -> Tensor:
    codes = outputs.codes[torch.zeros_like(points), points]
    if model.refiner is None:
        return model.codec.inverse_transform(codes, labels)
    logits = model.codec.inverse_logits(codes, labels)
    added = model.refiner.correct(outputs, torch.zeros_like(points), boxes, logits)
    soft: Tensor = (logits + added).sigmoid()
    return soft


def _drawn_pictures() -> Iterator[Pixels]:
    """Coloured clouds with some noise, the same every time."""
    rng = np.random.default_rng(0)
    for height, width in _PICTURES:
        small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        clouds = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int64)
        noisy = clouds + rng.integers(-10, 11, clouds.shape)
        yield noisy.clip(0, 255).astype(np.uint8)


def _measure(exported: Predictor, data: CocoData, on_image: Callable[[], None] | None) -> Metrics:
    """Evaluate on data that can tell something.

    Raises:
        ExportError: if an image fails, or there is nothing to find: such figures would hide a loss.
    """
    found = evaluate(exported, data, on_image=on_image)
    if found.failures:
        raise ExportError(
            f"nothing written: {len(found.failures)} of {found.images} images of "
            f"{data.annotations} cannot be measured, the first: {found.failures[0].reason} Repair "
            "them or take them out of the annotations."
        )
    if found.segm["AP"] is None:
        raise ExportError(
            f"nothing written: {data.annotations} has no object of the model's classes, so nothing "
            "can be measured: give others, or none."
        )
    return found


def _check_ap(before: float, after: float, max_drop: float) -> None:
    """Compare mask AP.

    Raises:
        ExportError: if too much of it is lost.
    """
    drop = 100 * (before - after)
    if drop > max_drop:
        raise ExportError(
            f"nothing written: with 8 bits the mask AP falls from {before:.3f} to {after:.3f}, by "
            f"{drop:.1f} points, and {max_drop:g} are allowed: calibrate with more images like "
            "those to be segmented, export in float, or allow more (--max-ap-drop)."
        )
