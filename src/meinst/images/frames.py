"""The frames of stacks, time series and animations as images of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeAlias

from meinst.images.extent import extent_of, image_extent
from meinst.images.readers import HEAD, is_tiff, open_image, open_tiff
from meinst.images.sources import ImageFile, ImageSource, to_file
from meinst.images.tiff_frames import OpenTiff, TiffFrames


@dataclass(frozen=True)
class Frame:
    """A frame of an image file, with the part of :class:`pathlib.Path` that writers use.

    Attributes:
        file: the file.
        index: number of the frame, from 0.
        position: its place in a stack or time series, such as ``(("t", 0), ("z", 3))``.
    """

    file: ImageSource
    index: int
    position: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.file}[{self.index}]"

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.file.name

    @property
    def stem(self) -> str:
        """The stem of the file with the number of the frame."""
        return f"{self.file.stem}_{self.index:04d}"

    @property
    def suffix(self) -> str:
        """The suffix of the file."""
        return self.file.suffix


PictureSource: TypeAlias = "ImageSource | Frame"
"""A file that is one picture, or a frame of one."""


def file_of(source: PictureSource) -> ImageSource:
    """The file that a picture comes from."""
    return source.file if isinstance(source, Frame) else source


@dataclass(frozen=True)
class FrameChoice:
    """Which frames of image files are used.

    Attributes:
        start: number of the first one, from 0.
        stop: number after the last one; None for all.
    """

    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        """Reject empty choices."""
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(f"frames must not be empty, got {self.start}:{self.stop}.")

    @classmethod
    def from_text(cls, text: str) -> FrameChoice:
        """Parse ``all``, a number, or ``A:B`` for the frames from A up to but without B.

        Raises:
            ValueError: if the text is none of these.
        """
        if text == "all":
            return cls()
        if match := re.fullmatch(r"\d+", text):
            return cls(int(text), int(text) + 1)
        if match := re.fullmatch(r"(\d*):(\d*)", text):
            return cls(int(match[1] or 0), int(match[2]) if match[2] else None)
        raise ValueError(
            "frames must be all, a number from 0, or A:B for those from A up to but without B, got "
            f"{text!r}."
        )

    def of(self, count: int) -> range:
        """The chosen frames of a file that has ``count``; the first chosen one if it has none."""
        stop = count if self.stop is None else min(self.stop, count)
        return range(self.start, max(stop, self.start + 1))


def expand_frames(sources: Iterable[ImageSource], choice: FrameChoice) -> Iterator[PictureSource]:
    """The chosen frames of all files; files of one frame, and those that cannot be read, as such.

    Args:
        sources: the files.
        choice: which frames; if a file does not have the first of them, reading it is an error.
    """
    for source in sources:
        try:
            count, positions = _frames_of(to_file(source))
        except Exception:  # reading it reports what is wrong
            count, positions = 1, None
        chosen = choice.of(count)
        if count == 1 and 0 in chosen:
            yield source
            continue
        for index in chosen:
            known = positions is not None and index < count
            position = tuple(positions.position(index).items()) if positions and known else ()
            yield Frame(source, index, position)


def _frames_of(file: ImageFile) -> tuple[int, TiffFrames | None]:
    """Number of frames, and where they are in a TIFF file."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if is_tiff(head):
        with closing(OpenTiff(open_tiff(file))) as tiff:
            try:
                return tiff.frames.frames, tiff.frames
            except Exception:  # metadata that contradict the pages
                return extent_of(tiff).frames, None
    with open_image(file) as image:
        return image_extent(file, image).frames, None
