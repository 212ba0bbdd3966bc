"""What prediction writes to its output folder: overlays, and results in COCO's format."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from meinst.detections import Detections
from meinst.files import write_atomically

RESULTS, IMAGES = "predictions.json", "images.json"
_MAX_SIDE = 65500  # limit of JPEG, in pixels
# Overlays contain this comment, within the first bytes of the file.
_COMMENT, _HEADER_BYTES = b"overlay by meinst", 256


def write_overlay(
    pixels: np.ndarray, detections: Detections, image_id: int, source: Path, path: Path
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw an image's detections, write the overlay, and convert the detections to COCO results.

    Args:
        pixels: ``(H, W, 3)`` uint8 RGB.
        detections: the detections.
        image_id: id of the image in the results.
        source: the image file.
        path: the overlay, a JPEG file.

    Returns:
        The image's entry for ``images.json``, and its COCO results.
    """
    soft_masks = detections.soft_masks()  # decoded once for both
    write_atomically(path, _jpeg(detections.draw(pixels, soft_masks=soft_masks)))
    height, width = detections.image_size
    image = {"id": image_id, "file_name": str(source), "width": width, "height": height}
    results = detections.to_coco(image_id, soft_masks=soft_masks)
    return image | {"overlay": path.name}, results


def write_results(
    output: Path,
    class_names: Sequence[str],
    images: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
) -> None:
    """Write ``predictions.json`` and ``images.json``."""
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
    content = {"images": images, "categories": categories, "annotations": []}
    write_atomically(output / RESULTS, json.dumps(results).encode())
    write_atomically(output / IMAGES, json.dumps(content, indent=1).encode())


def overlay_names(sources: Sequence[Path], output: Path) -> list[str]:
    """A file name in ``output`` for each source: its stem, with a number if that is taken.

    Names that differ only in case count as equal, as on case-insensitive file systems. The sources
    themselves are taken, and so is every file in the folder that an earlier run did not write.

    Raises:
        FileExistsError: if the folder holds results that ``meinst predict`` did not write.
    """
    folder = output.resolve()
    _check_results(output)
    taken = {entry.name.casefold() for entry in folder.iterdir() if not _is_overlay(entry)}
    taken |= {source.name.casefold() for source in sources if source.resolve().parent == folder}
    names = []
    numbers: dict[str, int] = {}  # last number tried for each stem
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
    """The sources without overlays that earlier runs wrote to ``output``."""
    folder = output.resolve()
    return [
        source for source in sources if source.resolve().parent != folder or not _is_overlay(source)
    ]


def _is_overlay(path: Path) -> bool:
    """Whether a file is an overlay of ``meinst predict``, by the comment in it."""
    if path.suffix != ".jpg" or not path.is_file():
        return False
    with path.open("rb") as file:
        return _COMMENT in file.read(_HEADER_BYTES)


def _check_results(output: Path) -> None:
    """Refuse to overwrite results of another program."""
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
        f"{output}: contains an {IMAGES} or {RESULTS} that `meinst predict` did not write; choose "
        "another --output."
    )


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))  # smaller images are not changed
    image.save(buffer, format="JPEG", quality=92, subsampling=0, comment=_COMMENT)
    return buffer.getvalue()
