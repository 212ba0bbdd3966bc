"""Winograd's 3x3 convolution F(4x4, 3x3) on the CPU: a quarter of the multiplications.

Tiles of 4 x 4 output pixels see 6 x 6 input pixels. Transformed, the conv of a tile is a product
for each of 36 places, that is, 36 matrix products over all tiles (Lavin and Gray, arXiv
1509.09308). oneDNN, torch's own conv, does not do this on processors with AVX-512.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.polynomial import polynomial
from torch import Tensor

from meinst.ops.winograd_kernels import SEEN, TILE, map_of_tiles, tiles_of_map

# Tiles that are transformed, multiplied and transformed back while most of it is in the cache.
CHUNK = 128

# Polynomials of the pixels and of the weights are multiplied by way of their values here, and at
# infinity. With the usual 0, 1, -1, 2, -2 errors would be twice as large.
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Toom and Cook's, for pixels ``(6, 6)``, weights ``(6, 3)`` and outputs ``(4, 6)``.

    The outputs of one row of pixels ``d`` and weights ``g`` are ``outputs @ (pixels @ d *
    (weights @ g))``.
    """
    points = np.array(_POINTS)
    pixels, weights, outputs = np.zeros((SEEN, SEEN)), np.zeros((SEEN, 3)), np.zeros((TILE, SEEN))
    for n, point in enumerate(points):
        others = np.delete(points, n)
        pixels[n, :-1] = polynomial.polyfromroots(others)
        weights[n] = point ** np.arange(3) / np.prod(point - others)
        outputs[:, n] = point ** np.arange(TILE)
    pixels[-1] = polynomial.polyfromroots(points)
    weights[-1, -1] = outputs[-1, -1] = 1
    # Exact in single precision, but for the weights'.
    return pixels.astype(np.float32), weights, outputs.astype(np.float32)


_PIXELS, _WEIGHTS, _OUTPUTS = _matrices()


def transform_weight(weight: Tensor) -> Tensor:
    """Weights ``(O, C, 3, 3)`` as :func:`winograd_convs2d` takes them, ``(36, C, O)`` float32."""
    outputs, channels = weight.shape[:2]
    matrix = torch.from_numpy(np.kron(_WEIGHTS, _WEIGHTS))  # (36, 9)
    taps = weight.detach().permute(2, 3, 1, 0).reshape(9, channels * outputs)
    return (matrix @ taps.double()).float().view(SEEN**2, channels, outputs)


def winograd_convs2d(
    feature: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """3x3 convolutions of one map, of stride 1 and padding 1, without gradients.

    The map is transformed once for all of them. Errors are one to four times those of oneDNN's
    direct conv in single precision.

    Args:
        feature: ``(B, C, H, W)`` float32 on the CPU; fastest if channels-last.
        weights: ``(36, C, O)`` from :func:`transform_weight`, each with its own ``O``.
        biases: ``(O,)`` of each; zeros if None.

    Returns:
        Of each ``(B, O, H, W)``, channels-last; the same input gives the same bits.
    """
    batch, channels, height, width = feature.shape
    pixels = feature.detach().permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
    sizes = [weight.shape[2] for weight in weights]
    results = [pixels.new_empty((batch, height, width, outputs)) for outputs in sizes]
    added = [
        pixels.new_zeros(outputs) if bias is None else bias.detach().contiguous()
        for bias, outputs in zip(biases, sizes, strict=True)
    ]
    rows, across = batch * -(-height // TILE), -(-width // TILE)  # of tiles
    chunks = min(-(-rows * across // CHUNK), rows)
    strip = pixels.new_zeros((SEEN, TILE * across + 2, channels)).numpy()
    most = SEEN**2 * across * -(-rows // max(chunks, 1)) * max(channels, *sizes)
    room = pixels.new_empty((2, most))
    for chunk in range(chunks):
        first, end = rows * chunk // chunks, rows * (chunk + 1) // chunks
        tiles = (end - first) * across
        seen = room[0, : SEEN**2 * tiles * channels].view(SEEN**2, tiles, channels)
        tiles_of_map(pixels.numpy(), _PIXELS, first, strip, seen.numpy())
        for weight, bias, result in zip(weights, added, results, strict=True):
            outputs = weight.shape[2]
            said = room[1, : SEEN**2 * tiles * outputs].view(SEEN**2, tiles, outputs)
            torch.bmm(seen, weight, out=said)
            map_of_tiles(said.numpy(), _OUTPUTS, bias.numpy(), first, result.numpy())
    return [result.permute(0, 3, 1, 2) for result in results]
