"""What all output formats share: the interface of a writer, and the image that it is given."""

from __future__ import annotations

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from torch import Tensor
from typing_extensions import override

from meinst.data.channels import read_pixel_size
from meinst.detections import Detections
from meinst.files import remove_leftovers, write_atomically
from meinst.images.frames import PictureSource
from meinst.images.notes import NO_NOTES, ImageNotes
from meinst.images.rgb import Pixels
from meinst.inference.journal import Journal, Row

CHUNK = 1024
"""Detections whose masks are decoded at once, so that memory does not grow with their number."""

_MOST_DECODED = 20_000  # masks that are kept decoded
# Of TIFF files, which may state the size of a pixel and have channels of their own.
_TIFF_SUFFIXES = (".tif", ".tf8", ".btf", ".svs", ".ndpi", ".scn", ".bif", ".lsm", ".stk")
_MARK = ".meinst-predictions"  # in folders that this package fills
_LONGEST_NAME = 255  # bytes; the limit of common file systems


@dataclass(frozen=True, eq=False)
class Run:
    """What writers know of the run.

    Attributes:
        output: the folder of the results.
        class_names: names of the model's classes.
        model: the fingerprint of the model.
        journal: what was done.
    """

    output: Path
    class_names: tuple[str, ...]
    model: str
    journal: Journal


@dataclass(frozen=True, eq=False)
class PredictedImage:
    """An image and what was found in it.

    Attributes:
        source: the image file, or its frame.
        name: a name without suffix that no other image of the run has.
        pixels: ``(H, W, 3)`` uint8 RGB.
        detections: the detections.
        row: the image's line in the journal; writers add to it what they need at the end.
        notes: how the image was read and resized.
    """

    source: PictureSource
    name: str
    pixels: Pixels
    detections: Detections
    row: Row
    notes: ImageNotes = NO_NOTES

    @property
    def id(self) -> int:
        """Id of the image in the results, from 1 on."""
        assert self.row.image is not None
        number: int = self.row.image["id"]
        return number

    @cached_property
    def soft_masks(self) -> Tensor | None:
        """The masks ``(N, S, S)``, decoded once for several writers; None if there are many."""
        few = len(self.detections) <= _MOST_DECODED
        return self.detections.soft_masks() if few else None

    @property
    def is_tiff(self) -> bool:
        """Whether the source is a TIFF file, by its suffix."""
        return self.source.suffix.lower().startswith(_TIFF_SUFFIXES)

    @cached_property
    def pixel_size(self) -> float | None:
        """Side of a pixel in micrometres; None if the file does not state it."""
        if not self.is_tiff:
            return None
        return read_pixel_size(self.source)

    def chunks(self) -> Iterator[tuple[int, Detections]]:
        """The detections in groups of at most ``CHUNK``, each with the index of its first."""
        start = 0
        for part in self.detections.parts(CHUNK):
            yield start, part
            start += len(part)


class Writer(ABC):
    """Writes the results of a run in one format, image after image.

    A writer is opened once for a run. In a resumed run, it continues after the last row of the
    journal: what an interrupted run wrote of later images is overwritten or dropped.

    Args:
        run: the run, whose journal is open.
    """

    name: ClassVar[str]
    """Name of the format in ``--save``."""

    def __init__(self, run: Run) -> None:
        self.run = run

    @classmethod  # noqa: B027
    def check(cls, output: Path, *, unfinished: bool) -> None:
        """Reject existing files that must not be replaced, before the run begins.

        Args:
            output: the folder of the results.
            unfinished: whether they are those of a run that ended early.

        Raises:
            FileExistsError: if there are any.
        """

    @abstractmethod
    def write(self, image: PredictedImage) -> None:
        """Write the results of one image.

        Raises:
            OSError: if they cannot be written.
        """

    def rollback(self) -> None:  # noqa: B027  (only files of many images need it)
        """Drop what was written of an image that is not in the journal, because it failed."""

    def finish(self) -> None:  # noqa: B027
        """Write the files that concern all images in the journal, also of an interrupted run."""

    def close(self) -> None:  # noqa: B027
        """Close the files that are open for the whole run."""


class FolderWriter(Writer):
    """A format with files for each image, in a folder of its own.

    Files are replaced as a whole, so a resumed run simply writes those of the last image again.
    """

    suffix: ClassVar[str]
    """Suffix of the files."""
    edited: ClassVar[bool] = False
    """Whether the files are made to be edited, so that no later run may replace them."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.folder = run.output / self.name
        self.folder.mkdir(exist_ok=True)
        remove_leftovers(self.folder)
        write_atomically(self.folder / _MARK, b"")

    @classmethod
    @override
    def check(cls, output: Path, *, unfinished: bool) -> None:
        folder = output / cls.name
        if not folder.exists():
            return
        marked = (folder / _MARK).exists()
        if not marked and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(
                f"{folder} contains files that `meinst predict` did not write; choose another "
                "--output."
            )
        if cls.edited and marked and not unfinished:
            raise FileExistsError(
                f"{folder} contains labels of an earlier run, which may have been corrected; "
                "choose another --output, or remove the folder."
            )

    def path(self, image: PredictedImage) -> Path:
        """The file of an image."""
        return self.folder / file_name(image.name, self.suffix)


def file_name(stem: str, suffix: str) -> str:
    """A file name; long stems are cut and stay different by a digest."""
    encoded = stem.encode(errors="surrogateescape")
    room = _LONGEST_NAME - len(suffix.encode())
    if len(encoded) <= room:
        return stem + suffix
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return encoded[: room - 17].decode(errors="ignore") + "-" + digest + suffix


def save_frame(image: PredictedImage, folder: Path) -> str:
    """Write a frame of a stack as a PNG file, for labels that need a file for each image.

    Returns:
        The name of the file.

    Raises:
        ValueError: if only a reduced copy of the frame is at hand.
    """
    height, width = image.detections.image_size
    if image.pixels.shape[:2] != (height, width):
        raise ValueError(
            f"{image.source}: frames of {width} x {height} pixels cannot be saved with their "
            "labels; save each as a file and predict those."
        )
    name = file_name(image.name, ".png")
    buffer = io.BytesIO()
    Image.fromarray(image.pixels).save(buffer, format="PNG")
    write_atomically(folder / name, buffer.getvalue())
    return name


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A tensor's values, on the CPU."""
    values: np.ndarray = tensor.detach().cpu().numpy()
    return values
