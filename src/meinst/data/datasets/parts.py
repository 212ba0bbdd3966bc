"""What the layouts have in common: parts of a data set, and errors about them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from meinst.data.coco import CocoData
from meinst.data.images import ImageError, upright_size
from meinst.data.label_image import read_labels
from meinst.images.search import IMAGE_SUFFIXES
from meinst.options import FileError, first_few

TRAIN, VAL, TEST = "train", "val", "test"
WHOLE = "all"
"""Name of the only part of a data set that is not divided."""

_LARGE = 2**24  # pixels

_NAMES = {
    "train": TRAIN,
    "training": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
    "testing": TEST,
}


class DatasetError(FileError):
    """A data set that cannot be used."""


@dataclass(frozen=True)
class ReadOptions:
    """How annotations are read.

    Attributes:
        crowd_as_instances: read crowd regions as ordinary instances.
        allow_outside: allow file names that lead out of the image folder.
        boxes_alone: read objects with a box and no mask, too.
    """

    crowd_as_instances: bool = False
    allow_outside: bool = False
    boxes_alone: bool = False


@dataclass(frozen=True)
class Part:
    """A part of a data set that was found but not read.

    Attributes:
        source: its annotation file or folder, for messages.
        read: reads and checks it.
    """

    source: Path
    read: Callable[[ReadOptions], CocoData]


@dataclass(frozen=True)
class LayoutMatch:
    """What a layout found in a folder.

    Attributes:
        parts: the parts by name; empty if the folder does not have this layout.
        missing: if something but not all of the layout is there: what is there, and what is not.
    """

    parts: Mapping[str, Part] = field(default_factory=dict)
    missing: str = ""


NO_MATCH = LayoutMatch()


def part_name(text: str) -> str | None:
    """The part that a file or folder name stands for: train, val or test; None if for none."""
    words = re.split(r"[^a-z]+", text.lower())
    names = {_NAMES[word] for word in words if word in _NAMES}
    return names.pop() if len(names) == 1 else None


def name_parts(sources: Sequence[Path], root: Path) -> dict[str, Path]:
    """Name the parts that files or folders hold, by their own name or that of their folder.

    Raises:
        DatasetError: if two are the same part, or one of several has no name.
    """
    if len(sources) == 1:
        return {_name_of(sources[0], root) or WHOLE: sources[0]}
    named: dict[str, Path] = {}
    for source in sources:
        name = _name_of(source, root)
        if name is None:
            raise DatasetError(
                f"{root}: {source.relative_to(root)} is none of train, val and test, but there are "
                f"{len(sources)} parts; name files or folders after their part, or give one file."
            )
        if name in named:
            both = f"{named[name].relative_to(root)} and {source.relative_to(root)}"
            raise DatasetError(f"{root}: {both} are both the part {name}; give one of them.")
        named[name] = source
    return named


def _name_of(source: Path, root: Path) -> str | None:
    relative = source.relative_to(root) if source.is_relative_to(root) else Path(source.name)
    names = [relative.stem, *reversed(relative.parent.parts)]
    return next((name for name in map(part_name, names) if name), None)


def list_images(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Images in a folder and its subfolders, by suffix, sorted; hidden ones are left out."""
    files = list_files(folder, recursive=recursive)
    return [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]


def list_files(folder: Path, *, recursive: bool = True) -> list[Path]:
    """Files in a folder and its subfolders, sorted; hidden ones are left out."""
    found: list[str] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [os.path.join(parent, name) for name in names if not name.startswith(".")]  # noqa: PTH118
    return [Path(name) for name in sorted(found)]


def by_stem(paths: Iterable[Path], folder: Path) -> dict[str, Path]:
    """Files by their path relative to a folder, without the suffix.

    Raises:
        DatasetError: if two files differ in the suffix only.
    """
    found: dict[str, Path] = {}
    for path in paths:
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise DatasetError(
                f"{folder}: {found[stem].name} and {path.name} differ in their suffix only, so it "
                "is unclear which one is labelled; remove or rename one."
            )
        found[stem] = path
    return found


def read_text(path: Path) -> str:
    """The content of a text file.

    Raises:
        DatasetError: if it is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text (UTF-8); save it as text.") from error


def read_label_file(path: Path, image: Path) -> NDArray[Any]:
    """The values of a label image; see :func:`meinst.data.label_image.read_labels`.

    Args:
        path: the label image.
        image: the image that it belongs to.

    Raises:
        DatasetError: if it cannot be read, or is large and of another size than its image.
    """
    try:
        width, height = upright_size(path)
        if width * height > _LARGE:  # compared before memory is allocated for it
            expected = upright_size(image)
            if expected != (width, height):
                raise DatasetError(
                    f"{path} has {width} x {height} pixels, its image {image} has "
                    f"{expected[0]} x {expected[1]}; use the label image of this image."
                )
        return read_labels(path)
    except ImageError as error:
        raise DatasetError(str(error)) from error


def reject_unpaired(folder: Path, unpaired: Sequence[str], what: str, remedy: str) -> None:
    """Reject files that have no counterpart.

    Args:
        folder: where they are.
        unpaired: their names; nothing happens if there are none.
        what: what they are and lack, for example "label files without an image".
        remedy: what to do.

    Raises:
        DatasetError: naming the first few.
    """
    if unpaired:
        names = first_few(unpaired, 3)
        raise DatasetError(f"{folder}: {len(unpaired)} {what} ({names}); {remedy}")
