"""Files of all images together: appended while the run lasts, made final at the end.

A spool is a hidden file that grows image by image. The journal holds its size after each image, so
a resumed run cuts it back to the last image that is done.
"""

from __future__ import annotations

import io
from abc import abstractmethod
from pathlib import Path
from typing import BinaryIO, ClassVar

from typing_extensions import override

from meinst.files import open_atomically
from meinst.inference.writers.base import PredictedImage, Run, Writer

_PREFIX = ".meinst-spool-"


class Spool:
    """An append-only file that can be cut back.

    Args:
        path: the file; created if it does not exist.
        size: bytes of it that count; the rest is dropped.

    Attributes:
        path: the file.
        size: bytes in it.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        # Unbuffered, so that everything survives if the process is killed.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self.cut(size)

    def append(self, content: bytes | memoryview) -> None:
        """Add bytes at the end.

        Raises:
            OSError: if the disk is full.
        """
        rest = memoryview(content)
        while rest:
            written = self._file.write(rest)
            self.size += written
            rest = rest[written:]

    def cut(self, size: int) -> None:
        """Drop what is behind the first ``size`` bytes."""
        self._file.truncate(size)
        self._file.seek(size)
        self.size = size

    def read(self, size: int) -> BinaryIO:
        """Open the first ``size`` bytes for reading."""
        return io.BufferedReader(_Part(self.path.open("rb"), size))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Part(io.RawIOBase):
    """The first bytes of a file, for reading once."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._rest = file, size

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._file.read(min(len(buffer), self._rest))
        buffer[: len(content)] = content
        self._rest -= len(content)
        return len(content)

    @override
    def close(self) -> None:
        self._file.close()
        super().close()


class SpooledWriter(Writer):
    """A format with one file for all images, which is made from a spool at the end.

    Attributes:
        path: the final file.
        spool: what was written so far.
    """

    file_name: ClassVar[str]
    """Name of the file."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.path = run.output / self.file_name
        self.spool = Spool(spool_path(run.output, self.name), self.done)

    @property
    def done(self) -> int:
        """Bytes of the spool that belong to images in the journal."""
        return self.run.journal.sizes.get(self.name, 0)

    @override
    def write(self, image: PredictedImage) -> None:
        self.add(image)
        image.row.sizes[self.name] = self.spool.size

    @classmethod
    @override
    def check(cls, output: Path, *, unfinished: bool) -> None:
        path = output / cls.file_name
        if path.exists() and not cls.is_own(path):
            raise FileExistsError(
                f"{path} was not written by `meinst predict` and would be overwritten; choose "
                "another --output."
            )

    @classmethod
    @abstractmethod
    def is_own(cls, path: Path) -> bool:
        """Whether a file was written by an earlier run."""

    @abstractmethod
    def add(self, image: PredictedImage) -> None:
        """Append the results of one image to the spool."""

    @abstractmethod
    def convert(self, file: BinaryIO) -> None:
        """Write the final file from what is in the spool.

        Args:
            file: takes the content.
        """

    @override
    def rollback(self) -> None:
        self.spool.cut(self.done)

    @override
    def finish(self) -> None:
        with open_atomically(self.path) as file:
            self.convert(file)

    @override
    def close(self) -> None:
        self.spool.close()


def spool_path(output: Path, name: str) -> Path:
    """The spool of a format."""
    return output / f"{_PREFIX}{name}"


def spool_sizes(output: Path) -> dict[str, int]:
    """The sizes of all spools in a folder, by format."""
    spools = output.glob(f"{_PREFIX}*")
    return {path.name.removeprefix(_PREFIX): path.stat().st_size for path in spools}


def remove_spools(output: Path) -> None:
    """Remove all spools, after a run is complete."""
    for path in output.glob(f"{_PREFIX}*"):
        path.unlink()
