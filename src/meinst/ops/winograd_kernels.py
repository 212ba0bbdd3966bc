"""Compiled loops of the Winograd conv: maps to transformed tiles, and transformed tiles to maps.

Both transforms are one small matrix applied down the rows, then the same along the columns. Every
inner loop runs over channels, which are contiguous.

One thread does it all, as in :mod:`meinst.ops.deform_kernels`: the matrix products, which take all
threads, are most of the time.
"""

from __future__ import annotations

import numpy as np

from meinst.ops.jit import compiled_sums

TILE = 4  # output pixels of a side
SEEN = TILE + 2  # input pixels that they see

_ZERO = np.float32(0)  # a plain literal would widen


@compiled_sums
def tiles_of_map(
    pixels: np.ndarray, matrix: np.ndarray, first: int, strip: np.ndarray, tiles: np.ndarray
) -> None:
    """What some rows of tiles see, transformed.

    Args:
        pixels: ``(B, H, W, C)``.
        matrix: ``(6, 6)``.
        first: the first row of tiles, of all ``B * ceil(H / 4)``.
        strip: ``(6, 4 * X + 2, C)``, room for what a row of ``X`` tiles sees, transformed down
            the rows. It starts as zeros, and those beyond the map's sides stay.
        tiles: ``(36, R * X, C)``, takes ``R`` rows of tiles.
    """
    _, height, width, channels = pixels.shape
    across = (width + TILE - 1) // TILE
    down = (height + TILE - 1) // TILE
    for place in range(tiles.shape[1] // across):
        image, row = divmod(first + place, down)
        y = TILE * row - 1
        y0, y1, y2 = max(y, 0), y + 1, min(y + 2, height - 1)
        y3, y4, y5 = min(y + 3, height - 1), min(y + 4, height - 1), min(y + 5, height - 1)
        for i in range(SEEN):
            a, b, c, d, e, f = matrix[i]
            # Rows beyond the map count as zeros.
            a = a if y >= 0 else _ZERO
            c = c if y + 2 < height else _ZERO
            d = d if y + 3 < height else _ZERO
            e = e if y + 4 < height else _ZERO
            f = f if y + 5 < height else _ZERO
            for x in range(width):
                for n in range(channels):
                    strip[i, x + 1, n] = (
                        a * pixels[image, y0, x, n]
                        + b * pixels[image, y1, x, n]
                        + c * pixels[image, y2, x, n]
                        + d * pixels[image, y3, x, n]
                        + e * pixels[image, y4, x, n]
                        + f * pixels[image, y5, x, n]
                    )
        for tile in range(across):
            x = TILE * tile
            for i in range(SEEN):
                for j in range(SEEN):
                    a, b, c, d, e, f = matrix[j]
                    for n in range(channels):
                        tiles[SEEN * i + j, across * place + tile, n] = (
                            a * strip[i, x, n]
                            + b * strip[i, x + 1, n]
                            + c * strip[i, x + 2, n]
                            + d * strip[i, x + 3, n]
                            + e * strip[i, x + 4, n]
                            + f * strip[i, x + 5, n]
                        )


@compiled_sums
def map_of_tiles(
    tiles: np.ndarray, matrix: np.ndarray, bias: np.ndarray, first: int, pixels: np.ndarray
) -> None:
    """Some rows of tiles, transformed back, and the bias added.

    Args:
        tiles: ``(36, R * X, O)``, of ``R`` rows of ``X`` tiles.
        matrix: ``(4, 6)``.
        bias: ``(O,)``.
        first: the first row of tiles, of all ``B * ceil(H / 4)``.
        pixels: ``(B, H, W, O)``, takes those of the tiles.
    """
    _, height, width, outputs = pixels.shape
    across = (width + TILE - 1) // TILE
    down = (height + TILE - 1) // TILE
    half = np.empty((SEEN, outputs), pixels.dtype)  # a tile's row, transformed down the rows
    for place in range(tiles.shape[1]):
        image, row = divmod(first + place // across, down)
        x = TILE * (place % across)
        for i in range(min(TILE, height - TILE * row)):
            a, b, c, d, e, f = matrix[i]
            for k in range(SEEN):
                for n in range(outputs):
                    half[k, n] = (
                        a * tiles[k, place, n]
                        + b * tiles[SEEN + k, place, n]
                        + c * tiles[2 * SEEN + k, place, n]
                        + d * tiles[3 * SEEN + k, place, n]
                        + e * tiles[4 * SEEN + k, place, n]
                        + f * tiles[5 * SEEN + k, place, n]
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
