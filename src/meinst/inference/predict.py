"""Predict on image files: an overlay for each image, and all results in one COCO file."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from meinst.data.images import read_image
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.files import check_folder
from meinst.images.notes import NO_NOTES, ImageNotes
from meinst.inference.prefetch import IMAGE_ERRORS, PredictionResult, predict_iter
from meinst.inference.results import overlay_names, write_overlay, write_results


@dataclass(frozen=True)
class ImageResult:
    """Outcome of one image.

    Attributes:
        source: the image file.
        overlay: the overlay that was written; None if the image failed.
        counts: number of detections of each class found, most frequent first.
        milliseconds: time since the previous image was done, including writing its overlay.
        error: why the image failed; None if it did not.
        notes: how the image was read and resized.
    """

    source: Path
    overlay: Path | None
    counts: dict[str, int]
    milliseconds: float
    error: str | None = None
    notes: ImageNotes = NO_NOTES


def predict_files(
    model: Predictor,
    sources: Sequence[Path],
    output: Path,
    *,
    selection: SelectOptions | None = None,
    batch_size: int = 1,
    on_image: Callable[[ImageResult], None] | None = None,
) -> list[ImageResult]:
    """Segment image files in order and write the results; the next images are read meanwhile.

    Writes a JPEG overlay of each image, ``predictions.json`` (COCO results) and ``images.json``
    (the files and classes of the ids). If the run is interrupted, they contain what was done.

    Args:
        model: in evaluation mode.
        sources: image files.
        output: folder; created if it does not exist.
        selection: what counts as a detection; the model's own if None.
        batch_size: images per forward pass, where they have the same size.
        on_image: called after each image.

    Returns:
        The outcome of each image, in order.

    Raises:
        OSError: if the output cannot be written, or belongs to another program.
    """
    check_folder(output)
    paths = [output / name for name in overlay_names(sources, output)]
    outcomes: list[ImageResult] = []
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    read = partial(read_image, options=model.input_options)
    predictions = predict_iter(model, sources, read, batch_size=batch_size, selection=selection)
    try:
        for outcome in _write_all(predictions, paths, images, results):
            outcomes.append(outcome)
            if on_image is not None:
                on_image(outcome)
    finally:  # also if the run is interrupted, since the overlays exist
        if images:
            write_results(output, model.class_names, images, results)
    return outcomes


def _write_all(
    predictions: Iterable[PredictionResult[Path]],
    paths: Sequence[Path],
    images: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> Iterator[ImageResult]:
    """Write one overlay after the other and time them."""
    start = time.perf_counter()
    for image_id, (prediction, path) in enumerate(zip(predictions, paths, strict=True), start=1):
        outcome = _write(prediction, image_id, path, images, results)
        end = time.perf_counter()
        yield replace(outcome, milliseconds=(end - start) * 1000)
        start = end


def _write(
    prediction: PredictionResult[Path],
    image_id: int,
    path: Path,
    images: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> ImageResult:
    """Write the overlay of one image and append its results; an error is part of the outcome."""
    source = prediction.source
    try:
        pixels, detections = prediction.result()
        image, found = write_overlay(pixels, detections, image_id, source, path)
    except IMAGE_ERRORS as error:
        return ImageResult(source, None, {}, 0.0, str(error) or type(error).__name__)
    if prediction.notes.stretch is not None:
        image["intensity"] = prediction.notes.stretch.to_dict()
    images.append(image)
    results += found
    labels = (detections.class_names[label] for label in detections.labels.tolist())
    counts = dict(Counter(labels).most_common())
    return ImageResult(source, path, counts, 0.0, notes=prediction.notes)
