"""Overlays: the image with its detections, as JPEG."""

from __future__ import annotations

from typing_extensions import override

from meinst.inference.results import write_overlay
from meinst.inference.writers.base import PredictedImage, Writer


class OverlayWriter(Writer):
    """``NAME.jpg`` in the output folder."""

    name = "overlay"

    @override
    def write(self, image: PredictedImage) -> None:
        path = self.run.output / f"{image.name}.jpg"
        write_overlay(image.pixels, image.detections, path, image.soft_masks)
        assert image.row.image is not None
        image.row.image["overlay"] = path.name
