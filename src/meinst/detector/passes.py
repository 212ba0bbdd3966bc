"""Plan how an image is predicted in windows: in passes, from fine to coarse.

Each pass covers the image with overlapping windows. An object that is smaller than the overlap lies
completely in one of them; a larger one is left to the next pass, whose windows are four times as
large and shrunk as much. The last pass is the whole image as it is predicted without windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from meinst.data.transforms import resized_size
from meinst.images.notes import MAX_SHRINK, ImageNotes
from meinst.ops.windows import window_grid
from meinst.options import check_number

if TYPE_CHECKING:
    from meinst.detector.predictor import Predictor

MIN_TILE = 32
"""Smallest side of a window, in pixels."""

Tile: TypeAlias = Literal["auto", "off"] | int
"""Which images are predicted in windows; see :class:`TileOptions`."""

COARSER = 4
"""Factor between the scales of two passes."""

_PADDING = 32  # inputs are padded to multiples of this
_OVERLAP_STRIDES = 32  # so that an object that one pass leaves to the next spans 8 strides there
_MARGIN = 4.0  # boxes that end this close to a window's border are cut, in pixels of the input


@dataclass(frozen=True)
class TileOptions:
    """Whether and how images are predicted in windows.

    Attributes:
        tile: auto: images in which objects would be missed because they are shrunk too much for
            the network; off: none; a number: images with a longer side, in windows of this many
            pixels.
        pixel_size: side of a pixel of the network's input, in micrometres; images are resized to it
            by the pixel size in their file. None: as the model was trained, which is by pixels
            unless its recipe has a ``pixel_size``.
        max_detections: limit of detections of an image that is predicted in windows; None for no
            limit.
    """

    tile: Tile = "auto"
    pixel_size: float | None = None
    max_detections: int | None = None

    def __post_init__(self) -> None:
        """Reject other values."""
        if self.tile not in ("auto", "off"):
            if isinstance(self.tile, str):
                raise ValueError(
                    f"tile must be auto, off or a number of pixels, got {self.tile!r}."
                )
            check_number("tile", self.tile, MIN_TILE, math.inf, whole=True)
        if self.pixel_size is not None:
            check_number("pixel_size", self.pixel_size, 0, math.inf)
            if not 0 < self.pixel_size < math.inf:
                raise ValueError(f"pixel_size must be above 0, got {self.pixel_size}.")
            if self.tile == "off":
                raise ValueError("pixel_size needs windows; use another tile than off.")
        if self.max_detections is not None:
            check_number("max_detections", self.max_detections, 1, math.inf, whole=True)

    @classmethod
    def from_text(
        cls, tile: str, pixel_size: float | None = None, max_detections: int | None = None
    ) -> TileOptions:
        """The options of a command line, where numbers are text.

        Raises:
            ValueError: if a value is not allowed.
        """
        number = int(tile) if tile.isascii() and tile.isdigit() else tile
        return cls(number, pixel_size, max_detections)  # type: ignore[arg-type]

    def fits(self, height: int, width: int) -> bool:
        """Whether an image is read and predicted as a whole, at least at first."""
        if self.tile == "off":
            return True
        if self.pixel_size is not None:
            return False
        if self.tile == "auto":
            return height * width <= (Image.MAX_IMAGE_PIXELS or math.inf)
        return max(height, width) <= self.tile


NO_TILES = TileOptions("off")
"""Predict all images as a whole."""


@dataclass(frozen=True)
class Pass:
    """One look at the whole image.

    Attributes:
        windows: ``(M, 4)`` int64 ``x1 y1 x2 y2`` in pixels of the image, row by row.
        scale: pixels of the network's input for each pixel of the image; None if the whole image is
            resized as without windows.
        overlap: pixels of the image that neighbouring windows share at least; 0 for one window.
        smallest: detections with a shorter longer side are left to the pass before, in pixels of
            the image.
    """

    windows: NDArray[np.int64]
    scale: float | None
    overlap: int = 0
    smallest: float = 0.0

    @property
    def margin(self) -> float:
        """How close to a window's border an object is cut, in pixels of the image."""
        return _MARGIN / (self.scale or 1.0)

    @property
    def complete(self) -> float:
        """Objects up to this size lie completely in a window, in pixels of the image."""
        return max(self.overlap - 2 * self.margin, 0.0)

    def input_size(self, window: NDArray[np.int64]) -> tuple[int, int]:
        """Height and width of a window in the network's input."""
        assert self.scale is not None
        width, height = window[2] - window[0], window[3] - window[1]
        return max(1, round(height * self.scale)), max(1, round(width * self.scale))


