"""Read MATLAB files of version 5 to 7 with scipy, which allocates whatever lengths they state."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meinst.files import MAX_EXPANSION, SMALL_ARCHIVE

_HEADER = 128  # bytes before the first element
_INT32, _MATRIX, _COMPRESSED = 5, 14, 15  # types of elements
_SPARSE = 5  # class of a matrix that stores few of its values


def read_matlab(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB file, in memory that its length bounds.

    Raises:
        ImportError: if scipy is missing.
        ValueError: if it is damaged or of another version; scipy raises others, too.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import matfile_version
    except ImportError as error:
        raise ImportError("SBD's .mat files need the package scipy: pip install scipy") from error
    content = path.read_bytes()
    order = ">" if content[_HEADER - 2 : _HEADER] == b"MI" else "<"
    plain = b"".join(_unpacked(content, order))
    file = io.BytesIO(plain)
    if matfile_version(file)[0] != 1:  # scipy takes damaged files for those of version 4
        raise ValueError("it is not a MATLAB file of version 5 to 7")
    _check_elements(plain, _HEADER, len(plain), order)
    variables: dict[str, Any] = loadmat(file, mat_dtype=False)
    return variables


def _unpacked(content: bytes, order: str) -> Iterator[bytes]:
    """The parts of a file, with compressed elements replaced by what they contain."""
    yield content[:_HEADER]
    limit = whole = max(MAX_EXPANSION * len(content), SMALL_ARCHIVE)
    place = _HEADER
    while place + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}II", content, place)
        end = place + 8 + length
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            plain = stream.decompress(content[place + 8 : end], limit)
            limit -= len(plain)
            if stream.unconsumed_tail or limit <= 0:
                raise ValueError(f"it unpacks to more than {whole >> 20} MB")
            yield plain
        else:
            yield content[place:end]
        place = end


def _check_elements(content: bytes, place: int, end: int, order: str) -> None:
    """Reject elements that are longer than the one they are in, and matrices without their values.

    Args:
        content: a file without compressed elements.
        place: of the first element.
        end: of the element that they are in.
        order: of bytes, as in struct.
    """
    number, start, sparse = 0, place, False
    while place + 8 <= end:
        kind, length = struct.unpack_from(f"{order}II", content, place)
        data = place + 8
        if kind >> 16:  # a small element: type and length in 16 bits each, then its data
            kind, length, data = kind & 0xFFFF, kind >> 16, place + 4
        if data + length > end:
            raise ValueError("an element is longer than what it is in")
        if kind == _MATRIX:
            _check_elements(content, data, data + length, order)
        if number == 0:
            sparse = content[data if order == "<" else data + 3] == _SPARSE
        if number == 1 and kind == _INT32 and not sparse:
            sides = struct.unpack_from(f"{order}{length // 4}i", content, data)
            if math.prod(sides) > end - start:
                raise ValueError(f"a matrix of {sides} values has only {end - start} bytes")
        place = data + length + (-(data + length - start)) % 8
        number += 1
