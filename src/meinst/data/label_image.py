"""Read images whose values are numbers of objects or classes, not colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.images import ImageError, check_file, file_error
from meinst.images.extent import image_extent
from meinst.images.readers import (
    HEAD,
    check_pixels,
    is_big_endian_bigtiff,
    open_image,
    orientation_of,
    read_deep,
    read_tiff,
)
from meinst.images.rgb import turn


def read_labels(path: Path) -> NDArray[Any]:
    """The values of a label image as they are stored, turned upright: ``(H, W)`` or ``(H, W, C)``.

    Of images with a palette, these are the indices into it.

    Raises:
        ImageError: as :func:`load_image`, or if the file has several pages or is a JPEG file, which
            does not keep values.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
        if is_big_endian_bigtiff(head):
            return turn(*read_tiff(path))
        with open_image(path) as image:
            check_pixels(image.width, image.height)
            fault = "is a JPEG file, which does not keep values" if image.format == "JPEG" else ""
            extent = image_extent(path, image)
            pages = extent.frames * extent.channels
            fault = f"has {pages} pages, a label image has one" if pages > 1 else fault
            deep = None if fault else read_deep(path, image)
            values, orientation = deep or (np.asarray(image), orientation_of(image))
    except Exception as error:  # as in _read_file
        raise file_error(error, path) from error
    if fault:
        raise ImageError(f"{path} {fault}; save it as one PNG or TIFF file for each image.")
    return turn(values, orientation)
