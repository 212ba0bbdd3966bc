"""Export a model to another engine: convert, quantize on request, check, then write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from meinst.data.coco import CocoData
from meinst.data.inputs import ImageInput
from meinst.detector.meinst import MEInst
from meinst.export.checks import Differences, check_ap, check_outputs, measure
from meinst.export.graphs import write_graph
from meinst.export.quantization import quantize_graph
from meinst.inference.evaluate import Metrics
from meinst.locks import hidden_sibling, lock_file
from meinst.models.exported import DESCRIPTION, GRAPHS, Format, is_export, load_exported
from meinst.models.model_file import EXPORT_FORMAT, write_model_file

MAX_CALIBRATION = 300
OLD = "old"  # the older export, until the new one is in its place


@dataclass(frozen=True)
class ExportReport:
    """Result of :func:`export_model`.

    Attributes:
        folder: the export.
        differences: between the outputs of the graph in float32 and of the model.
        float32: metrics of the graph in float32; None without data.
        int8: metrics of the quantized graph; None if there is none, or without data.
    """

    folder: Path
    differences: Differences
    float32: Metrics | None
    int8: Metrics | None


def export_model(
    model: MEInst,
    output: str | Path,
    engine: Format = "openvino",
    *,
    calibration: Sequence[ImageInput] | None = None,
    data: CocoData | None = None,
    max_ap_drop: float = 1.0,
    seed: int = 0,
    on_step: Callable[[str, int], None] | None = None,
    on_image: Callable[[], None] | None = None,
) -> ExportReport:
    """Write a model's network for OpenVINO or ONNX Runtime, with everything else it needs.

    The folder is written completely or not at all, and only if the graph in float32 and the model
    agree on synthetic pictures. An older export is replaced.

    Args:
        model: in evaluation mode, not fused.
        output: the folder.
        engine: OpenVINO or ONNX.
        calibration: images for quantizing to 8 bits, of which at most :data:`MAX_CALIBRATION` are
            used; None for float32.
        data: annotated images on which to evaluate the graph, before and after quantization.
        max_ap_drop: points (hundredths) of mask AP that quantization may cost.
        seed: seed of the choice of calibration images.
        on_step: called before each step with its description and the number of images it evaluates.
        on_image: called after each evaluated image, for a progress bar.

    Raises:
        ExportError: if the graph differs from the model, or loses too much AP.
        OSError: if the folder contains anything else, or cannot be written.
        ImportError: if a package of the extra "export" is missing.
        RuntimeError: if torch cannot export the network.
        ValueError: if the model is fused, or a calibration image cannot be read.
    """
    output = Path(output)
    report_step = on_step or (lambda *_: None)
    _check_export(model, output)
    before = after = None
    with _work_folder(output) as work:
        folder = _new_folder(work, "float32", model)
        report_step(f"converting the network to {engine}", 0)
        write_graph(model, folder, engine)
        report_step("comparing it with the model", 0)
        exported = load_exported(folder)
        differences = check_outputs(model, exported)
        if data is not None:
            report_step(f"evaluating it on {len(data)} images", len(data))
            before = measure(exported, data, on_image)
        if calibration is not None:
            images = _choose(calibration, seed)
            report_step(f"quantizing it with {len(images)} images", 0)
            folder = _quantize(model, folder, engine, images)
            if data is not None and before is not None:
                report_step("evaluating it again", len(data))
                after = measure(load_exported(folder), data, on_image)
                check_ap(before.segm.ap or 0.0, after.segm.ap or 0.0, max_ap_drop)
        _replace(output, folder)
    return ExportReport(output, differences, before, after)


@contextmanager
def _work_folder(output: Path) -> Iterator[Path]:
    """An empty folder beside the export, removed afterwards; nobody else may export there.

    If an earlier run was killed, its folder is removed, and an export that it had moved there is
    moved back.

    Raises:
        BlockingIOError: if another process exports to the same folder.
    """
    with lock_file(output):
        work = hidden_sibling(output, ".meinst-export")
        old = work / OLD
        if old.exists() and not output.exists():
            old.rename(output)
        if work.exists():
            shutil.rmtree(work)
        work.mkdir()
        try:
            yield work
        finally:
            shutil.rmtree(work)


def _check_export(model: MEInst, output: Path) -> None:
    """Reject fused models, and folders that contain anything but an export; create the parent.

    Raises:
        ValueError: if the model is fused.
        FileExistsError: if there is anything else.
    """
    if model.fused:
        raise ValueError("a fused model cannot be exported; load it again without calling fuse().")
    output.parent.mkdir(parents=True, exist_ok=True)
    if not output.exists():
        return
    content = {entry.name for entry in output.iterdir()} if output.is_dir() else {output.name}
    if content and not is_export(output):
        raise FileExistsError(
            f"{output} exists and is not an export, so it is not overwritten; choose another "
            "--output."
        )
    foreign = sorted(content - {DESCRIPTION, *GRAPHS.values(), "model.bin"})
    if foreign:
        raise FileExistsError(
            f"{output} also contains {foreign[0]}, which is not part of an export and would be "
            "lost; move it away, or choose another --output."
        )
    if output.is_mount() or output.resolve() == Path.cwd():
        raise FileExistsError(
            f"{output} is the current folder or a mount point, which cannot be replaced; choose a "
            "folder inside it as --output."
        )


def _new_folder(parent: Path, name: str, model: MEInst) -> Path:
    """A folder with everything in an export but the graph."""
    folder = parent / name
    folder.mkdir()
    # What a Predictor needs besides its network.
    tensors = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("codec.", "refiner."))
    }
    write_model_file(folder / DESCRIPTION, model, tensors, EXPORT_FORMAT)
    return folder


def _quantize(model: MEInst, folder: Path, engine: Format, images: Sequence[ImageInput]) -> Path:
    """A folder beside another with its graph in 8 bits."""
    quantized = _new_folder(folder.parent, "int8", model)
    source = folder / GRAPHS[engine]
    quantize_graph(source, quantized, engine, images, lambda image: _prepared(model, image))
    load_exported(quantized)  # raises an error if the engine cannot open the graph
    return quantized


def _replace(output: Path, folder: Path) -> None:
    """Move a folder into place; an older one goes to the folder of :func:`_work_folder`."""
    for path in folder.iterdir():  # on the disk before the older one is moved
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    if not output.exists():
        folder.rename(output)
        return
    old = folder.with_name(OLD)
    output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        old.rename(output)
        raise


def _choose(images: Sequence[ImageInput], seed: int) -> list[ImageInput]:
    if not images:
        raise ValueError("quantization needs calibration images, got none.")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return [images[i] for i in order[:MAX_CALIBRATION].tolist()]


def _prepared(model: MEInst, image: ImageInput) -> NDArray[np.float32]:
    """An image in the form that the network takes, ``(1, 3, H, W)``."""
    resized = torch.from_numpy(model.resize(image).resized)
    pixels: NDArray[np.float32] = model.prepare([resized.permute(2, 0, 1)]).contiguous().numpy()
    return pixels
