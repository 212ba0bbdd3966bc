"""Read Parquet files of compact detections image by image."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from meinst.codecs.base import MaskDecoder
from meinst.codecs.packed import PackedMaskCodec
from meinst.codecs.registry import codec_from_bytes
from meinst.options import FileError, check_number
from meinst.parquet import PACKED, SIDES, VERSION, import_pyarrow, make_schema

T = TypeVar("T", covariant=True)

_MOST_MASK = 512  # side of the masks of a codec


class ParquetError(FileError):
    """A Parquet file does not hold detections; the message gives the rule and the value found."""

    def __init__(self, path: Path, rule: str, found: object) -> None:
        super().__init__(f"{path} is not a Parquet file of detections: {rule}; found {found}.")


class StoredDetections(Mapping[int, T], Generic[T]):
    """The detections in a Parquet file by image id; read when they are accessed.

    In memory are the ids and one row group. Close it, or use it in a ``with`` statement.

    Args:
        path: the file.
        build: constructs the detections of an image from their fields.

    Attributes:
        path: the file.
        codec: decodes the codes.
        class_names: names of the classes.
        model: fingerprint of the model that found the detections.

    Raises:
        FileNotFoundError: if the file does not exist.
        ParquetError: if it does not hold detections, or is damaged.
        ImportError: if pyarrow is missing.
    """

    def __init__(self, path: str | Path, build: Callable[..., T]) -> None:
        self.path = Path(path)
        self._build = build
        pa = import_pyarrow()
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} does not exist; give a Parquet file.")
        try:
            self._file = pa.parquet.ParquetFile(self.path, page_checksum_verification=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ParquetError(self.path, "it must be a whole Parquet file", error) from error
        with self._reading("its metadata must be whole"):
            self.class_names, self.codec, self.model = self._read_metadata()
        ids = self._column("image_id")
        changes = np.flatnonzero(np.diff(ids)) + 1
        starts = np.concatenate(([0], changes))[: len(ids)]
        ends = np.append(changes, len(ids))[: len(starts)]
        self._rows = {int(ids[a]): (int(a), int(b)) for a, b in zip(starts, ends, strict=True)}
        groups = self._file.metadata
        sizes = [groups.row_group(k).num_rows for k in range(groups.num_row_groups)]
        self._starts = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        self._held: tuple[int, Any] | None = None  # number and table of the last row group

    def __len__(self) -> int:
        return len(self._rows)

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._rows)

    @override
    def __getitem__(self, image_id: int) -> T:
        """The detections of an image.

        Raises:
            KeyError: if there is no such image.
            ParquetError: if its rows are damaged.
        """
        rows = self._rows[image_id]
        with self._reading(f"image {image_id} must be valid"):
            table = self._table(*rows)
            height, width = (table.column(name)[0].as_py() for name in SIDES)
            table = table.filter(table.column("score").is_valid())
            return self._build(
                boxes=torch.from_numpy(_matrix(table.column("box"), np.float32)),
                scores=torch.from_numpy(_vector(table.column("score"), np.float32)),
                labels=torch.from_numpy(_vector(table.column("class_id"), np.int64)),
                codes=torch.from_numpy(_matrix(table.column("code"), self._code_type)),
                image_size=(height, width),
                codec=self.codec,
                class_names=self.class_names,
                track_ids=_tracks(table.column("track_id")),
            )

    def file(self, image_id: int) -> str:
        """The file of an image, as it was given to the command that found the detections.

        Raises:
            KeyError: if there is no such image.
        """
        start, _ = self._rows[image_id]
        with self._reading(f"image {image_id} must be valid"):
            name: str = self._table(start, start + 1).column("file")[0].as_py()
        return name

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _reading(self, rule: str) -> Iterator[None]:
        """Report what pyarrow raises for damaged pages, and what does not fit together."""
        try:
            yield
        except ParquetError:
            raise
        except (import_pyarrow().ArrowException, OSError, ValueError) as error:
            raise ParquetError(self.path, rule, error) from error

    def _read_metadata(self) -> tuple[tuple[str, ...], MaskDecoder, str]:
        metadata = {
            key.decode(errors="replace"): value.decode(errors="replace")
            for key, value in (self._file.schema_arrow.metadata or {}).items()
        }
        version = metadata.get("meinst.format")
        if version != VERSION:
            raise ParquetError(self.path, f"meinst.format must be {VERSION}", version)
        names = _json(self.path, metadata, "meinst.class_names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ParquetError(self.path, "meinst.class_names must be a list of names", names)
        codec = _read_codec(self.path, metadata)
        expected = make_schema(codec, tuple(names))
        if not self._file.schema_arrow.equals(expected, check_metadata=False):
            columns = ", ".join(f"{f.name} ({f.type})" for f in self._file.schema_arrow)
            raise ParquetError(self.path, f"its columns must be {expected.names}", columns)
        self._code_type = np.uint8 if codec.code_dtype == torch.uint8 else np.float32
        return tuple(names), codec, metadata.get("meinst.model", "")

    def _column(self, name: str) -> np.ndarray:
        with self._reading(f"its column {name} must be whole"):
            column: np.ndarray = self._file.read(columns=[name]).column(name).to_numpy()
        return column

    def _table(self, start: int, end: int) -> Any:
        """Some rows, from the row groups that hold them; the last group is kept."""
        pa = import_pyarrow()
        first = int(np.searchsorted(self._starts, start, "right")) - 1
        last = int(np.searchsorted(self._starts, end, "left")) - 1
        parts = []
        for group in range(first, last + 1):
            if self._held is None or self._held[0] != group:
                self._held = None  # before the next one is read
                self._held = group, self._file.read_row_group(group)
            offset = int(self._starts[group])
            low, high = max(start - offset, 0), min(end, int(self._starts[group + 1])) - offset
            parts.append(self._held[1].slice(low, high - low))
        return pa.concat_tables(parts)


def _read_codec(path: Path, metadata: Mapping[str, str]) -> MaskDecoder:
    content = _json(path, metadata, "meinst.codec")
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind == PACKED:
        try:
            check_number("mask_size", content.get("mask_size"), 1, _MOST_MASK, whole=True)
        except ValueError as error:
            raise ParquetError(path, "its codec must be valid", error) from error
        return PackedMaskCodec(content["mask_size"])
    try:
        archive = base64.b64decode(content["npz"], validate=True)
    except (TypeError, KeyError, ValueError) as error:
        raise ParquetError(path, "meinst.codec must hold a codec", f"{kind!r}") from error
    codec = codec_from_bytes(archive, path)
    assert isinstance(codec, nn.Module)
    return codec


def _json(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    try:
        return json.loads(metadata.get(key, ""))
    except (ValueError, RecursionError) as error:
        raise ParquetError(path, f"{key} must be JSON", metadata.get(key, "")[:60]) from error


def _matrix(column: Any, dtype: type) -> np.ndarray:
    """An array of lists as ``(N, K)``, a copy."""
    width = column.type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(parts) if parts else np.zeros(0, dtype)
    return np.array(flat.reshape(-1, width), dtype)


def _vector(column: Any, dtype: type) -> np.ndarray:
    """An array of numbers, a copy."""
    return np.array(column.to_numpy(), dtype)


def _tracks(column: Any) -> Tensor | None:
    """Numbers of tracks; None if there are none."""
    if column.null_count == len(column):
        return None
    if column.null_count:
        raise ValueError("some detections have a track_id and others do not")
    return torch.from_numpy(_vector(column, np.int64))
