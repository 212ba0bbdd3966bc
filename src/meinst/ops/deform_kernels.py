"""Compiled loops of the deformable conv: gather four pixels per tap, scatter the gradient back.

Each tap samples the map bilinearly. The bilinear weights are products of a weight along y and one
along x, so each axis is computed separately. Pixels outside the map count as zeros.

The loops are single-threaded, so that gradients are added in a fixed order and results do not
depend on the number of threads. They take a tenth of the time of the matrix product, which uses
all threads.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from meinst.ops.jit import compiled, compiled_sums

_Float: TypeAlias = "np.floating[Any]"

# Plain literals would promote single precision to double.
_ZERO = np.float32(0)
_ONE = np.float32(1)


@compiled
def _neighbours(place: _Float, size: int) -> tuple[int, int, _Float, _Float, _Float, _Float]:
    """Linear interpolation along one axis: two pixels, their weights and slopes.

    Args:
        place: position in pixels; the centre of pixel ``i`` is at ``i``. Any number.
        size: number of pixels.

    Returns:
        The pixels before and after the position, clamped to the axis; their weights; and the
        derivatives of the weights (at integers, those to the right). Weights and derivatives of
        pixels outside the axis are 0.
    """
    low = np.floor(place)
    near = bool(-1 <= low < size)  # other positions may exceed all integers
    first = int(low) if near else 0
    after = place - low if near else _ZERO
    before_inside = _ONE if near and first >= 0 else _ZERO
    after_inside = _ONE if near and first + 1 < size else _ZERO
    return (
        max(first, 0),
        min(first + 1, size - 1),
        (_ONE - after) * before_inside,
        after * after_inside,
        -before_inside,
        after_inside,
    )


@compiled_sums
def _inner_products(
    grad: np.ndarray, p00: np.ndarray, p01: np.ndarray, p10: np.ndarray, p11: np.ndarray
) -> tuple[_Float, _Float, _Float, _Float]:
    """Inner products of a gradient with four pixels, each ``(C,)``."""
    g00 = g01 = g10 = g11 = _ZERO
    for c in range(grad.size):
        g00 += grad[c] * p00[c]
        g01 += grad[c] * p01[c]
        g10 += grad[c] * p10[c]
        g11 += grad[c] * p11[c]
    return g00, g01, g10, g11


@compiled
def gather_taps(
    pixels: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    kernel_width: int,
    padding: int,
    first: int,
    columns: np.ndarray,
) -> None:
    """Sample the feature map at the taps of some output pixels.

    Args:
        pixels: ``(B, H, W, C)``.
        offset: ``(B, H', W', T, 2)``, y and x of each of the ``T`` taps, in pixels.
        mask: ``(B, H', W', T)``, weight of each tap.
        kernel_width: taps per row of the kernel.
        padding: zeros on all sides, in pixels.
        first: index of the first output pixel among all ``B * H' * W'``.
        columns: ``(n, T, C)``, takes the samples for ``n`` output pixels.
    """
    _, rows, width, taps = mask.shape
    for n in range(columns.shape[0]):
        image, cell = divmod(first + n, rows * width)
        i, j = divmod(cell, width)
        for t in range(taps):
            dy, dx = offset[image, i, j, t]
            y0, y1, above, below, _, _ = _neighbours(
                np.float32(i - padding + t // kernel_width) + dy, pixels.shape[1]
            )
            x0, x1, left, right, _, _ = _neighbours(
                np.float32(j - padding + t % kernel_width) + dx, pixels.shape[2]
            )
            above *= mask[image, i, j, t]
            below *= mask[image, i, j, t]
            w00, w01, w10, w11 = above * left, above * right, below * left, below * right
            p00, p01 = pixels[image, y0, x0], pixels[image, y0, x1]
            p10, p11 = pixels[image, y1, x0], pixels[image, y1, x1]
            sample = columns[n, t]
            for c in range(sample.size):
                sample[c] = w00 * p00[c] + w01 * p01[c] + w10 * p10[c] + w11 * p11[c]


@compiled_sums
def scatter_taps(
    pixels: np.ndarray,
    offset: np.ndarray,
    mask: np.ndarray,
    kernel_width: int,
    padding: int,
    first: int,
    columns: np.ndarray,
    grad_pixels: np.ndarray,
    grad_offset: np.ndarray,
    grad_mask: np.ndarray,
) -> None:
    """Backward pass of :func:`gather_taps`; also gathers again.

    Args:
        pixels: ``(B, H, W, C)``.
        offset: ``(B, H', W', T, 2)``.
        mask: ``(B, H', W', T)``.
        kernel_width: taps per row of the kernel.
        padding: zeros on all sides, in pixels.
        first: index of the first output pixel among all ``B * H' * W'``.
        columns: ``(n, T, C)``, gradient of the samples; replaced by the samples.
        grad_pixels: like ``pixels``; the gradient is added to it.
        grad_offset: like ``offset``; takes the gradient for the ``n`` output pixels.
        grad_mask: like ``mask``; takes the gradient for the ``n`` output pixels.
    """
    _, rows, width, taps = mask.shape
    for n in range(columns.shape[0]):
        image, cell = divmod(first + n, rows * width)
        i, j = divmod(cell, width)
        for t in range(taps):
            dy, dx = offset[image, i, j, t]
            y0, y1, above, below, above_slope, below_slope = _neighbours(
                np.float32(i - padding + t // kernel_width) + dy, pixels.shape[1]
            )
            x0, x1, left, right, left_slope, right_slope = _neighbours(
                np.float32(j - padding + t % kernel_width) + dx, pixels.shape[2]
            )
            p00, p01 = pixels[image, y0, x0], pixels[image, y0, x1]
            p10, p11 = pixels[image, y1, x0], pixels[image, y1, x1]
            grad = columns[n, t]
            g00, g01, g10, g11 = _inner_products(grad, p00, p01, p10, p11)  # of the weights
            weight = mask[image, i, j, t]
            upper, lower = left * g00 + right * g01, left * g10 + right * g11
            slope = above * (left_slope * g00 + right_slope * g01)
            slope += below * (left_slope * g10 + right_slope * g11)
            grad_mask[image, i, j, t] = above * upper + below * lower
            grad_offset[image, i, j, t, 0] = weight * (above_slope * upper + below_slope * lower)
            grad_offset[image, i, j, t, 1] = weight * slope

            above *= weight
            below *= weight
            w00, w01, w10, w11 = above * left, above * right, below * left, below * right
            # One at a time: at the border, two of them may be the same pixel.
            for y, x, w in ((y0, x0, w00), (y0, x1, w01), (y1, x0, w10), (y1, x1, w11)):
                pixel = grad_pixels[image, y, x]
                for c in range(grad.size):
                    pixel[c] += w * grad[c]
            for c in range(grad.size):
                grad[c] = w00 * p00[c] + w01 * p01[c] + w10 * p10[c] + w11 * p11[c]
