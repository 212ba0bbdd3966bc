"""Compact detections of all images in one Parquet file, ``detections.parquet``.

The spool is a stream of Arrow's IPC format: the schema, then a record batch for each image.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from meinst.inference.writers.base import PredictedImage
from meinst.inference.writers.spool import SpooledWriter
from meinst.parquet import (
    import_pyarrow,
    is_detections_file,
    make_batch,
    make_schema,
    write_row_groups,
)


class ParquetWriter(SpooledWriter):
    """The codes as they are: nothing is decoded, and ``Detections.from_parquet`` reads them."""

    name = "parquet"
    file_name = "detections.parquet"

    @classmethod
    @override
    def is_own(cls, path: Path) -> bool:
        return is_detections_file(path)

    @override
    def add(self, image: PredictedImage) -> None:
        detections = image.detections
        schema = make_schema(detections.codec, detections.class_names, self.run.model)
        if self.spool.size == 0:
            self.spool.append(schema.serialize())
        parts = [part for _, part in image.chunks()] or [detections]
        for part in parts:
            batch = make_batch(schema, part, image.id, str(image.source))
            self.spool.append(batch.serialize())

    @override
    def convert(self, file: BinaryIO) -> None:
        pa = import_pyarrow()
        with self.spool.read(self.done) as stream, pa.ipc.open_stream(stream) as batches:
            write_row_groups(file, batches.schema, batches)
