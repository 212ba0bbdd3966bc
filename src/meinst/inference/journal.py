"""The journal of a prediction run: one line for each finished image, for ``--resume``.

The first line describes the run. An image's line is written after its files, so a killed run
loses only the images that it was working on. At the end the lines become the result files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from meinst.detector.passes import NO_TILES, TileOptions
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.files import write_atomically
from meinst.images.frames import PictureSource
from meinst.options import options_to_dict
from meinst.version import __version__

JOURNAL = "predictions.journal"
_FORMAT = 1
# What the keys of the first line describe, for error messages.
_NOUNS = {
    "meinst": "the version of meinst",
    "model": "the digest of the model",
    "class_names": "the list of classes",
    "images": "the number of images",
    "sources": "the digest of the list of images",
    "overlays": "the digest of the overlays' names (chosen to avoid existing files)",
    "formats": "the list of formats (--save)",
}


@dataclass(frozen=True)
class Row:
    """What the result files contain of one image.

    Attributes:
        image: its entry in ``images.json``; None if it failed.
        error: why it failed; None if it did not.
        detections: how many were found.
        sizes: for formats with one file for all images, its bytes after this one, by format.
    """

    image: dict[str, Any] | None
    error: str | None = None
    detections: int = 0
    sizes: dict[str, int] = field(default_factory=dict)


class Journal:
    """The journal in an output folder, open for the rows of further images.

    Args:
        folder: the output folder, locked by this process.
        header: what a resumed run must share, from :func:`describe_run`.
        resume: continue an unfinished run instead of starting one.
        batch_size: a resumed run starts with the first image of a batch, so that its batches are
            those of a run without interruption.
        sizes: bytes that are there of the files of all images, by format; rows that need more are
            dropped.

    Attributes:
        path: the file.
        done: number of images in it.
        failed: how many of them failed.
        detections: number of detections in them.
        sizes: those of the last row.

    Raises:
        FileExistsError: if the folder holds an unfinished run, but ``resume`` is not set, or a
            file of this name that is no journal.
        FileNotFoundError: if there is no run to resume.
        ValueError: if the unfinished run had another header.
    """

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, Any],
        *,
        resume: bool,
        batch_size: int = 1,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        self.path = folder / JOURNAL
        self.done = self.failed = self.detections = 0
        self.sizes: dict[str, int] = {}
        _check_journal(self.path, header, resume=resume)
        if not resume:
            write_atomically(self.path, _line(header))
        lines = _read_lines(self.path)
        _, end = next(lines)
        failed = detections = 0
        for number, (content, offset) in enumerate(lines, start=1):
            needed = content.get("sizes", {})
            if any(size > (sizes or {}).get(name, 0) for name, size in needed.items()):
                break  # after a crash of the system, which may keep later writes only
            failed += content["error"] is not None
            detections += content.get("detections", 0)
            if number % batch_size == 0 or number == header["images"]:
                self.done, self.failed, end = number, failed, offset
                self.detections, self.sizes = detections, needed
        # Every line is passed on to the system at once, so it survives if the process is killed.
        self._file = self.path.open("r+b", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)

    def append(self, row: Row) -> None:
        """Add the row of the next image.

        Raises:
            OSError: if the disk is full; the rows before it are kept.
        """
        rest = memoryview(_line(vars(row)))
        while rest:
            rest = rest[self._file.write(rest) :]
        self.done += 1
        self.failed += row.error is not None
        self.detections += row.detections
        self.sizes = row.sizes

    def rows(self) -> Iterator[Row]:
        """The rows of all images in order, read one by one."""
        lines = _read_lines(self.path)
        next(lines)
        for content, _ in lines:
            yield Row(**content)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def describe_run(
    model: Predictor,
    selection: SelectOptions,
    sources: Sequence[PictureSource],
    overlays: Sequence[str],
    tiles: TileOptions = NO_TILES,
) -> dict[str, Any]:
    """What the results depend on: the model, the selection and the images.

    Args:
        model: the model.
        selection: what counts as a detection.
        sources: the image files.
        overlays: the file name of each one's overlay.
        tiles: which images are predicted in windows.
    """
    return {
        "journal": _FORMAT,
        "meinst": __version__,
        "model": model_digest(model),
        "class_names": list(model.class_names),
        **options_to_dict(selection),
        "intensity": model.input_options.intensity,
        "channels": list(model.input_options.channels),
        "tile": tiles.tile,
        "pixel_size": tiles.pixel_size or model.input_options.pixel_size,
        "max_detections_in_windows": tiles.max_detections,
        "images": len(sources),
        "sources": _digest(str(source).encode(errors="surrogateescape") for source in sources),
        "overlays": _digest(name.encode(errors="surrogateescape") for name in overlays),
    }


def model_digest(model: Predictor) -> str:
    """Digest of a model's tensors and input size and, if it was exported, of its graph."""

    def parts() -> Iterator[bytes]:
        yield json.dumps(options_to_dict(model.resize_options)).encode()
        yield json.dumps(model.codec.get_config()).encode()
        for name, tensor in model.state_dict().items():
            yield name.encode()
            plain = tensor.detach().cpu().contiguous().reshape(-1)
            yield plain.view(torch.uint8).numpy().tobytes()
        for path in model.metadata.get("graph", ()):
            with path.open("rb") as file:
                yield from iter(lambda: file.read(1 << 20), b"")

    return _digest(parts())


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part + b"\0")
    return digest.hexdigest()[:16]


def _check_journal(path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
    """Reject a journal that does not fit the run; see :class:`Journal`."""
    lines = _read_lines(path)
    before = next(lines, ({}, 0))[0]
    if path.exists() and "journal" not in before:
        raise FileExistsError(
            f"{path} was not written by `meinst predict` and would be overwritten; choose another "
            "--output."
        )
    if not resume:
        if next(lines, None) is not None:
            raise FileExistsError(
                f"{path.parent} contains an unfinished run; continue it with --resume, choose "
                f"another --output, or remove its {path.name}."
            )
        return
    if not before:
        raise FileNotFoundError(
            f"{path.parent}: there is no unfinished run to resume; start one without --resume."
        )
    for key, value in header.items():
        if before.get(key) != value:
            raise ValueError(
                f"{path.parent}: {_NOUNS.get(key, key)} is {value}, but was {before.get(key)} in "
                "the run to resume; use the same model, images and options, or choose another "
                "--output."
            )


def _read_lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The content and the end of each line, up to the first that is incomplete or damaged."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = 0
        for line in file:
            end += len(line)
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                return
            if not isinstance(content, dict):
                return
            yield content, end


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"
