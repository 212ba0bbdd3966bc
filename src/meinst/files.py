"""Atomic file writes, and a check of archives before they are unpacked."""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from pathlib import Path

MAX_EXPANSION, SMALL_ARCHIVE = 20, 2**26
"""An archive may unpack to this many times its size, and to this many bytes in any case."""


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write to a temporary file next to ``path``, then rename it, so that no partial file remains.

    Missing folders are created, links are followed, and an existing file keeps its mode. Devices
    and pipes, such as ``/dev/null``, are written to directly.

    Raises:
        OSError: If the file cannot be written; an existing file is left unchanged.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".meinst.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_folder(folder: Path) -> None:
    """Create a folder and verify that files can be written there.

    Raises:
        OSError: If it cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be written ({error.strerror}); choose another --output."
        ) from error


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
