"""The file format of codecs: arrays and hyper-parameters in an ``.npz`` file, without pickle.

Apart from arrays, a file holds ``kind`` (a string), ``version`` (an integer) and ``config`` (JSON).
The published matrix files hold only arrays.
"""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from meinst.files import check_archive, write_atomically
from meinst.options import FileError

VERSION = 1
_TAGS = ("kind", "version", "config")
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_HEADER_SIZE = 10_000  # characters; NumPy's own limit for files that are not trusted
# Errors from reading a damaged archive; a RuntimeError if a flipped bit marks a file as encrypted.
_DAMAGED = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class CodecFileError(FileError):
    """A file does not hold a codec, or sums over masks, of the expected kind."""

    def __init__(self, path: Path, rule: str, found: object) -> None:
        super().__init__(f"{path} is not a valid mask codec file: {rule}; found {found}.")


@dataclass(frozen=True, eq=False)
class CodecFile:
    """Content of a codec file.

    Attributes:
        path: path of the file, for error messages.
        kind: kind of the codec; None in a published file.
        config: hyper-parameters; empty in a published file.
        arrays: arrays of numbers, by name.
    """

    path: Path
    kind: str | None
    config: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def require(self, key: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """Return an array, checking its shape and that all values are finite.

        Raises:
            CodecFileError: if the array is missing, has another shape, or holds NaN or infinity.
        """
        if key not in self.arrays:
            raise self.error(f"it must contain the array {key}", sorted(self.arrays))
        array = self.arrays[key]
        if shape is not None and array.shape != shape:
            raise self.error(f"{key} must have the shape {shape}", array.shape)
        if not np.isfinite(array).all():
            raise self.error(f"{key} must be finite", "NaN or infinity")
        return array

    def error(self, rule: str, found: object) -> CodecFileError:
        """Create an error that names the file, the rule and the value found."""
        return CodecFileError(self.path, rule, found)


def write_codec_file(
    path: str | Path, kind: str, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write a codec file; equal content gives equal bytes.

    Args:
        path: the file; the suffix ``.npz`` is not added. A missing folder is created.
        kind: kind of the codec.
        config: hyper-parameters, ready for JSON.
        arrays: arrays of numbers, by name.

    Raises:
        OSError: if the file cannot be written; an existing file is left intact.
    """
    write_atomically(Path(path), codec_file_bytes(kind, config, arrays))


def codec_file_bytes(
    kind: str, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> memoryview:
    """The content of a codec file; see :func:`write_codec_file`."""
    content: dict[str, Any] = dict(arrays)
    content |= {
        "kind": np.array(kind),
        "version": np.array(VERSION),
        "config": np.array(json.dumps(config, sort_keys=True)),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    return buffer.getbuffer()


def read_codec_file(path: str | Path) -> CodecFile:
    """Read a codec file, without executing anything in it.

    Raises:
        OSError: if the file does not exist or cannot be opened.
        CodecFileError: if the file is not an ``.npz`` archive, is damaged, has a later version, or
            holds arrays of other types than numbers.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    with path.open("rb") as file:
        return parse_codec_file(file, path, path.stat().st_size)


def parse_codec_file(file: IO[bytes], path: Path, size: int) -> CodecFile:
    """Read an open codec file.

    Args:
        file: the content.
        path: its path, for error messages.
        size: bytes of the content.

    Raises:
        CodecFileError: as :func:`read_codec_file`.
    """
    try:
        archive = zipfile.ZipFile(file)
    except _DAMAGED as error:
        raise CodecFileError(path, "it must be an .npz archive", "something else") from error
    with archive:
        content = _read_all(path, archive, size)
    tags = {key: content.pop(key) for key in _TAGS if key in content}
    for key, array in content.items():
        if array.dtype.kind not in "fiu":
            raise CodecFileError(path, f"{key} must be an array of numbers", array.dtype)
    if not tags:
        return CodecFile(path, None, {}, content)
    return CodecFile(path, *_read_tags(path, tags), content)


def _read_all(path: Path, archive: zipfile.ZipFile, size: int) -> dict[str, NDArray[Any]]:
    try:
        check_archive(archive, size)
    except ValueError as error:
        raise CodecFileError(path, "it must unpack to a codec", error) from error
    content = {}
    for entry in archive.infolist():
        try:
            with archive.open(entry) as file:
                content[entry.filename.removesuffix(".npy")] = _read_array(file, entry.file_size)
        except ValueError as error:
            raise CodecFileError(path, "it must contain arrays of numbers", error) from error
        except _DAMAGED as error:
            raise CodecFileError(path, "it must be complete", "a damaged archive") from error
    return content


def _read_array(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read an array in NumPy's format of ``size`` bytes, allocating no more than that.

    Raises:
        ValueError: if it is no such array, holds Python objects, or declares another size.
    """
    version = np.lib.format.read_magic(file)
    read_header = _HEADERS.get(version)
    if read_header is None:
        raise ValueError(f"an array of format {version}")
    try:
        shape, fortran, dtype = read_header(file, max_header_size=_HEADER_SIZE)
    except Exception as error:  # besides ValueError, whatever its parsers raise
        raise ValueError(f"a damaged header ({type(error).__name__}: {error})") from error
    if dtype.hasobject:
        raise ValueError("objects")
    if any(isinstance(side, bool) or side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    declared = math.prod(shape) * dtype.itemsize
    if declared > size:
        raise ValueError(f"an array of shape {shape} in {size} bytes")
    data = file.read(declared)
    if len(data) < declared:
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    array = np.frombuffer(data, dtype, math.prod(shape))
    if dtype.kind == "U" and (array.view(dtype.byteorder + "u4") > sys.maxunicode).any():
        raise ValueError("text that is not Unicode")
    return array.reshape(shape, order="F" if fortran else "C")


def _read_tags(path: Path, tags: Mapping[str, NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    kinds = {key: tags[key].dtype.kind if key in tags else None for key in _TAGS}
    if kinds != {"kind": "U", "version": "i", "config": "U"} or any(t.ndim for t in tags.values()):
        raise CodecFileError(path, "it must contain a kind, a version and a config", sorted(tags))
    version = int(tags["version"])
    if version != VERSION:
        raise CodecFileError(
            path,
            f"its version must be {VERSION} (later versions of meinst may read others)",
            version,
        )
    try:
        config = json.loads(str(tags["config"]))
    except (ValueError, RecursionError) as error:
        raise CodecFileError(path, "its config must be JSON", str(tags["config"])[:60]) from error
    if not isinstance(config, dict):
        raise CodecFileError(path, "its config must be a JSON object", type(config).__name__)
    return str(tags["kind"]), config
