"""The physical size of a pixel, from what microscopes and slide scanners write into TIFF files."""

from __future__ import annotations

import math
import re
from html import unescape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

# Coarser resolutions are those of print and screens, which programs write into any file.
_COARSEST = 20.0  # micrometres, 1,270 pixels per inch
_NUMBER = r"([-+.\deE]+)"
_IN_MICROMETRES = {
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    r"\u00b5m": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "inch": 25400.0,
}
_INCH, _CENTIMETRE = 2, 3  # values of the tag ResolutionUnit


def tiff_pixel_size(file: TiffFile, page: TiffPage, image: int = 0) -> float | None:
    """Side of a pixel in micrometres, the mean of width and height; None if it is not stated.

    Read from OME's ``PhysicalSizeX``, Aperio's ``MPP``, ImageJ's unit, or the tags of the
    resolution if they give at most 20 micrometres.

    Args:
        file: the file.
        page: the page.
        image: number of its image in the metadata of OME.
    """
    description = page.description
    stated = _ome(file.ome_metadata or "", image) if file.is_ome else math.nan
    if found := re.search(rf"\bMPP\s*=\s*{_NUMBER}", description):
        stated = _float(found[1])
    if 0 < stated < math.inf:
        return stated
    x, y = (_pixels_per_unit(page, code) for code in (282, 283))
    if not (x and y):
        return None
    if description.startswith("ImageJ="):
        unit = re.search(r"^unit=(.+?)\s*$", description, re.MULTILINE)
        factor = _IN_MICROMETRES.get(unit[1].lower()) if unit else None
    else:
        unit_code = int(page.tags.valueof(296, _INCH))
        factor = {_INCH: 25400.0, _CENTIMETRE: 1e4}.get(unit_code)
    side = math.nan if factor is None else (1 / x + 1 / y) / 2 * factor
    return side if 0 < side <= _COARSEST else None


def _ome(description: str, image: int) -> float:
    """The size in OME's metadata; NaN if there is none."""
    images = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", description)
    if image >= len(images):
        return math.nan
    pixels, sides = images[image], []
    for axis in "XY":
        value = re.search(rf"\bPhysicalSize{axis}\s*=\s*[\"']{_NUMBER}[\"']", pixels)
        unit = re.search(rf"\bPhysicalSize{axis}Unit\s*=\s*[\"'](.+?)[\"']", pixels)
        factor = _IN_MICROMETRES.get(unescape(unit[1]), math.nan) if unit else 1.0
        sides.append(_float(value[1]) * factor if value else math.nan)
    return sum(sides) / 2


def _pixels_per_unit(page: TiffPage, code: int) -> float:
    """Value of a resolution tag; 0 if there is none."""
    value = page.tags.valueof(code, (0, 1))
    try:
        return float(value[0]) / float(value[1])
    except (TypeError, IndexError, ZeroDivisionError):
        return 0.0


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
