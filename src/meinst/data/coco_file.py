"""COCO's JSON file as a whole: is it one, and do its parts fit together?"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MANY = 0.5
"""Share of annotations with an unknown image or category from which on the file is at fault."""

EXAMPLES = 5
"""How many ids or names a message gives of the faulty ones."""


class AnnotationError(ValueError):
    """An annotation file that cannot be used.

    Attributes:
        faults: every fault found in it, one sentence each.
    """

    def __init__(self, message: str, faults: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.faults = faults


def load_document(path: Path, folder: Path | None) -> dict[str, Any]:
    """Read a COCO annotation file and check everything but the instances' shapes.

    Args:
        path: the JSON file.
        folder: where its image files must be; None for no check of them.

    Returns:
        The document. Lists and keys are there, with values of the right types (``file_name`` only
        with ``folder``); ids are unique and not negative.

    Raises:
        FileNotFoundError: if the file does not exist.
        AnnotationError: with all faults.
    """
    document = _parse(path)
    checks = _FileChecks(document, files=folder is not None)
    if folder is not None:
        checks.image_files(folder)
    if checks.faults:
        raise AnnotationError(
            f"{path} cannot be used: {'; '.join(checks.faults)}. Correct the file and try again.",
            tuple(checks.faults),
        )
    return document


def image_sizes(document: Mapping[str, Any]) -> dict[int, tuple[int, int]]:
    """Width and height of a checked document's images by their ids, in its order."""
    return {entry["id"]: (entry["width"], entry["height"]) for entry in document["images"]}


def _parse(path: Path) -> dict[str, Any]:
    """The document, with its three lists in place."""
    if not path.is_file():
        raise FileNotFoundError(f"The annotation file {path} does not exist.")
    try:
        document = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise AnnotationError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:  # bytes of no encoding, endless numbers
        raise AnnotationError(f"{path} is not JSON: {error}.") from error
    if not isinstance(document, dict):
        raise AnnotationError(
            f"{path} holds a JSON {type(document).__name__}, not an object with the lists images, "
            "annotations and categories (a list is a file of results, not of annotations)."
        )
    faults = [
        f"{name} is {'no list' if name in document else 'missing'}"
        for name in ("images", "annotations", "categories")
        if not isinstance(document.get(name), list)
    ]
    if faults:
        raise AnnotationError(f"{path} is not in COCO format: {'; '.join(faults)}.", tuple(faults))
    return document


class _FileChecks:
    """Collects the faults of a document whose three lists exist.

    Args:
        document: the lists.
        files: whether images need names; LVIS has none.
    """

    def __init__(self, document: dict[str, Any], *, files: bool) -> None:
        self.faults: list[str] = []
        named = {"file_name": str} if files else {}
        self.images = self._entries(
            document, "images", {"id": int, **named, "width": int, "height": int}
        )
        annotations = self._entries(
            document, "annotations", {"id": int, "image_id": int, "category_id": int}
        )
        categories = self._entries(document, "categories", {"id": int, "name": str})
        empty = [f"{e['id']}" for e in self.images if e["width"] < 1 or e["height"] < 1]
        self._tell(empty, "images without width or height", "image")
        for name, entries in (
            ("images", self.images),
            ("annotations", annotations),
            ("categories", categories),
        ):
            self._tell(_repeated(e["id"] for e in entries), f"ids that occur twice in {name}", "id")
            negative = [f"{e['id']}" for e in entries if e["id"] < 0]
            self._tell(negative, f"ids below 0 in {name}", "id")
        # Classes are matched by name in evaluation, so a name must say which one is meant.
        names = _repeated(e["name"] for e in categories)
        self._tell(names, "names that occur twice in categories", "name")
        for name in ("images", "categories"):
            if not document[name]:
                self.faults.append(f"{name} is empty")
        for key, entries in (("image_id", self.images), ("category_id", categories)):
            known = {e["id"] for e in entries}
            strange = [f"{e['id']}" for e in annotations if e[key] not in known]
            if len(strange) > MANY * len(annotations):
                what = f"of {len(annotations)} annotations, those with an unknown {key}"
                self._tell(strange, what, "annotation")

    def image_files(self, folder: Path) -> None:
        """Check that all image files exist."""
        present = {entry.name for entry in os.scandir(folder)}  # one call for a hundred thousand
        missing = [
            name
            for name in (e["file_name"] for e in self.images)
            # In a folder below, or told apart by case or accents here, but not by the file system.
            if name not in present and not (folder / name).is_file()
        ]
        self._tell(missing, f"image files missing in {folder}", "file")

    def _entries(
        self, document: dict[str, Any], name: str, keys: Mapping[str, type]
    ) -> list[dict[str, Any]]:
        """The entries of a list that have all keys with values of the right type."""
        entries: list[dict[str, Any]] = document[name]
        if all(type(entry) is dict for entry in entries) and all(
            all(type(entry.get(key)) is kind for entry in entries) for key, kind in keys.items()
        ):  # as it should be; what follows looks for the culprits
            return entries
        wrong: dict[str, list[str]] = {}
        good = []
        for position, entry in enumerate(document[name]):
            if not isinstance(entry, dict):
                wrong.setdefault("that are no objects", []).append(str(position))
                continue
            fine = True
            for key, kind in keys.items():
                value = entry.get(key)
                if type(value) is not kind:  # exact: True is an int to isinstance
                    fine = False
                    wanted = "an integer" if kind is int else "a string"
                    problem = (
                        f"whose {key!r} is not {wanted}" if key in entry else f"without {key!r}"
                    )
                    wrong.setdefault(problem, []).append(str(position))
            if fine:
                good.append(entry)
        for problem, positions in wrong.items():
            self._tell(positions, f"entries of {name} {problem}", "position")
        return good

    def _tell(self, found: list[str], what: str, noun: str) -> None:
        if found:
            more = ", ..." if len(found) > EXAMPLES else ""
            self.faults.append(f"{what}: {len(found)} ({noun} {', '.join(found[:EXAMPLES])}{more})")


def _repeated(values: Iterable[Any]) -> list[str]:
    values = list(values)
    if len(set(values)) == len(values):
        return []
    return [str(value) for value, count in Counter(values).items() if count > 1]
