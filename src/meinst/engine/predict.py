"""A model on image files: an overlay of each, and all results in one COCO file."""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from meinst.data.images import load_image
from meinst.detector.meinst import Predictor
from meinst.engine.stream import EXPECTED, Found, find_in_each
from meinst.files import write_atomically

RESULTS, IMAGES = "predictions.json", "images.json"
_LONGEST = 65500  # pixels of a side that a JPEG file can have
_MARK, _HEAD = b"overlay by meinst", 256  # a comment, and within how many bytes it stands


@dataclass(frozen=True)
class ImageResult:
    """What became of one image.

    Attributes:
        source: the image file.
        overlay: the picture that was written; None if the image failed.
        counts: number of detections of each class that was found, most frequent first.
        milliseconds: since the image before was done, its overlay on disk included.
        error: why it failed; None if it did not.
    """

    source: Path
    overlay: Path | None
    counts: dict[str, int]
    milliseconds: float
    error: str | None = None


def predict_files(
    model: Predictor,
    sources: Sequence[Path],
    output: Path,
    *,
    score_threshold: float | None = None,
    max_detections: int | None = None,
    batch_size: int = 1,
    on_image: Callable[[ImageResult], None] | None = None,
) -> list[ImageResult]:
    """Segment image files in order and write what was found; the next are read meanwhile.

    The output folder then holds a JPEG overlay of each image, named after it,
    ``predictions.json`` (COCO results: ``image_id``, ``category_id``, ``bbox``, ``score``,
    ``segmentation`` as RLE of the original size) and ``images.json`` (which ids are which files
    and classes), so that ``COCO("images.json").loadRes("predictions.json")`` works (pycocotools
    cannot load an empty list). An image
    that fails is noted and left out; if all fail, neither JSON file is written. If the run is
    broken off, they hold what was done. Files are written whole or not at all, and nothing is
    overwritten but what an earlier run wrote: overlays tell so in a comment in the file.

    Args:
        model: in evaluation mode.
        sources: image files.
        output: folder; made if it is not there.
        score_threshold: smallest score of a detection, 0 to 1; the model's own if None.
        max_detections: most detections of an image; the model's own if None.
        batch_size: images that the network takes at once, where they have one size.
        on_image: called after each image.

    Returns:
        What became of each image, in the same order.

    Raises:
        OSError: if the folder or its JSON files cannot be written, or are of somebody else.
        ValueError: if a threshold is out of range.
    """
    given = {"score_threshold": score_threshold, "max_detections": max_detections}
    chosen = {name: value for name, value in given.items() if value is not None}
    selection = replace(model.selection, **chosen)  # type: ignore[arg-type]
    check_folder(output)
    names = overlay_names(sources, output)
    outcomes: list[ImageResult] = []
    results: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    stream = find_in_each(
        model,
        sources,
        load_image,
        batch_size=batch_size,
        score_threshold=selection.score_threshold,
        max_detections=selection.max_detections,
    )
    start = time.perf_counter()
    try:
        for image_id, (one, name) in enumerate(zip(stream, names, strict=True), start=1):
            counts: dict[str, int] = {}
            error = None
            try:
                image, found, counts = _write_overlay(one, image_id, output / name)
                images.append(image)
                results += found
            except EXPECTED as failure:
                error = str(failure) or type(failure).__name__
            end = time.perf_counter()
            overlay = None if error else output / name
            outcome = ImageResult(one.source, overlay, counts, (end - start) * 1000, error)
            start = end
            outcomes.append(outcome)
            if on_image is not None:
                on_image(outcome)
    finally:  # also of a run that is broken off: its overlays are there
        if images:
            _write_results(output, model.class_names, images, results)
    return outcomes


def _write_overlay(
    one: Found[Path], image_id: int, path: Path
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, int]]:
    """Draw one image's detections: its entry in ``images.json``, its results, its counts."""
    pixels, found = one.result()
    write_atomically(path, _jpeg(found.draw(pixels)))
    height, width = found.image_size
    image = {"id": image_id, "file_name": str(one.source), "width": width, "height": height}
    labels = Counter(found.class_names[label] for label in found.labels.tolist())
    return image | {"overlay": path.name}, found.to_coco(image_id), dict(labels.most_common())


def _write_results(
    output: Path,
    class_names: Sequence[str],
    images: list[dict[str, Any]],
    results: list[dict[str, Any]],
) -> None:
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
    content = {"images": images, "categories": categories, "annotations": []}
    write_atomically(output / RESULTS, json.dumps(results).encode())
    write_atomically(output / IMAGES, json.dumps(content, indent=1).encode())


def check_folder(folder: Path) -> None:
    """Make a folder and prove that a file can be written there.

    Raises:
        OSError: if that fails, with what to do about it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be written ({error.strerror}); choose another --output."
        ) from error


def overlay_names(sources: Sequence[Path], output: Path) -> list[str]:
    """A file name in ``output`` for each source: its stem, with a number where that is taken.

    Names that differ in case alone count as the same, for file systems that think so; the
    sources themselves are taken, and all else in the folder but what an earlier run wrote.

    Raises:
        FileExistsError: if the folder holds files named as the results that are none.
    """
    folder = output.resolve()
    _check_results(output)
    taken = {entry.name.casefold() for entry in folder.iterdir() if not _is_overlay(entry)}
    taken |= {source.name.casefold() for source in sources if source.resolve().parent == folder}
    names = []
    numbers: dict[str, int] = {}  # the last one tried, of each stem
    for source in sources:
        stem = source.stem.casefold()
        for number in count(numbers.get(stem, 1)):
            name = f"{source.stem}_{number}.jpg" if number > 1 else f"{source.stem}.jpg"
            if name.casefold() not in taken:
                break
        numbers[stem] = number
        taken.add(name.casefold())
        names.append(name)
    return names


def without_overlays(sources: Sequence[Path], output: Path) -> list[Path]:
    """The sources that are no overlays that earlier runs, whole or not, wrote in ``output``."""
    folder = output.resolve()
    return [
        source for source in sources if source.resolve().parent != folder or not _is_overlay(source)
    ]


def _is_overlay(path: Path) -> bool:
    """Whether :func:`predict_files` wrote a file: its overlays say so in a comment."""
    if path.suffix != ".jpg" or not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK in file.read(_HEAD)


def _check_results(output: Path) -> None:
    """Refuse to overwrite results of somebody else."""
    try:
        content = json.loads((output / IMAGES).read_bytes())
        if all("overlay" in image for image in content["images"]):
            return
    except FileNotFoundError:
        if not (output / RESULTS).exists():
            return
    except (ValueError, KeyError, TypeError):
        pass
    raise FileExistsError(
        f"{output}: holds an {IMAGES} or a {RESULTS} that is not of `meinst predict`; choose "
        "another --output."
    )


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_LONGEST, _LONGEST))  # smaller ones stay as they are
    image.save(buffer, format="JPEG", quality=92, subsampling=0, comment=_MARK)
    return buffer.getvalue()
