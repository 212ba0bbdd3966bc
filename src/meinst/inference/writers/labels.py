"""Label images: TIFF files in which every pixel holds the number of its object."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from meinst.files import open_atomically
from meinst.inference.writers.base import FolderWriter, PredictedImage
from meinst.inference.writers.strips import LabelStrips, reductions, report_depth

_TILE = 512  # pixels
# Larger images become pyramids, so that viewers need not read all of them.
_LARGEST_FLAT, _LARGEST_TOP = 4096, 1024
_ROOM = 2**31  # bytes from which on a file is a BigTIFF


class LabelsWriter(FolderWriter):
    """``labels/NAME.tif``: tiles compressed with Deflate; reduced copies of large images."""

    name = "labels"
    suffix = ".tif"

    @override
    def write(self, image: PredictedImage) -> None:
        from tifffile import FileHandle, TiffWriter

        detections = image.detections
        size = detections.image_size
        factors = reductions(size, _LARGEST_TOP) if max(size) > _LARGEST_FLAT else [1]
        path = self.path(image)
        strips = LabelStrips(detections)
        large = size[0] * size[1] * strips.dtype().itemsize > _ROOM
        report_depth(path, detections)
        with (
            open_atomically(path) as file,
            # tifffile expects the name of a file, which temporary ones lack.
            FileHandle(file, name=path.name) as handle,
            TiffWriter(handle, bigtiff=large) as tiff,
        ):
            for factor in factors:
                level = strips if factor == 1 else LabelStrips(detections, factor)
                tiff.write(
                    level.tiles(_TILE),
                    shape=level.size,
                    dtype=level.dtype,
                    tile=(_TILE, _TILE),
                    photometric="minisblack",
                    compression="zlib",
                    metadata=None,
                    subifds=len(factors) - 1 if factor == 1 else None,
                    subfiletype=0 if factor == 1 else 1,
                    maxworkers=1,
                    **_resolution(image.pixel_size, factor),
                )


def _resolution(pixel_size: float | None, factor: int) -> dict[str, Any]:
    """The physical size of a pixel, as tifffile takes it."""
    if pixel_size is None:
        return {}
    per_centimetre = 1e4 / (pixel_size * factor)
    return {"resolution": (per_centimetre, per_centimetre), "resolutionunit": "CENTIMETER"}
