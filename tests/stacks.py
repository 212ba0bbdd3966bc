"""Draw stacks of several frames and channels, and write them as the programs of the field do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

T, Z, C, HEIGHT, WIDTH = 2, 3, 2, 48, 64

# Each channel has a range of its own, so a wrong one or a common stretch is seen.
STACK = (
    np.random.default_rng(7).integers(0, 60_000, (T, Z, C, HEIGHT, WIDTH))
    // np.array([1, 40])[:, None, None]
).astype(np.uint16)
"""``(T, Z, C, H, W)`` uint16."""


def write_imagej(path: Path, values: NDArray[Any], axes: str, **options: Any) -> Path:
    """Write a hyperstack with a page for each plane, as ImageJ's axes ``TZCYX`` want them."""
    tifffile.imwrite(path, values, imagej=True, metadata={"axes": axes}, **options)
    return path


def write_virtual_imagej(path: Path, values: NDArray[Any]) -> Path:
    """Write ``(T, Z, C, H, W)`` behind a single page, as ImageJ does for stacks above 4 GB."""
    t, z, c = values.shape[:3]
    description = (
        f"ImageJ=1.54f\nimages={t * z * c}\nchannels={c}\nslices={z}\nframes={t}\n"
        "hyperstack=true\nmode=grayscale\nloop=false\n"
    )
    tifffile.imwrite(
        path,
        values.reshape(-1, *values.shape[-2:])[0],
        byteorder=">",
        description=description,
        metadata=None,
        photometric="minisblack",
        rowsperstrip=values.shape[-2],
    )
    with path.open("ab") as file:  # the first plane is the end of what tifffile wrote
        file.write(values.reshape(-1, *values.shape[-2:])[1:].astype(">u2").tobytes())
    return path


def write_ome(path: Path, values: NDArray[Any], axes: str, **options: Any) -> Path:
    """Write an OME-TIFF file."""
    tifffile.imwrite(path, values, ome=True, metadata={"axes": axes}, **options)
    return path


def write_ome_pyramid(path: Path, values: NDArray[Any], axes: str, levels: int = 2) -> Path:
    """Write an OME-TIFF file whose planes have smaller copies, each of every second pixel."""
    with tifffile.TiffWriter(path, ome=True, bigtiff=True) as file:
        tiles: dict[str, Any] = {"tile": (32, 32), "photometric": "minisblack"}
        file.write(values, subifds=levels, metadata={"axes": axes}, **tiles)
        for level in range(1, levels + 1):
            step = 2**level
            file.write(values[..., ::step, ::step], subfiletype=1, **tiles)
    return path
