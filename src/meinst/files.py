"""Atomic file writes, the removal of what killed processes left, and a check of archives."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from meinst.locks import try_lock

_PREFIX = ".meinst."

MAX_EXPANSION, SMALL_ARCHIVE = 20, 2**26
"""An archive may unpack to this many times its size, and to this many bytes in any case."""


def is_file(path: Path) -> bool:
    """Whether a file exists; names that the file system rejects, as too long, are those of none."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder exists; as :func:`is_file`."""
    try:
        return path.is_dir()
    except OSError:
        return False


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file as a whole; see :func:`open_atomically`.

    Raises:
        OSError: if the file cannot be written; an existing file is left unchanged.
    """
    with open_atomically(path) as file:
        file.write(content)


@contextmanager
def open_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path`` that replaces it afterwards, unless an error occurs.

    So no partial file remains, on any file system. Missing folders are created, links are followed,
    and an existing file keeps its mode. Devices and pipes, such as ``/dev/null``, are written to
    directly.

    Raises:
        OSError: if the file cannot be written; an existing file is left unchanged.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    file, temporary = _create_temporary(path.parent)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(mode)
            if os.name != "nt":  # while it is locked, see remove_leftovers
                temporary.replace(path)
        if os.name == "nt":  # an open file cannot be renamed there
            temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch raises its own error for a full disk, while handling that of the system.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        cause.filename = cause.filename or str(path)
        raise cause from None


def _create_temporary(folder: Path) -> tuple[BinaryIO, Path]:
    """Create a file, locked for as long as it is open, so that only leftovers are unlocked."""
    while True:
        handle, name = tempfile.mkstemp(dir=folder, prefix=_PREFIX)
        file = os.fdopen(handle, "wb")
        with contextlib.suppress(OSError):  # some network folders have no locks
            try_lock(handle)
        if Path(name).exists():  # otherwise it was removed before it was locked
            return file, Path(name)
        file.close()


def check_folder(folder: Path, option: str = "--output") -> None:
    """Create a folder, verify that files can be written there, and remove leftovers.

    Args:
        folder: the folder.
        option: the option that gave it.

    Raises:
        OSError: if it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{folder} cannot be written to ({error.strerror}); choose another {option}."
        ) from error
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder.

    Those of running processes are locked and stay; so do all where the file system has no locks.
    """
    for path in folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # in use, removed by another process, or a folder
            with path.open("rb+") as file:
                if not try_lock(file.fileno()):
                    continue
                if os.name != "nt":
                    path.unlink()
            if os.name == "nt":  # an open file cannot be removed there
                path.unlink()


def check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Reject an archive that would fill the memory or disk, from its directory alone.

    Args:
        archive: an open zip archive.
        size: size of the file in bytes.

    Raises:
        ValueError: if it declares too many bytes, a compression other than deflate, or encryption.
    """
    unpacked = 0
    for entry in archive.infolist():
        unpacked += entry.file_size
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"its member {entry.filename!r} is not compressed with deflate")
        if entry.flag_bits & 1:
            raise ValueError(f"its member {entry.filename!r} is encrypted")
    if unpacked > max(MAX_EXPANSION * size, SMALL_ARCHIVE):
        raise ValueError(f"{size} bytes would unpack to {unpacked}")
