"""Compiled loops of the deformable conv: gather four pixels a tap, and scatter back the gradient.

A tap looks at its fractional place bilinearly. Its weights are products of one of the rows' and
one of the columns', so each axis is dealt with on its own. Pixels outside the map count as zeros.

One thread does it all: beside the matrix product, which takes all threads, gathering is a tenth
of the time. So nothing depends on the number of threads, and gradients are added in one order.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from meinst.ops.jit import compiled, compiled_sums

_Float: TypeAlias = "np.floating[Any]"

# Plain literals would widen single precision.
_ZERO = np.float32(0)
_ONE = np.float32(1)


@compiled
def _neighbours(place: _Float, size: int) -> tuple[int, int, _Float, _Float, _Float, _Float]:
    """The two pixels beside a place of one axis.

    Args:
        place: in pixels, pixel ``i``'s centre at ``i``; any number.
        size: pixels of the axis.

    Returns:
        The pixel before the place and the one after it, moved into the axis if they are not;
        their weights; and the slopes of the weights, on the right of the place where they jump.
        Weights and slopes of pixels that had to be moved are 0.
    """
    low = np.floor(place)
    near = bool(-1 <= low < size)  # others may not even fit an integer
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
    """What the taps of some output pixels see.

    Args:
        pixels: ``(B, H, W, C)``.
        offset: ``(B, H', W', T, 2)``, y and x of each of the ``T`` taps, in pixels.
        mask: ``(B, H', W', T)``, weight of each tap.
        kernel_width: taps of a row of the kernel.
        padding: how far the kernel's first tap lies beyond the map, in pixels.
        first: the first output pixel, of all ``B * H' * W'``.
        columns: ``(n, T, C)``, takes what the taps of ``n`` output pixels see.
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
            seen = columns[n, t]
            for c in range(seen.size):
                seen[c] = w00 * p00[c] + w01 * p01[c] + w10 * p10[c] + w11 * p11[c]


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
    """The gradient of :func:`gather_taps`, which is done again on the way.

    Args:
        pixels: ``(B, H, W, C)``.
        offset: ``(B, H', W', T, 2)``.
        mask: ``(B, H', W', T)``.
        kernel_width: taps of a row of the kernel.
        padding: how far the kernel's first tap lies beyond the map, in pixels.
        first: the first output pixel, of all ``B * H' * W'``.
        columns: ``(n, T, C)``, the gradient of what the taps of ``n`` output pixels see; what
            they see afterwards.
        grad_pixels: like ``pixels``; is added to.
        grad_offset: like ``offset``; takes those of the ``n`` pixels.
        grad_mask: like ``mask``; takes those of the ``n`` pixels.
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
            g00 = g01 = g10 = g11 = _ZERO  # gradients of the four weights
            for c in range(grad.size):
                g00 += grad[c] * p00[c]
                g01 += grad[c] * p01[c]
                g10 += grad[c] * p10[c]
                g11 += grad[c] * p11[c]
            weight = mask[image, i, j, t]
            upper, lower = left * g00 + right * g01, left * g10 + right * g11
            steepness = above * (left_slope * g00 + right_slope * g01)
            steepness += below * (left_slope * g10 + right_slope * g11)
            grad_mask[image, i, j, t] = above * upper + below * lower
            grad_offset[image, i, j, t, 0] = weight * (above_slope * upper + below_slope * lower)
            grad_offset[image, i, j, t, 1] = weight * steepness

            above *= weight
            below *= weight
            w00, w01, w10, w11 = above * left, above * right, below * left, below * right
            # One after the other: at the border two of them may be the same pixel.
            for y, x, w in ((y0, x0, w00), (y0, x1, w01), (y1, x0, w10), (y1, x1, w11)):
                place = grad_pixels[image, y, x]
                for c in range(grad.size):
                    place[c] += w * grad[c]
            for c in range(grad.size):
                grad[c] = w00 * p00[c] + w01 * p01[c] + w10 * p10[c] + w11 * p11[c]
