"""Compiled loops of depthwise convs: the gradient of the weights.

Inner loops run over channels, which are contiguous. The loops are single-threaded, so that
gradients are added in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np

from meinst.ops.jit import compiled_sums


@cache
def weight_gradient_of(size: int) -> Callable[..., None]:
    """Kernel for weights of ``size x size``; a constant size makes the compiled code fast.

    The kernel takes:

    - pixels: ``(B, H, W, C)``, input of the conv.
    - gradient: ``(B, H', W', C)``, gradient of its output.
    - stride: of rows and columns.
    - top, left: rows and columns of zeros before the map.
    - sums: ``(size, size, C)`` zeros, takes the gradient of the weights.
    """

    @partial(compiled_sums, cache=False)
    def weight_gradient(
        pixels: np.ndarray,
        gradient: np.ndarray,
        stride: int,
        top: int,
        left: int,
        sums: np.ndarray,
    ) -> None:
        images, height, width, channels = pixels.shape
        _, rows, columns, _ = gradient.shape
        for image in range(images):
            for i in range(rows):
                for tap in range(size):
                    y = stride * i + tap - top
                    if y < 0 or y >= height:
                        continue
                    for j in range(columns):
                        x = stride * j - left
                        if x >= 0 and x + size <= width:
                            for n in range(channels):
                                slope = gradient[image, i, j, n]
                                for k in range(size):
                                    sums[tap, k, n] += slope * pixels[image, y, x + k, n]
                        else:
                            for k in range(max(-x, 0), min(width - x, size)):
                                for n in range(channels):
                                    sums[tap, k, n] += (
                                        gradient[image, i, j, n] * pixels[image, y, x + k, n]
                                    )

    return weight_gradient
