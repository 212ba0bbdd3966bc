"""Overlays, results in COCO's format, and the names of all files of a run."""

from __future__ import annotations

import io
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from meinst.detections import Detections
from meinst.files import open_atomically, write_atomically
from meinst.images.frames import PictureSource, file_of
from meinst.images.sources import ImageSource
from meinst.inference.journal import Row

RESULTS, IMAGES = "predictions.json", "images.json"
_DECODED = 20_000  # masks that are kept decoded
_MAX_SIDE = 65500  # limit of JPEG, in pixels
# Overlays contain this comment, within the first bytes of the file.
_COMMENT, _HEADER_BYTES = b"overlay by meinst", 256
_FIRST_IMAGE_BYTES = 1 << 16  # more than the first entry of images.json takes


def write_overlay(
    pixels: np.ndarray, detections: Detections, path: Path, soft_masks: Tensor | None = None
) -> None:
    """Draw an image's detections and write the overlay.

    Args:
        pixels: ``(H, W, 3)`` uint8 RGB; a reduced copy of large images.
        detections: the detections.
        path: the overlay, a JPEG file.
        soft_masks: their decoded masks, if there are any.
    """
    write_atomically(path, _jpeg(detections.draw(pixels, soft_masks=soft_masks)))


def write_images(output: Path, class_names: Sequence[str], rows: Iterable[Row]) -> None:
    """Write ``images.json`` row by row; memory does not grow with them.

    Args:
        output: the folder.
        class_names: names of the model's classes.
        rows: the content of the file, image by image.
    """
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)]
    rest = json.dumps({"categories": categories, "annotations": []}, indent=1)
    with open_atomically(output / IMAGES) as file:
        file.write(b'{\n "images": [')
        separator = ""
        for row in rows:
            if row.image is not None:
                entry = textwrap.indent(json.dumps(row.image, indent=1), "  ")
                file.write(f"{separator}\n{entry}".encode())
                separator = ","
        file.write(("\n ]," if separator else "],").encode() + rest[1:].encode())


def overlay_names(sources: Sequence[PictureSource], output: Path) -> list[str]:
    """A file name in ``output`` for each source: its stem, with a number if that is taken.

    Names that differ only in case count as equal, as on case-insensitive file systems. The sources
    themselves are taken, and so is every file in the folder that an earlier run did not write.

    Raises:
        FileExistsError: if the folder holds results that ``meinst predict`` did not write.
    """
    folder = output.resolve()
    _check_results(output)
    taken = {entry.name.casefold() for entry in folder.iterdir() if not _is_overlay(entry)}
    taken |= {file.name.casefold() for file in map(file_of, sources) if _is_in(file, folder)}
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


def without_overlays(sources: Sequence[ImageSource], output: Path) -> list[ImageSource]:
    """The sources without overlays that earlier runs wrote to ``output``."""
    folder = output.resolve()
    return [
        source
        for source in sources
        if not (isinstance(source, Path) and _is_in(source, folder) and _is_overlay(source))
    ]


def _is_in(source: ImageSource, folder: Path) -> bool:
    """Whether a source is a file directly in a resolved folder."""
    return isinstance(source, Path) and source.resolve().parent == folder


def _is_overlay(path: Path) -> bool:
    """Whether a file is an overlay of ``meinst predict``, by the comment in it."""
    if path.suffix != ".jpg" or not path.is_file():
        return False
    with path.open("rb") as file:
        return _COMMENT in file.read(_HEADER_BYTES)


def _check_results(output: Path) -> None:
    """Refuse to overwrite results of another program."""
    path = output / IMAGES
    own = _lists_overlays(path) if path.exists() else not (output / RESULTS).exists()
    if not own:
        raise FileExistsError(
            f"{output} contains an {IMAGES} or {RESULTS} that `meinst predict` did not write; "
            "choose another --output."
        )


def _lists_overlays(path: Path) -> bool:
    """Whether a file is an ``images.json`` of this module, by its first image."""
    with path.open("rb") as file:
        head = file.read(_FIRST_IMAGE_BYTES).decode(errors="replace")
    start = re.match(r'\{\s*"images": \[\s*', head)
    if start is None:
        return False
    if head.startswith("]", start.end()):
        return True
    try:
        image, _ = json.JSONDecoder().raw_decode(head, start.end())
    except ValueError:
        return False
    return isinstance(image, dict) and "overlay" in image


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))  # smaller images are not changed
    image.save(buffer, format="JPEG", quality=92, subsampling=0, comment=_COMMENT)
    return buffer.getvalue()
