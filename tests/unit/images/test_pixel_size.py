from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from meinst.images.tiff_regions import TiffRegions

PIXELS = np.zeros((64, 64), np.uint8)


def size_of(path: Path, **options: Any) -> float | None:
    tifffile.imwrite(path, PIXELS, **options)
    return TiffRegions(path).pixel_size


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [("µm", 0.25, 0.25), ("nm", 250.0, 0.25), ("mm", 0.0005, 0.5), ("pixel", 1.0, None)],
)
def test_ome_states_size_and_unit(
    tmp_path: Path, unit: str, value: float, expected: float | None
) -> None:
    metadata = {
        "axes": "YX",
        "PhysicalSizeX": value,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": value,
        "PhysicalSizeYUnit": unit,
    }
    assert size_of(tmp_path / "a.ome.tif", ome=True, metadata=metadata) == pytest.approx(expected)


def test_aperio_states_micrometres_per_pixel(tmp_path: Path) -> None:
    description = "Aperio Image Library v11\r\n64x64 |AppMag = 20|MPP = 0.4990|Left = 1"
    found = size_of(tmp_path / "a.svs", description=description, metadata=None)
    assert found == pytest.approx(0.499)


def test_imagej_states_its_unit(tmp_path: Path) -> None:
    found = size_of(tmp_path / "a.tif", imagej=True, resolution=(2.5, 2.5), metadata={"unit": "um"})
    assert found == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((40000, 40000), "CENTIMETER", 0.25),
        ((50800, 50800), "INCH", 0.5),
        ((20000, 40000), "CENTIMETER", 0.375),  # the mean of 0.5 and 0.25
        ((300, 300), "INCH", None),  # of print
        ((1, 1), "NONE", None),
    ],
)
def test_resolution_tags_of_microscopes_count(
    tmp_path: Path, resolution: tuple[int, int], unit: str, expected: float | None
) -> None:
    found = size_of(tmp_path / "a.tif", resolution=resolution, resolutionunit=unit)
    assert found == pytest.approx(expected)


def test_without_any_the_size_is_unknown(tmp_path: Path) -> None:
    assert size_of(tmp_path / "a.tif") is None
