"""Find the image files that a COCO annotation file means."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from meinst.data.datasets.parts import DatasetError
from meinst.files import is_file, is_folder

_SAMPLE = 20  # images by which a folder is recognised
_FOLDERS = 2000  # folders that are tried at most


def find_image_folder(document: Mapping[str, Any], path: Path) -> Path:
    """Find the folder of the images of an annotation file, and correct their names to lie in it.

    Files are looked for beside the annotation file, and in all folders below it and below the
    folder above it. Names of LVIS come from ``coco_url``. Where a name has folders that do not
    exist (Label Studio writes those of its server), only its last part counts.

    Args:
        document: lists of the annotation file; ``file_name`` is changed in place.
        path: the annotation file.

    Raises:
        DatasetError: if no folder has any of the images.
    """
    entries = [entry for entry in document["images"] if isinstance(entry, dict)]
    for entry in entries:
        url = entry.get("coco_url")
        if "file_name" not in entry and isinstance(url, str):
            entry["file_name"] = "/".join(url.split("/")[-2:])
    names = [str(entry.get("file_name")) for entry in entries]
    step = max(len(names) // _SAMPLE, 1)
    sample = names[::step][:_SAMPLE]
    best, most = None, 0
    for folder in islice(_candidates(path), _FOLDERS):
        count = sum(_present(folder, name) is not None for name in sample)
        if count > most:
            best, most = folder, count
        if most == len(sample):
            break
    if best is None:
        example = f" such as {sample[0]}" if sample else ""
        raise DatasetError(
            f"{path}: none of its images{example} was found in {path.parent} or the folders around "
            "it; put them beside the file, or give their folder (--images, --train-images)."
        )
    for entry, name in zip(entries, names, strict=True):
        present = _present(best, name)
        if present is not None and present != name:
            entry["file_name"] = present
    return best


def _present(folder: Path, name: str) -> str | None:
    """The name, or its last part, under which an image lies in a folder."""
    plain = name.replace("\\", "/")
    for candidate in (name, plain, plain.rpartition("/")[2]):
        if candidate and is_file(folder / candidate):
            return candidate
    return None


def _candidates(path: Path) -> Iterator[Path]:
    """Folders that may hold the images, the likely ones first."""
    parent = path.parent
    words = [word for word in re.split(r"[_.\-]", path.stem) if word]
    bases = [parent, parent.parent]
    names = ["images", *words, *(f"images/{word}" for word in words), "JPEGImages", "data"]
    seen = set()
    for folder in (parent, *(base / name for base in bases for name in names)):
        if is_folder(folder) and folder not in seen:
            seen.add(folder)
            yield folder
    for base in bases:
        for folder in _below(base):
            if folder not in seen:
                seen.add(folder)
                yield folder


def _below(base: Path) -> Iterator[Path]:
    """Folders one and two levels below, sorted; hidden ones are left out."""
    for depth in ("*/", "*/*/"):
        yield from sorted(p for p in base.glob(depth) if p.is_dir() and p.name[0] != ".")
