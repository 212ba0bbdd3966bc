"""Locks on output folders and files; a process that ends, however it ends, holds none."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("meinst")

_NAME = ".meinst-lock"
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_held: set[int] = set()  # descriptors, which a forked process must not keep

if sys.platform == "win32":
    import msvcrt

    def try_lock(descriptor: int) -> bool:
        """Lock an open file without waiting; whether that was possible."""
        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # locked bytes cannot be read by others
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

else:
    import fcntl

    def try_lock(descriptor: int) -> bool:
        """Lock an open file without waiting; whether that was possible.

        Raises:
            OSError: if the file system has no locks.
        """
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _BUSY:
                return False
            raise
        return True

    def _close_in_child() -> None:
        """Leave the locks to the parent: workers may outlive it for some seconds."""
        for descriptor in _held:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        _held.clear()

    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes of this package from writing to a folder.

    The lock is a file in the folder, removed afterwards. If it remains because the process was
    killed, it is not locked and so does no harm. On file systems without locks a warning is logged.

    Raises:
        BlockingIOError: if another process holds the lock.
        OSError: if the folder cannot be written.
    """
    with _lock(folder / _NAME, folder):
        yield


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Keep other processes from writing a file or replacing a folder; like :func:`lock_folder`.

    The lock is a file beside it. Devices and pipes are not locked.
    """
    path = path.resolve()
    if path.exists() and not (path.is_file() or path.is_dir()):
        yield
        return
    with _lock(hidden_sibling(path, _NAME), path):
        yield


def hidden_sibling(path: Path, prefix: str) -> Path:
    """A path beside another, always the same, whose name is not too long."""
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()
    return path.with_name(f"{prefix}-{digest[:16]}")


@contextmanager
def _lock(lock: Path, target: Path) -> Iterator[None]:
    try:
        descriptor = _acquire(lock, target)
    except BlockingIOError:
        raise
    except OSError as error:
        raise OSError(
            f"{target} cannot be written to ({error.strerror}); choose another --output."
        ) from error
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        if os.name != "nt":  # while it is locked, so that nobody else's file is removed
            lock.unlink(missing_ok=True)
        os.close(descriptor)
        if os.name == "nt":  # an open file cannot be removed there
            with contextlib.suppress(OSError):
                lock.unlink()


def _acquire(lock: Path, target: Path) -> int:
    """Open and lock the file, and write the process id into it; returns the descriptor.

    Raises:
        BlockingIOError: if another process holds the lock.
        OSError: if the file cannot be created.
    """
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
        try:
            locked = try_lock(descriptor)
        except OSError as error:  # some network folders
            log.warning(
                "%s: cannot be locked (%s); make sure that no other process writes to it",
                target,
                error.strerror,
            )
            return descriptor
        if not locked:
            owner = os.pread(descriptor, 100, 0) if hasattr(os, "pread") else b""
            os.close(descriptor)
            process = f" (process {owner.decode()})" if owner else ""
            raise BlockingIOError(
                f"{target}: another process of meinst{process} is writing there; wait until it "
                "ends, or choose another --output."
            )
        if _same_file(descriptor, lock):
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # its owner removed it in between


def _same_file(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
