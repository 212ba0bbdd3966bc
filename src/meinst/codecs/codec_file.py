"""Arrays and hyper-parameters of a codec in an ``.npz`` file without pickle.

Beside its arrays a file holds ``kind`` (a word), ``version`` (an integer) and ``config`` (JSON).
The published matrix files hold arrays alone.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.files import write_atomically

VERSION = 1
_TAGS = ("kind", "version", "config")
# What reading a damaged archive raises; a RuntimeError where a flipped bit asks for a password or
# for a feature that does not exist.
_DAMAGED = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class CodecFileError(ValueError):
    """A file does not hold a codec (or sums of masks) of the expected kind."""

    def __init__(self, path: Path, rule: str, found: object) -> None:
        super().__init__(f"{path} is no usable mask codec file: {rule}; found {found}.")


@dataclass(frozen=True, eq=False)
class CodecFile:
    """What such a file holds.

    Attributes:
        path: where it was read, for messages.
        kind: what it is a codec of; None in a published file.
        config: its hyper-parameters; empty in a published file.
        arrays: its arrays of numbers, by name.
    """

    path: Path
    kind: str | None
    config: dict[str, Any]
    arrays: dict[str, NDArray[Any]]

    def require(self, key: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """An array of finite numbers of the given shape.

        Raises:
            CodecFileError: it is missing, of another shape, or holds NaN or infinity.
        """
        if key not in self.arrays:
            raise self.error(f"the array {key} must be there", sorted(self.arrays))
        array = self.arrays[key]
        if shape is not None and array.shape != shape:
            raise self.error(f"{key} must have the shape {shape}", array.shape)
        if not np.isfinite(array).all():
            raise self.error(f"{key} must be finite", "NaN or infinity")
        return array

    def error(self, rule: str, found: object) -> CodecFileError:
        """An error that names the file, the rule and what was found."""
        return CodecFileError(self.path, rule, found)


def write_codec_file(
    path: str | Path, kind: str, config: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write the file; the same content gives the same bytes.

    Args:
        path: the file; ``.npz`` is not added. A missing folder is made.
        kind: the codec's kind.
        config: its hyper-parameters, as JSON takes them.
        arrays: its arrays.

    Raises:
        OSError: the file cannot be written; an older one is untouched.
    """
    content: dict[str, Any] = dict(arrays)
    content |= {
        "kind": np.array(kind),
        "version": np.array(VERSION),
        "config": np.array(json.dumps(config, sort_keys=True)),
    }
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    write_atomically(Path(path), buffer.getbuffer())


def read_codec_file(path: str | Path) -> CodecFile:
    """Read such a file; nothing in it is executed.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        CodecFileError: no ``.npz`` archive, a damaged one, one of a later version, or one with
            anything but numbers in its arrays.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file to read a mask codec from.")
    # Opened here, since numpy leaves the file open where the archive is broken.
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, *_DAMAGED) as error:
            raise CodecFileError(path, "it must be an .npz archive", "something else") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise CodecFileError(path, "it must be an .npz archive", "a single array")
        with archive:
            content = _read_all(path, archive)
    tags = {key: content.pop(key) for key in _TAGS if key in content}
    for key, array in content.items():
        if array.dtype.kind not in "fiu":
            raise CodecFileError(path, f"{key} must be an array of numbers", array.dtype)
    if not tags:
        return CodecFile(path, None, {}, content)
    return CodecFile(path, *_read_tags(path, tags), content)


def _read_all(path: Path, archive: np.lib.npyio.NpzFile) -> dict[str, NDArray[Any]]:
    try:
        return {key: np.asarray(archive[key]) for key in archive.files}
    except ValueError as error:
        raise CodecFileError(path, "arrays must be plain numbers", "objects") from error
    except _DAMAGED as error:
        raise CodecFileError(path, "it must be whole", "a damaged archive") from error


def _read_tags(path: Path, tags: Mapping[str, NDArray[Any]]) -> tuple[str, dict[str, Any]]:
    kinds = {key: tags[key].dtype.kind if key in tags else None for key in _TAGS}
    if kinds != {"kind": "U", "version": "i", "config": "U"} or any(t.ndim for t in tags.values()):
        raise CodecFileError(path, "it must hold a kind, a version and a config", sorted(tags))
    version = int(tags["version"])
    if version != VERSION:
        raise CodecFileError(
            path, f"its version must be {VERSION} (a later meinst may read others)", version
        )
    try:
        config = json.loads(str(tags["config"]))
    except json.JSONDecodeError as error:
        raise CodecFileError(path, "its config must be JSON", str(tags["config"])[:60]) from error
    if not isinstance(config, dict):
        raise CodecFileError(path, "its config must be a JSON object", type(config).__name__)
    return str(tags["kind"]), config
