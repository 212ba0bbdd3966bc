"""Read a COCO annotation file and check its structure."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meinst.data.annotations.arrays import Faults, parse_masks
from meinst.data.annotations.file_names import leads_outside, nearest_files
from meinst.data.annotations.large_file import Entries, column, read_large, sample
from meinst.files import is_file
from meinst.options import FileError, printable

MANY = 0.5
"""Reject files with a larger share of annotations with an unknown image or category."""

MAX_ID = 2**63 - 1
"""Largest id; evaluators hold ids as 64-bit integers."""

MAX_PIXELS = 2**31 - 1
"""Largest number of pixels of an image; run lengths are 32-bit integers in pycocotools."""

EXAMPLES = 5
"""Number of faulty ids or names listed in a message."""

_LARGE = 1 << 26  # bytes from which a file is not parsed as a whole
_LONGEST = 200  # characters of a name in a message
_SAMPLE = 1000  # annotations by which the unit of coordinates is recognised


class AnnotationError(FileError):
    """An annotation file that cannot be used.

    Attributes:
        faults: all faults found.
    """

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


def load_document(
    path: Path, folder: Path | None, *, allow_outside: bool = False
) -> dict[str, Any]:
    """Read a COCO annotation file and check everything except single boxes and masks.

    Args:
        path: the JSON file.
        folder: folder of the image files, which must exist; None to skip this check.
        allow_outside: allow file names that lead out of the folder.

    Returns:
        The document. All lists and keys exist, with values of the right types (``file_name`` only
        with ``folder``); ids are unique and not negative.

    Raises:
        FileNotFoundError: if the file does not exist.
        AnnotationError: if the file is not valid; lists all faults.
    """
    document = load_lists(path)
    check_document(document, path, folder, allow_outside=allow_outside)
    return document


def check_document(
    document: dict[str, Any], path: Path, folder: Path | None, *, allow_outside: bool = False
) -> None:
    """Check a parsed document as :func:`load_document` does.

    A category without annotations that has the name of another is removed; exports of Roboflow
    begin with one that is named after the project.

    Raises:
        AnnotationError: if it is not valid; lists all faults.
    """
    checks = _FileChecks(document, files=folder is not None)
    if folder is not None:
        checks.image_files(folder, allow_outside=allow_outside)
    if not checks.faults:
        checks.coordinates()
    if checks.faults:
        raise AnnotationError(
            f"{path} is not valid: {'; '.join(checks.faults)}. Correct the file and try again.",
            tuple(checks.faults),
        )
    document["categories"] = checks.categories


def image_sizes(document: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """Height and width of the images of a checked document by id, in the order of the document."""
    return {entry["id"]: (entry["height"], entry["width"]) for entry in document["images"]}


def load_lists(path: Path) -> dict[str, Any]:
    """Parse a document and check only that its three lists exist.

    Raises:
        FileNotFoundError: if the file does not exist.
        AnnotationError: if it is not JSON, or lacks a list.
    """
    if not is_file(path):
        raise FileNotFoundError(f"The annotation file {path} does not exist.")
    large = read_large(path) if path.stat().st_size > _LARGE else None
    try:
        document = json.loads(path.read_bytes()) if large is None else large
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:  # invalid bytes, numbers of too many digits
        raise AnnotationError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise AnnotationError(
            f"{path} contains a JSON {type(document).__name__}, not an object with the lists "
            "images, annotations and categories (lists are results, not annotations)."
        )
    faults = [
        f"{name} is {'not a list' if name in document else 'missing'}"
        for name in ("images", "annotations", "categories")
        if not isinstance(document.get(name), (list, Entries))
    ]
    if faults:
        raise AnnotationError(f"{path} is not in COCO format: {'; '.join(faults)}.", tuple(faults))
    return document


class _FileChecks:
    """Collects the faults of a parsed document.

    Args:
        document: the three lists.
        files: whether images need a file name; LVIS has none.
    """

    def __init__(self, document: dict[str, Any], *, files: bool) -> None:
        self.faults: list[str] = []
        named = {"file_name": str} if files else {}
        self.images = self._entries(
            document, "images", {"id": int, **named, "width": int, "height": int}
        )
        annotations = self.annotations = self._entries(
            document, "annotations", {"id": int, "image_id": int, "category_id": int}
        )
        categories = self._entries(document, "categories", {"id": int, "name": str})
        used = set(column(annotations, "category_id"))
        self.categories = _without_doubles(categories, used)
        empty = [f"{e['id']}" for e in self.images if e["width"] < 1 or e["height"] < 1]
        self._add(empty, "images without width or height", "image")
        huge = [f"{e['id']}" for e in self.images if e["width"] * e["height"] > MAX_PIXELS]
        self._add(huge, f"images of more than {MAX_PIXELS} pixels", "image")
        for name, entries in (
            ("images", self.images),
            ("annotations", annotations),
            ("categories", categories),
        ):
            self._check_ids(name, column(entries, "id"))
        # Evaluation matches classes by name, so names must be unique.
        names = _repeated(e["name"] for e in self.categories)
        self._add(names, "duplicate names in categories", "name")
        texts = [e["name"] for e in categories] + [e["file_name"] for e in self.images if named]
        self._add(
            [ascii(text) for text in texts if not _is_unicode(text)],
            "text that is not valid Unicode",
            "name",
        )
        for name in ("images", "categories"):
            if not document[name]:
                self.faults.append(f"{name} is empty")
        for key, entries in (("image_id", self.images), ("category_id", categories)):
            known = {e["id"] for e in entries}
            pairs = zip(column(annotations, "id"), column(annotations, key), strict=True)
            unknown = [str(number) for number, other in pairs if other not in known]
            if len(unknown) > MANY * len(annotations):
                fault = f"annotations (of {len(annotations)}) with an unknown {key}"
                self._add(unknown, fault, "annotation")

    def _check_ids(self, name: str, ids: list[int]) -> None:
        """Check the ids of a list."""
        self._add(_repeated(ids), f"duplicate ids in {name}", "id")
        negative = [str(number) for number in ids if number < 0]
        self._add(negative, f"negative ids in {name}", "id")
        large = [str(number) for number in ids if number > MAX_ID]
        self._add(large, f"ids above 64 bits in {name}", "id")

    def image_files(self, folder: Path, *, allow_outside: bool) -> None:
        """Check that all image files exist, and lie in the folder."""
        names = [entry["file_name"] for entry in self.images]
        if not allow_outside:
            outside = [name for name in names if leads_outside(name)]
            remedy = (
                "file names that lead out of the image folder (allow them with --allow-outside)"
            )
            self._add(outside, remedy, "file")
        present = {entry.name for entry in os.scandir(folder)}  # one call for a hundred thousand
        missing = [
            name
            for name in names
            # In a subfolder, or differing in case or accents that the file system ignores.
            if name not in present and not is_file(folder / name)
        ]
        if missing:
            nearest = nearest_files(missing[:EXAMPLES], folder)
            examples = [f"{name} (there is {near})" for name, near in nearest.items() if near]
            examples += [name for name in missing if not nearest.get(name)]
            examples += missing[: len(missing) - len(examples)]
            self._add(examples, f"image files missing in {folder}", "file")

    def coordinates(self) -> None:
        """Check that masks are in pixels, by a sample of them."""
        sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in self.images}
        chosen = [e for e in sample(self.annotations, _SAMPLE) if e["image_id"] in sizes]
        if not chosen:
            return
        numbers = parse_masks(
            [entry.get("segmentation") for entry in chosen],
            np.array([sizes[entry["image_id"]] for entry in chosen], dtype=np.float64),
            Faults(len(chosen)),
        ).polygons.coordinates
        whole = np.array_equal(numbers, numbers.round())  # then these are pixels near the corner
        if not whole and numbers.min() >= 0 and numbers.max() <= 1:
            self.faults.append(
                "the polygons have normalised coordinates (the largest is "
                f"{numbers.max():g}), not pixels: multiply x by the width and y by the height"
            )

    def _entries(
        self, document: dict[str, Any], name: str, keys: Mapping[str, type]
    ) -> Sequence[dict[str, Any]]:
        """Return the entries of a list that have all keys with values of the right type."""
        entries: Sequence[dict[str, Any]] = document[name]
        if isinstance(entries, Entries):  # checked when it was read
            return entries
        if all(type(entry) is dict for entry in entries) and all(
            type(entry.get(key)) is expected for key, expected in keys.items() for entry in entries
        ):  # no faults; otherwise find them entry by entry
            return entries
        wrong: dict[str, list[str]] = {}
        good = []
        for position, entry in enumerate(document[name]):
            if not isinstance(entry, dict):
                wrong.setdefault("that are not objects", []).append(str(position))
                continue
            fine = True
            for key, expected in keys.items():
                value = entry.get(key)
                if type(value) is not expected:  # exact: True is an int to isinstance
                    fine = False
                    type_name = "an integer" if expected is int else "a string"
                    fault = f"whose {key!r} is not {type_name}"
                    problem = fault if key in entry else f"without {key!r}"
                    wrong.setdefault(problem, []).append(str(position))
            if fine:
                good.append(entry)
        for problem, positions in wrong.items():
            self._add(positions, f"entries of {name} {problem}", "position")
        return good

    def _add(self, faulty: list[str], fault: str, noun: str) -> None:
        """Record a fault of the given ids, names or positions, if there are any."""
        if faulty:
            more = ", ..." if len(faulty) > EXAMPLES else ""
            examples = ", ".join(_short(printable(text)) for text in faulty[:EXAMPLES])
            self.faults.append(f"{fault}: {len(faulty)} ({noun} {examples}{more})")


def _without_doubles(categories: Sequence[dict[str, Any]], used: set[int]) -> list[dict[str, Any]]:
    """The categories without unused ones of a name that another has; of several unused, the last.

    Args:
        categories: with ids and names.
        used: ids that annotations have.
    """
    kept = {e["name"]: e["id"] for e in categories}
    kept |= {e["name"]: e["id"] for e in categories if e["id"] in used}
    return [e for e in categories if e["id"] in used or kept[e["name"]] == e["id"]]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."


def _repeated(values: Iterable[Any]) -> list[str]:
    values = list(values)
    if len(set(values)) == len(values):
        return []
    return [str(value) for value, count in Counter(values).items() if count > 1]


def _is_unicode(text: str) -> bool:
    """Whether a text can be written to a file; JSON allows halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
