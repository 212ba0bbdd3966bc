"""YOLO's segmentation labels, to be corrected in annotation tools or trained on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from typing_extensions import override

from meinst.data.writers.layouts import yolo_description, yolo_line
from meinst.data.writers.masks import as_polygons
from meinst.files import open_atomically, remove_leftovers, write_atomically
from meinst.images.frames import Frame
from meinst.images.sources import ImageSource, to_file
from meinst.inference.writers.base import FolderWriter, PredictedImage, Run, file_name, save_frame


class YOLOWriter(FolderWriter):
    """``yolo/labels/NAME.txt``, ``yolo/data.yaml``, and links to the images in ``yolo/images``."""

    name = "yolo"
    suffix = ".txt"
    edited = True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._labels, self._images = self.folder / "labels", self.folder / "images"
        for folder in (self._labels, self._images):
            folder.mkdir(exist_ok=True)
            remove_leftovers(folder)
        description = yolo_description({"train": "images"}, run.class_names)
        write_atomically(self.folder / "data.yaml", description.encode())

    @override
    def write(self, image: PredictedImage) -> None:
        height, width = image.detections.image_size
        with open_atomically(self._labels / file_name(image.name, self.suffix)) as file:
            for _, detections in image.chunks():
                rows = zip(detections.labels.tolist(), detections.polygons(), strict=True)
                lines = (
                    yolo_line(label, as_polygons(parts), width, height)
                    for label, parts in rows
                    if parts
                )
                file.write("".join(lines).encode())
        if isinstance(image.source, Frame):
            save_frame(image, self._images)
        else:
            _link(image.source, self._images / file_name(image.name, image.source.suffix))


def _link(source: ImageSource, path: Path) -> None:
    """Make an image available under another name: a relative link, or else a copy.

    Raises:
        OSError: if it cannot be written.
    """
    path.unlink(missing_ok=True)
    if not isinstance(source, Path):
        write_atomically(path, to_file(source).read_bytes())
        return
    try:
        path.symlink_to(os.path.relpath(source.resolve(), path.parent.resolve()))
    except (OSError, ValueError, NotImplementedError):  # not all systems have or allow links
        with open_atomically(path) as file, source.open("rb") as content:
            shutil.copyfileobj(content, file)
