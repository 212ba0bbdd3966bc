"""File names in annotation files: whether they leave their folder, and what they may have meant."""

from __future__ import annotations

import difflib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import unquote

_SEARCHED = 100_000  # files among which the nearest one is searched


def leads_outside(name: str) -> bool:
    """Whether a relative file name leads out of its folder, on any operating system."""
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root:
        return True
    depth = 0
    for part in windows.parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def nearest_files(names: Sequence[str], folder: Path) -> dict[str, str | None]:
    """For each missing file the one in a folder that it probably means.

    Names match if they differ in case, accents of another Unicode form, ``%20`` for a space, the
    kind of slash, or folders; otherwise the most similar name is taken, if there is one.

    Args:
        names: missing file names.
        folder: where to search, including its subfolders.

    Returns:
        Names relative to the folder, or None, by missing name.
    """
    present = {_plain(path): path for path in islice(_files(folder), _SEARCHED)}
    nearest: dict[str, str | None] = {}
    for name in names:
        plain = _plain(name)
        similar = difflib.get_close_matches(plain, present, n=1, cutoff=0.8)
        match = plain if plain in present else next(iter(similar), None)
        nearest[name] = None if match is None else present[match]
    return nearest


def _files(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        yield from (str(relative / name) for name in sorted(names))


def _plain(name: str) -> str:
    """The last part of a name, without differences in case, form or encoding."""
    last = unquote(name).replace("\\", "/").rpartition("/")[2]
    return unicodedata.normalize("NFC", last).casefold()
