"""Results in COCO's format: ``predictions.json``, and ``images.json`` with the files of the ids."""

from __future__ import annotations

from typing_extensions import override

from meinst.inference.results import write_results
from meinst.inference.writers.base import PredictedImage, Writer


class COCOWriter(Writer):
    """The results are in the journal until all images are done."""

    name = "coco"

    @override
    def write(self, image: PredictedImage) -> None:
        image.row.results.extend(image.detections.to_coco(image.id, soft_masks=image.soft_masks))

    @override
    def finish(self) -> None:
        write_results(self.run.output, self.run.class_names, self.run.journal.rows())
