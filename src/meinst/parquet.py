"""Parquet files of compact detections: a row is a box, a score, a class and a code.

Nothing is decoded, so the files are small and give back the same detections. The codec is in the
metadata of the file. Rows of an image follow each other; an image without detections has one row
in which everything but the image is null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from meinst.codecs import Codec
from meinst.codecs.base import MaskDecoder
from meinst.codecs.packed import PackedMaskCodec
from meinst.codecs.registry import codec_from_bytes
from meinst.files import open_atomically
from meinst.options import FileError, check_number
from meinst.version import __version__

T = TypeVar("T", covariant=True)

INSTALL = "pip install 'meinst[formats]'"

_ROWS = 65_536  # of a row group
_SIDES = ("image_height", "image_width")
_VERSION = "1"
_PACKED = "packed"
_MOST_MASK = 512  # side of the masks of a codec


class ParquetError(FileError):
    """A Parquet file does not hold detections; the message gives the rule and the value found."""

    def __init__(self, path: Path, rule: str, found: object) -> None:
        super().__init__(f"{path} is not a Parquet file of detections: {rule}; found {found}.")


class DetectionFields(Protocol):
    """The fields of :class:`meinst.Detections`."""

    @property
    def boxes(self) -> Tensor: ...  # noqa: D102
    @property
    def scores(self) -> Tensor: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def codes(self) -> Tensor: ...  # noqa: D102
    @property
    def track_ids(self) -> Tensor | None: ...  # noqa: D102
    @property
    def image_size(self) -> tuple[int, int]: ...  # noqa: D102
    @property
    def codec(self) -> MaskDecoder: ...  # noqa: D102
    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102


def import_pyarrow() -> Any:
    """The package pyarrow, with its reader of Parquet files.

    Raises:
        ImportError: if it is missing, with the remedy.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Parquet files need the package pyarrow: {INSTALL}") from error
    return pyarrow


def make_schema(codec: MaskDecoder, class_names: tuple[str, ...], model: str = "") -> Any:
    """The columns of a file, and its metadata.

    Args:
        codec: decodes the codes.
        class_names: names of the classes.
        model: fingerprint of the model that found the detections.
    """
    pa = import_pyarrow()
    number = pa.uint8() if codec.code_dtype == torch.uint8 else pa.float32()
    metadata = {
        "meinst": __version__,
        "meinst.format": _VERSION,
        "meinst.model": model,
        "meinst.class_names": json.dumps(list(class_names)),
        "meinst.codec": _codec_text(codec),
    }
    return pa.schema(
        [
            pa.field("image_id", pa.int64(), nullable=False),
            pa.field("file", pa.string(), nullable=False),
            pa.field("image_height", pa.int32(), nullable=False),
            pa.field("image_width", pa.int32(), nullable=False),
            pa.field("box", pa.list_(pa.float32(), 4)),
            pa.field("score", pa.float32()),
            pa.field("class_id", pa.int32()),
            pa.field("class_name", pa.string()),
            pa.field("code", pa.list_(number, codec.n_components)),
            pa.field("track_id", pa.int64()),
        ],
        metadata=metadata,
    )


def make_batch(schema: Any, detections: DetectionFields, image_id: int, file: str) -> Any:
    """The rows of an image, or of some of its detections, as a ``pyarrow.RecordBatch``.

    Args:
        schema: of :func:`make_schema`, for the same codec.
        detections: the detections.
        image_id: id of the image.
        file: its file.
    """
    pa = import_pyarrow()
    count = len(detections.scores)
    rows = max(count, 1)
    height, width = detections.image_size
    labels = detections.labels.cpu().numpy()
    columns = [
        pa.array(np.full(rows, image_id), pa.int64()),
        pa.array([_printable(file)] * rows, pa.string()),
        pa.array(np.full(rows, height), pa.int32()),
        pa.array(np.full(rows, width), pa.int32()),
    ]
    if count == 0:
        columns += [pa.nulls(1, field.type) for field in list(schema)[len(columns) :]]
    else:
        columns += [
            _lists(detections.boxes, schema.field("box").type),
            pa.array(detections.scores.detach().cpu().float().numpy(), pa.float32()),
            pa.array(labels, pa.int32()),
            pa.array([detections.class_names[label] for label in labels.tolist()], pa.string()),
            _lists(detections.codes, schema.field("code").type),
            pa.nulls(count, pa.int64())
            if detections.track_ids is None
            else pa.array(detections.track_ids.cpu().numpy(), pa.int64()),
        ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_parquet(path: Path, schema: Any, batches: Iterable[Any]) -> None:
    """Write a file as a whole.

    Args:
        path: the file.
        schema: of :func:`make_schema`.
        batches: of :func:`make_batch`.

    Raises:
        OSError: if it cannot be written; an existing file is left unchanged.
    """
    with open_atomically(path) as file:
        write_row_groups(file, schema, batches)


def write_row_groups(file: BinaryIO, schema: Any, batches: Iterable[Any]) -> None:
    """Write the content of a file."""
    writer = RowGroupWriter(file, schema)
    for batch in batches:
        writer.write(batch)
    writer.close()


class RowGroupWriter:
    """Writes the content of a file; a row group is written as soon as it is full.

    Args:
        file: open for writing.
        schema: of :func:`make_schema`.
    """

    def __init__(self, file: BinaryIO, schema: Any) -> None:
        self.schema = schema
        options = {"compression": "zstd", "write_page_checksum": True}
        self._writer = import_pyarrow().parquet.ParquetWriter(file, schema, **options)
        self._waiting: list[Any] = []
        self._rows = 0

    def write(self, batch: Any) -> None:
        """Append the rows of a batch."""
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= _ROWS:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the end."""
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        table = import_pyarrow().Table.from_batches(self._waiting, self.schema)
        self._writer.write_table(table, row_group_size=_ROWS)
        self._waiting, self._rows = [], 0


def is_detections_file(path: Path) -> bool:
    """Whether a file is a Parquet file of this package."""
    pa = import_pyarrow()
    try:
        metadata = pa.parquet.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError, ValueError):
        return False
    return b"meinst.format" in metadata


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
            height, width = (table.column(name)[0].as_py() for name in _SIDES)
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
        if version != _VERSION:
            raise ParquetError(self.path, f"meinst.format must be {_VERSION}", version)
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


def _codec_text(codec: MaskDecoder) -> str:
    """A codec as text for the metadata."""
    if isinstance(codec, PackedMaskCodec):
        return json.dumps({"kind": _PACKED, "mask_size": codec.mask_size})
    assert isinstance(codec, Codec)
    return json.dumps({"kind": codec.kind, "npz": base64.b64encode(codec.to_bytes()).decode()})


def _read_codec(path: Path, metadata: Mapping[str, str]) -> MaskDecoder:
    content = _json(path, metadata, "meinst.codec")
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind == _PACKED:
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


def _lists(values: Tensor, kind: Any) -> Any:
    """``(N, K)`` as an array of ``N`` lists."""
    pa = import_pyarrow()
    flat = values.detach().cpu().contiguous().view(-1).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind)


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


def _printable(name: str) -> str:
    """A file name as text; bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
