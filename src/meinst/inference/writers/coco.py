"""Results in COCO's format: ``predictions.json``, and ``images.json`` with the files of the ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import BinaryIO

from typing_extensions import override

from meinst.inference.results import RESULTS, write_images
from meinst.inference.writers.base import PredictedImage
from meinst.inference.writers.spool import SpooledWriter


class COCOWriter(SpooledWriter):
    """The spool holds the entries of ``predictions.json``, separated by commas."""

    name = "coco"
    file_name = RESULTS

    @classmethod
    @override
    def is_own(cls, path: Path) -> bool:
        return True  # decided by images.json, before the names of overlays are chosen

    @override
    def add(self, image: PredictedImage) -> None:
        soft_masks = image.soft_masks
        for start, part in image.chunks():
            soft = None if soft_masks is None else soft_masks[start : start + len(part)]
            text = json.dumps(part.to_coco(image.id, soft_masks=soft))[1:-1]
            self.spool.append((", " if self.spool.size else "").encode() + text.encode())

    @override
    def convert(self, file: BinaryIO) -> None:
        file.write(b"[")
        with self.spool.read(self.done) as entries:
            shutil.copyfileobj(entries, file)
        file.write(b"]")

    @override
    def finish(self) -> None:
        write_images(self.run.output, self.run.class_names, self.run.journal.rows())
        super().finish()