def needs_windows(model: Predictor, tiles: TileOptions, notes: ImageNotes) -> bool:
    """Whether an image that was predicted as a whole is to be predicted in windows, too.

    So it is, with ``auto``, if the objects found are at the limit of what the network can see, or
    the image was shrunk more than 12 times. If nothing is found in an image that was shrunk more
    than 4 times, only a model that was trained on parts of images is expected to find something in
    windows: the objects of other models scale with the image, as in photographs.

    Args:
        model: its recipe decides what it was trained on.
        tiles: the options.
        notes: how the image was shrunk, and the size of the objects found.
    """
    if tiles.tile != "auto" or not notes.shrunk_too_much:
        return False
    augment = getattr(model.metadata.get("recipe"), "augment", None)
    crop = getattr(augment, "crop_size", None)
    on_parts = crop is not None and crop < model.resize_options.shorter_side
    return on_parts or notes.object_side is not None or notes.shrink > MAX_SHRINK


def plan_passes(
    model: Predictor, size: tuple[int, int], tiles: TileOptions, pixel_size: float | None = None
) -> list[Pass]:
    """The passes over an image, from fine to coarse.

    Args:
        model: its input size, strides and pixel size decide.
        size: height and width of the image.
        tiles: the options.
        pixel_size: side of a pixel of the image in micrometres; None if it is not known.
    """
    side, scale = _finest_window(model, tiles, pixel_size)
    overlap = min(side // 2, math.ceil(_OVERLAP_STRIDES * model.options.strides[0] / scale))
    passes: list[Pass] = []
    smallest = 0.0
    while max(size) > side:
        multiple = max(1, round(_PADDING / scale))
        grid = window_grid(size, side, overlap, multiple)
        passes.append(Pass(grid, scale, overlap, smallest))
        # Boxes are not exact, so both passes may keep objects of about this size.
        smallest = 0.8 * passes[-1].complete
        side, overlap, scale = side * COARSER, overlap * COARSER, scale / COARSER
    whole = np.array([[0, 0, size[1], size[0]]], dtype=np.int64)
    by_size = tiles.pixel_size or model.input_options.pixel_size
    only = by_size is not None and not passes and pixel_size is not None
    return [*passes, Pass(whole, scale if only else None, 0, smallest)]


def _finest_window(
    model: Predictor, tiles: TileOptions, pixel_size: float | None
) -> tuple[int, float]:
    """Side of the windows of the finest pass in pixels of the image, and its scale.

    By default, the windows show the image as it is, in a size that the network also gets as a whole
    image: twice the shorter side of its input, or the longer side if that is less. Windows of
    a given side are resized like images of that size.
    """
    resize = model.resize_options
    stated = tiles.pixel_size or model.input_options.pixel_size
    scale = pixel_size / stated if stated and pixel_size else None
    if isinstance(tiles.tile, int):
        own = resized_size(tiles.tile, tiles.tile, resize)[0] / tiles.tile
        return tiles.tile, scale or own
    scale = scale or 1.0
    side = min(2 * resize.shorter_side, resize.longer_side) // _PADDING * _PADDING
    return max(MIN_TILE, round(max(side, _PADDING) / scale)), scale
