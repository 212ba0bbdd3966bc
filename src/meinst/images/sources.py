"""Where image files come from: the file system, memory, or an address that fsspec opens."""

from __future__ import annotations

import io
import os
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from typing_extensions import override

from meinst.options import FileError, plain_message

INSTALL_REMOTE = "pip install 'meinst[remote]'"


class AddressError(FileError):
    """An address cannot be read; the message gives the address, the reason and the remedy."""


@dataclass(frozen=True)
class MemoryFile:
    """The content of a file, with the part of :class:`pathlib.Path` that readers of images use.

    Attributes:
        content: the bytes.
        name: what errors call it.
    """

    content: bytes
    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def suffix(self) -> str:
        """The suffix of the name, with the dot."""
        return posixpath.splitext(self.name)[1]

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the content for reading."""
        assert mode == "rb"
        return io.BytesIO(self.content)

    def read_bytes(self) -> bytes:
        """The content."""
        return self.content


ImageFile: TypeAlias = "Path | MemoryFile"


@dataclass(frozen=True)
class Address:
    """A file that fsspec opens, such as ``s3://bucket/cells.png`` or ``zip://a.png::all.zip``.

    Attributes:
        url: the address.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path, without query."""
        return self.url.partition("::")[0].partition("?")[0].rstrip("/").rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return posixpath.splitext(self.name)[0] or "image"

    @property
    def suffix(self) -> str:
        """The suffix of the name, with the dot."""
        return posixpath.splitext(self.name)[1]

    def fetch(self) -> MemoryFile:
        """Read the file.

        Raises:
            AddressError: if it cannot be read, or the package that reads such addresses is missing.
        """
        try:
            with _fsspec(self.url).open(self.url, "rb") as file:
                return MemoryFile(file.read(), self.url)
        except AddressError:
            raise
        except Exception as error:  # each protocol has its own
            raise AddressError(f"{self.url} {_reason(error)}") from error


ImageSource: TypeAlias = "Path | Address"
"""An image file that is given by its name."""


def is_address(source: object) -> bool:
    """Whether a source is an address, not a path."""
    return isinstance(source, str) and "://" in source


def to_source(source: str | Path | Address) -> ImageSource:
    """A path or an address, by its form."""
    if isinstance(source, str):
        return Address(source) if is_address(source) else Path(source)
    return source


def to_file(source: ImageSource) -> ImageFile:
    """The file of a source: of an address, its content."""
    return source.fetch() if isinstance(source, Address) else source


def opened(file: ImageFile) -> Path | BinaryIO:
    """What tifffile takes for a file."""
    return file if isinstance(file, Path) else file.open()


class BoundedFile(io.BufferedReader):
    """A file of which no more bytes are read than it has.

    Readers take lengths from the file. If one of them is damaged, Python would allocate as much
    memory before it reads the few bytes that there are.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._length = os.fstat(self.fileno()).st_size

    @override
    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(self._length - self.tell(), 0))
        return super().read(size)


def expand_address(url: str, *, recursive: bool = False) -> list[Address]:
    """The files of an address: itself, all in a folder, or all that match a pattern, sorted.

    Args:
        url: the address.
        recursive: include the folders below a folder.

    Raises:
        AddressError: if it does not exist or cannot be read.
    """
    try:
        system, path = _fsspec(url).core.url_to_fs(url)
        if any(char in url.partition("::")[0].partition("?")[0] for char in "*["):
            paths = [each for each in system.glob(path) if system.isfile(each)]
        elif url.startswith(("http://", "https://")) or not system.isdir(path):
            return [Address(url)]
        else:
            found: dict[str, Any] = system.find(
                path, maxdepth=None if recursive else 1, detail=True
            )
            paths = [each for each, entry in found.items() if entry["type"] == "file"]
    except AddressError:
        raise
    except Exception as error:
        raise AddressError(f"{url} {_reason(error)}") from error
    protocol, chained = url.partition("://")[0], url.partition("::")
    rest = chained[1] + chained[2]
    visible = [each for each in paths if not posixpath.basename(each).startswith(".")]
    return [Address(f"{protocol}://{each.lstrip('/')}{rest}") for each in sorted(visible)]


def _fsspec(url: str) -> Any:
    """The package fsspec.

    Raises:
        AddressError: if it is missing.
    """
    try:
        import fsspec
        import fsspec.core
    except ImportError as error:
        raise AddressError(f"{url} needs the package fsspec: {INSTALL_REMOTE}") from error
    return fsspec


def _reason(error: Exception) -> str:
    """Why an address cannot be read, and the remedy."""
    if isinstance(error, ImportError):
        return f"needs a package that is not installed ({plain_message(error)}): {INSTALL_REMOTE}"
    if isinstance(error, FileNotFoundError):
        return "does not exist; check the address and your permissions."
    reason = plain_message(error) or type(error).__name__
    return f"cannot be read ({reason}); check the address and your permissions."
