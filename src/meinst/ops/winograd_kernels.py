"""Compiled loops of the Winograd conv: maps to transformed tiles, and transformed tiles to maps.

Both transforms apply a small matrix along y, then along x. Inner loops run over
channels, which are contiguous.

The loops are single-threaded, as in :mod:`meinst.ops.deform_kernels`: most of the time is spent in
the matrix products, which use all threads.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled_sums

TILE = 4  # side of a tile in output pixels
INPUT_TILE = TILE + 2  # and in input pixels

_ZERO = np.float32(0)  # a plain literal would promote to double


@compiled_sums
def _transform_rows(pixels: np.ndarray, matrix: np.ndarray, y: int, strip: np.ndarray) -> None:
    """Transform six rows of a map, from ``y`` on, along y; rows outside count as zeros.

    Args:
        pixels: ``(H, W, C)``.
        matrix: ``(6, 6)``.
        y: -1 to ``H - 2``.
        strip: ``(6, W + 2, C)`` or wider; takes the result from column 1 on.
    """
    height, width, channels = pixels.shape
    y0, y1, y2 = max(y, 0), y + 1, min(y + 2, height - 1)
    y3, y4, y5 = min(y + 3, height - 1), min(y + 4, height - 1), min(y + 5, height - 1)
    for i in range(INPUT_TILE):
        a, b, c, d, e, f = matrix[i]
        a = a if y >= 0 else _ZERO
        c = c if y + 2 < height else _ZERO
        d = d if y + 3 < height else _ZERO
        e = e if y + 4 < height else _ZERO
        f = f if y + 5 < height else _ZERO
        for x in range(width):
            for n in range(channels):
                strip[i, x + 1, n] = (
                    a * pixels[y0, x, n]
                    + b * pixels[y1, x, n]
                    + c * pixels[y2, x, n]
                    + d * pixels[y3, x, n]
                    + e * pixels[y4, x, n]
                    + f * pixels[y5, x, n]
                )


@compiled_sums
def map_to_tiles(
    pixels: np.ndarray, matrix: np.ndarray, first: int, strip: np.ndarray, tiles: np.ndarray
) -> None:
    """Transform the inputs of some rows of tiles.

    Args:
        pixels: ``(B, H, W, C)``.
        matrix: ``(6, 6)``.
        first: index of the first row of tiles among all ``B * ceil(H / 4)``.
        strip: ``(6, 4 * X + 2, C)`` zeros, a buffer for a row of ``X`` tiles transformed along y.
            Zeros outside the map are not overwritten.
        tiles: ``(36, R * X, C)``, takes ``R`` rows of tiles.
    """
    _, height, width, channels = pixels.shape
    across = (width + TILE - 1) // TILE
    down = (height + TILE - 1) // TILE
    for place in range(tiles.shape[1] // across):
        image, row = divmod(first + place, down)
        _transform_rows(pixels[image], matrix, TILE * row - 1, strip)
        for tile in range(across):
            x = TILE * tile
            for i in range(INPUT_TILE):
                for j in range(INPUT_TILE):
                    a, b, c, d, e, f = matrix[j]
                    for n in range(channels):
                        tiles[INPUT_TILE * i + j, across * place + tile, n] = (
                            a * strip[i, x, n]
                            + b * strip[i, x + 1, n]
                            + c * strip[i, x + 2, n]
                            + d * strip[i, x + 3, n]
                            + e * strip[i, x + 4, n]
                            + f * strip[i, x + 5, n]
                        )


@compiled_sums
def tiles_to_map(
    tiles: np.ndarray, matrix: np.ndarray, bias: np.ndarray, first: int, pixels: np.ndarray
) -> None:
    """Transform some rows of tiles back and add the bias.

    Args:
        tiles: ``(36, R * X, O)``, ``R`` rows of ``X`` tiles.
        matrix: ``(4, 6)``.
        bias: ``(O,)``.
        first: index of the first row of tiles among all ``B * ceil(H / 4)``.
        pixels: ``(B, H, W, O)``, takes the output pixels of the tiles.
    """
    _, height, width, outputs = pixels.shape
    across = (width + TILE - 1) // TILE
    down = (height + TILE - 1) // TILE
    half = np.empty((INPUT_TILE, outputs), pixels.dtype)  # one row of a tile, transformed along y
    for place in range(tiles.shape[1]):
        image, row = divmod(first + place // across, down)
        x = TILE * (place % across)
        for i in range(min(TILE, height - TILE * row)):
            a, b, c, d, e, f = matrix[i]
            for k in range(INPUT_TILE):
                for n in range(outputs):
                    half[k, n] = (
                        a * tiles[k, place, n]
                        + b * tiles[INPUT_TILE + k, place, n]
                        + c * tiles[2 * INPUT_TILE + k, place, n]
                        + d * tiles[3 * INPUT_TILE + k, place, n]
                        + e * tiles[4 * INPUT_TILE + k, place, n]
                        + f * tiles[5 * INPUT_TILE + k, place, n]
                    )
            for j in range(min(TILE, width - x)):
                a, b, c, d, e, f = matrix[j]
                for n in range(outputs):
                    pixels[image, TILE * row + i, x + j, n] = (
                        a * half[0, n]
                        + b * half[1, n]
                        + c * half[2, n]
                        + d * half[3, n]
                        + e * half[4, n]
                        + f * half[5, n]
                        + bias[n]
                    )
