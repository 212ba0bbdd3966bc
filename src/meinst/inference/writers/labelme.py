"""labelme's JSON files, to be corrected by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from meinst.data.writers.layouts import labelme_content, labelme_shapes
from meinst.data.writers.masks import as_polygons
from meinst.files import open_atomically
from meinst.images.frames import Frame
from meinst.images.sources import ImageSource
from meinst.inference.writers.base import FolderWriter, PredictedImage, save_frame


class LabelmeWriter(FolderWriter):
    """``labelme/NAME.json`` with the path of the image; the score is each shape's description."""

    name = "labelme"
    suffix = ".json"
    edited = True

    @override
    def write(self, image: PredictedImage) -> None:
        height, width = image.detections.image_size
        if isinstance(image.source, Frame):
            path = save_frame(image, self.folder)
        else:
            path = _relative(image.source, self.folder)
        text = json.dumps(labelme_content([], path, width, height), ensure_ascii=False)
        head, brackets, tail = text.partition('"shapes": []')
        with open_atomically(self.path(image)) as file:
            file.write((head + brackets[:-1]).encode())
            separator = b"\n"
            for shape in _shapes(image):
                file.write(separator + json.dumps(shape, ensure_ascii=False).encode())
                separator = b",\n"
            file.write(b"\n]" + tail.encode(errors="surrogateescape"))


def _shapes(image: PredictedImage) -> Iterator[dict[str, Any]]:
    """The shapes of all detections, one after the other."""
    for start, detections in image.chunks():
        rows = zip(
            detections.labels.tolist(),
            detections.scores.tolist(),
            detections.polygons(),
            strict=True,
        )
        for n, (label, score, parts) in enumerate(rows, start + 1):
            if parts:
                name = detections.class_names[label]
                yield from labelme_shapes(name, as_polygons(parts), n, f"score {score:.4f}")


def _relative(source: ImageSource, folder: Path) -> str:
    """The path of an image from a folder, with slashes; or its address."""
    if not isinstance(source, Path):
        return str(source)
    try:
        return Path(os.path.relpath(source.resolve(), folder.resolve())).as_posix()
    except ValueError:  # on another drive
        return source.resolve().as_posix()
