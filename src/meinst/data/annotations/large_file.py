"""Read large annotation files without holding all their annotations at once.

Parsed JSON takes several times the memory of its text. Here the list of annotations stays in the
file: its entries are parsed once to find their places and ids, and again whenever they are read.
"""

from __future__ import annotations

import codecs
import json
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

COLUMNS = ("id", "image_id", "category_id")
"""Keys of annotations whose values must be integers, and are kept in memory."""

_WINDOW = 1 << 20  # characters that are parsed at once
_SAMPLED = 30  # stretches from which a sample is taken
_SPACE = re.compile(r"[ \t\n\r]*")
_INT64 = 2**63


class Entries(Sequence[dict[str, Any]]):
    """Annotations of a file, read when they are needed.

    Args:
        path: the file, which must not change.
        windows: first byte and number of bytes of stretches of whole entries.
        firsts: number of the first entry of each stretch.
        columns: integers of all entries, by key.
    """

    def __init__(
        self,
        path: Path,
        windows: Sequence[tuple[int, int]],
        firsts: Sequence[int],
        columns: dict[str, NDArray[np.int64]],
    ) -> None:
        self._path = path
        self._windows = windows
        self._firsts = firsts
        self._columns = columns
        self._kept: tuple[int, list[dict[str, Any]]] = (-1, [])  # the last window that was read

    def __len__(self) -> int:
        return len(self._columns["id"])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(len(self._windows)):
            yield from self._window(number)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self._entry(row) for row in range(*index.indices(len(self)))]
        return self._entry(range(len(self))[index])

    def column(self, key: str) -> list[int]:
        """The integers of all entries under one of :data:`COLUMNS`."""
        values: list[int] = self._columns[key].tolist()
        return values

    def sample(self, count: int) -> list[dict[str, Any]]:
        """About ``count`` entries from evenly spaced stretches of the file."""
        stretches = range(0, len(self._windows), max(len(self._windows) // _SAMPLED, 1))
        each = max(count // max(len(stretches), 1), 1)
        found = []
        for number in stretches:
            entries = self._window(number)
            found += entries[:: max(len(entries) // each, 1)]
        return found

    def _entry(self, row: int) -> dict[str, Any]:
        number = bisect_right(self._firsts, row) - 1
        return self._window(number)[row - self._firsts[number]]

    def _window(self, number: int) -> list[dict[str, Any]]:
        if self._kept[0] != number:
            start, size = self._windows[number]
            with self._path.open("rb") as file:
                file.seek(start)
                text = file.read(size).rstrip(b", \t\n\r")
            self._kept = number, json.loads(b"[" + text + b"]")
        return self._kept[1]


def column(entries: Sequence[dict[str, Any]], key: str) -> list[Any]:
    """The values of all entries under one of :data:`COLUMNS`."""
    if isinstance(entries, Entries):
        return entries.column(key)
    return [entry[key] for entry in entries]


def sample(entries: Sequence[dict[str, Any]], count: int) -> Sequence[dict[str, Any]]:
    """About ``count`` entries, spread over the file."""
    if isinstance(entries, Entries):
        return entries.sample(count)
    return entries[:: max(len(entries) // count, 1)]


def read_large(path: Path) -> dict[str, Any] | None:
    """Parse an annotation file with its ``annotations`` as :class:`Entries`.

    Returns:
        The document; None if anything is unusual, so that the file must be parsed as a whole, which
        also finds its faults.
    """
    try:
        with path.open("rb") as file:
            return _read_document(_Text(file), path)
    except (ValueError, RecursionError, _UnusualError):
        return None


class _UnusualError(Exception):
    pass


class _Text:
    """The text of a file, of which only what is being parsed is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._ended = False
        self._text = ""
        self._place = 0
        self._offset = 0  # byte of the first character

    def peek(self) -> str:
        """The next character that is not a space; empty at the end."""
        while True:
            match = _SPACE.match(self._text, self._place)
            assert match is not None  # it matches nothing too
            self._place = match.end()
            if self._place < len(self._text) or self._ended:
                return self._text[self._place : self._place + 1]
            self._fill()

    def take(self, *expected: str) -> str:
        """The next character that is not a space, which must be one of some."""
        found = self.peek()
        if found not in expected:
            raise _UnusualError
        self._place += 1
        return found

    def value(self) -> Any:
        """The next value."""
        self.peek()
        while True:
            try:
                value, end = self._parse(self._text, self._place)
            except ValueError:
                if self._ended:
                    raise
                self._fill()
                continue
            if end < len(self._text) or self._ended:  # otherwise a number may go on
                self._place = end
                return value
            self._fill()

    def byte(self) -> int:
        """The byte of the file at which the next character is; forgets what is before it."""
        self._offset += len(self._text[: self._place].encode())
        self._text, self._place = self._text[self._place :], 0
        return self._offset

    def ahead(self) -> int:
        """Number of characters parsed since the last call of :meth:`byte`."""
        return self._place

    def _fill(self) -> None:
        block = self._file.read(max(_WINDOW, len(self._text)))
        self._ended = not block
        self._text += self._decode(block, not block)


def _read_document(text: _Text, path: Path) -> dict[str, Any]:
    document: dict[str, Any] = {}
    text.take("{")
    while True:
        key = text.value()
        if not isinstance(key, str) or key in document:
            raise _UnusualError
        text.take(":")
        document[key] = _read_entries(text, path) if key == "annotations" else text.value()
        if text.take(",", "}") == "}":
            break
    if text.peek():
        raise _UnusualError
    return document


def _read_entries(text: _Text, path: Path) -> Entries:
    text.take("[")
    columns = {key: array("q") for key in COLUMNS}
    windows: list[tuple[int, int]] = []
    firsts: list[int] = []
    start, count, first = text.byte(), 0, 0
    more = text.peek() != "]"
    while more:
        entry = text.value()
        for key, values in columns.items():
            number = entry.get(key) if type(entry) is dict else None
            if type(number) is not int or not -_INT64 <= number < _INT64:
                raise _UnusualError
            values.append(number)
        count += 1
        more = text.peek() == ","
        if more:
            text.take(",")
        if text.ahead() > _WINDOW or not more:
            end = text.byte()
            windows.append((start, end - start))
            firsts.append(first)
            start, first = end, count
    text.take("]")
    arrays = {key: np.frombuffer(values, np.int64) for key, values in columns.items()}
    return Entries(path, windows, firsts, arrays)
