"""Winograd's 3x3 convolution F(4x4, 3x3) on the CPU: a quarter of the multiplications.

A tile of 4 x 4 output pixels depends on 6 x 6 input pixels. After a linear transform of inputs and
weights, the conv becomes 36 matrix products, one for each of the 6 x 6 positions (Lavin and Gray,
arXiv 1509.09308). oneDNN, which torch uses, does not do this on processors with AVX-512.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.polynomial import polynomial
from torch import Tensor

from meinst.ops.winograd_kernels import INPUT_TILE, TILE, map_to_tiles, tiles_to_map

# Tiles per chunk: transformed, multiplied and transformed back while mostly in the cache.
CHUNK = 128

# The interpolation points, besides infinity. Errors are half those of the usual 0, 1, -1, 2, -2.
_POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Toom-Cook matrices for pixels ``(6, 6)``, weights ``(6, 3)`` and outputs ``(4, 6)``.

    In one dimension, the conv of pixels ``d`` with weights ``g`` is
    ``outputs @ (pixels @ d * (weights @ g))``.
    """
    points = np.array(_POINTS)
    pixels, weights = np.zeros((INPUT_TILE, INPUT_TILE)), np.zeros((INPUT_TILE, 3))
    outputs = np.zeros((TILE, INPUT_TILE))
    for n, point in enumerate(points):
        others = np.delete(points, n)
        pixels[n, :-1] = polynomial.polyfromroots(others)
        weights[n] = point ** np.arange(3) / np.prod(point - others)
        outputs[:, n] = point ** np.arange(TILE)
    pixels[-1] = polynomial.polyfromroots(points)
    weights[-1, -1] = outputs[-1, -1] = 1
    # All but the weights' matrix are exact in single precision.
    return pixels.astype(np.float32), weights, outputs.astype(np.float32)


_PIXELS, _WEIGHTS, _OUTPUTS = _matrices()


def transform_weight(weight: Tensor) -> Tensor:
    """Transform weights ``(O, C, 3, 3)`` for :func:`winograd_convs2d`: ``(36, C, O)`` float32."""
    outputs, channels = weight.shape[:2]
    matrix = torch.from_numpy(np.kron(_WEIGHTS, _WEIGHTS))  # (36, 9)
    taps = weight.detach().permute(2, 3, 1, 0).reshape(9, channels * outputs)
    return (matrix @ taps.double()).float().view(INPUT_TILE**2, channels, outputs)


def winograd_convs2d(
    feature: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> list[Tensor]:
    """Several 3x3 convolutions of one map, with stride 1 and padding 1, without gradients.

    The map is transformed once for all convs. Errors are one to four times those of oneDNN's
    direct conv in single precision.

    Args:
        feature: ``(B, C, H, W)`` float32 on the CPU; fastest if channels-last.
        weights: ``(36, C, O)`` from :func:`transform_weight`, for each conv; ``O`` may differ.
        biases: ``(O,)`` for each conv; zeros if None.

    Returns:
        ``(B, O, H, W)`` for each conv, channels-last; the same input gives the same bits.
    """
    batch, channels, height, width = feature.shape
    pixels = feature.detach().permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
    sizes = [weight.shape[2] for weight in weights]
    results = [pixels.new_empty((batch, height, width, outputs)) for outputs in sizes]
    filled_biases = [
        pixels.new_zeros(outputs) if bias is None else bias.detach().contiguous()
        for bias, outputs in zip(biases, sizes, strict=True)
    ]
    rows, across = batch * -(-height // TILE), -(-width // TILE)  # of tiles
    chunks = min(-(-rows * across // CHUNK), rows)
    strip = pixels.new_zeros((INPUT_TILE, TILE * across + 2, channels)).numpy()
    positions = INPUT_TILE**2
    most = positions * across * -(-rows // max(chunks, 1)) * max(channels, *sizes)
    buffers = pixels.new_empty((2, most))
    for chunk in range(chunks):
        first, end = rows * chunk // chunks, rows * (chunk + 1) // chunks
        tiles = (end - first) * across
        inputs = buffers[0, : positions * tiles * channels].view(positions, tiles, channels)
        map_to_tiles(pixels.numpy(), _PIXELS, first, strip, inputs.numpy())
        for weight, bias, result in zip(weights, filled_biases, results, strict=True):
            length = weight.shape[2]
            outputs = buffers[1, : positions * tiles * length].view(positions, tiles, length)
            torch.bmm(inputs, weight, out=outputs)
            tiles_to_map(outputs.numpy(), _OUTPUTS, bias.numpy(), first, result.numpy())
    return [result.permute(0, 3, 1, 2) for result in results]
