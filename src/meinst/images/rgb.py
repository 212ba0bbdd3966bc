"""Turn, choose and convert the pixel values of one image to RGB of 8 bits."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from meinst.images.intensity import InputOptions, Stretch, apply_stretch, scale_opacity
from meinst.images.readers import check_channels
from meinst.images.tiff_levels import Region

Pixels: TypeAlias = NDArray[np.uint8]
"""``(H, W, 3)`` RGB."""


def turn(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation, 1 to 8, to ``(H, W)`` or ``(H, W, C)``."""
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)


def stored_region(region: Region, size: tuple[int, int], orientation: int) -> Region:
    """Where a region of the upright image is in the stored one, which :func:`turn` turns.

    Args:
        region: ``x1 y1 x2 y2`` in pixels.
        size: height and width of the stored image.
        orientation: EXIF orientation, 1 to 8.
    """
    x1, y1, x2, y2 = region
    height, width = size[::-1] if orientation >= 5 else size
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    return (y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2)


def choose_channels(values: NDArray[Any], options: InputOptions) -> NDArray[Any]:
    """The chosen channels of ``(H, W)`` or ``(H, W, C)``; all if none are chosen.

    Raises:
        UnsupportedImageError: if one of them is not there.
    """
    if not options.channels:
        return values
    values = np.atleast_3d(values)
    check_channels(options.channels, values.shape[2])
    return values[..., list(options.channels)]


def pillow_to_rgb(image: Image.Image) -> Pixels:
    """Convert a Pillow image of up to 8 bits."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.mode in ("RGBa", "La") or image.has_transparency_data:
        opaque = image.convert("LA") if image.mode == "La" else image
        opaque = opaque.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, opaque)
    return np.array(image.convert("RGB"))


def values_to_rgb(values: NDArray[Any], stretch: Stretch | None, opaque: float) -> Pixels:
    """Convert values to ``(H, W, 3)`` uint8 RGB.

    Args:
        values: ``(H, W)`` or ``(H, W, C)``, ``C`` from 1 to 4; even numbers include opacity.
        stretch: how values become 0 to 255; None for 8 bits and bool.
        opaque: the value of full opacity.
    """
    channels = values.shape[2] if values.ndim == 3 else 1
    opacity = channels in (2, 4) and values.dtype != np.uint8
    pixels = apply_stretch(values[..., :-1] if opacity else values, stretch)
    if opacity:
        pixels = np.concatenate((pixels, scale_opacity(values[..., -1:], opaque)), axis=-1)
    if channels in (2, 4):
        return pillow_to_rgb(Image.fromarray(pixels, "LA" if channels == 2 else "RGBA"))
    if pixels.ndim == 2:
        pixels = pixels[..., None]  # (H, W, 1)
    rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    return np.ascontiguousarray(rgb)
