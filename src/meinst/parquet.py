"""Write Parquet files of compact detections: a row is a box, a score, a class and a code.

Nothing is decoded, so the files are small and give back the same detections. The codec is in the
metadata of the file. Rows of an image follow each other; an image without detections has one row
in which everything but the image is null.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from meinst.codecs import Codec
from meinst.codecs.base import MaskDecoder
from meinst.codecs.packed import PackedMaskCodec
from meinst.files import open_atomically
from meinst.version import __version__

INSTALL = "pip install 'meinst[formats]'"

SIDES = ("image_height", "image_width")
"""Columns of the size of an image."""

VERSION = "1"
"""Value of ``meinst.format`` in the metadata."""

PACKED = "packed"
"""Kind of the codec of refined masks."""

_ROWS = 65_536  # of a row group


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
        "meinst.format": VERSION,
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


def _codec_text(codec: MaskDecoder) -> str:
    """A codec as text for the metadata."""
    if isinstance(codec, PackedMaskCodec):
        return json.dumps({"kind": PACKED, "mask_size": codec.mask_size})
    assert isinstance(codec, Codec)
    return json.dumps({"kind": codec.kind, "npz": base64.b64encode(codec.to_bytes()).decode()})


def _lists(values: Tensor, kind: Any) -> Any:
    """``(N, K)`` as an array of ``N`` lists."""
    pa = import_pyarrow()
    flat = values.detach().cpu().contiguous().view(-1).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind)


def _printable(name: str) -> str:
    """A file name as text; bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
