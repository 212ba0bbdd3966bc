"""Exact sums over binary masks: all that fitting a linear codec needs."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.base import binary_masks

# Sums of this many zeros and ones are exact in float32 (up to 2**24), and one block of
# masks stays small in memory.
_CHUNK = 4096


class Moments:
    """Integer sums over binary masks ``m`` of ``D`` pixels: ``n``, ``sum m``, ``sum m m^T``.

    The same masks give the same bits in any order, in any split and on any device, so partial
    sums of several processes can be merged. Memory does not grow with the number of masks.
    Exact up to three thousand million masks, where ``n^2`` reaches 2^63.

    Attributes:
        mask_size: ``S``.
        count: number of masks.
        total: ``(D,)`` int64, ``sum m``.
        products: ``(D, D)`` int64, ``sum m m^T``.
    """

    def __init__(self, mask_size: int) -> None:
        """Start with no masks of side ``mask_size``."""
        if mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, found {mask_size}.")
        size = mask_size * mask_size
        self.mask_size = mask_size
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.int64)
        self.products = torch.zeros((size, size), dtype=torch.int64)

    def add(self, masks: Tensor) -> Self:
        """Count in ``masks``, ``(N, S, S)``, binary at one half."""
        flat = binary_masks(masks.detach(), self.mask_size)  # (N, D)
        for start in range(0, len(flat), _CHUNK):
            ones = flat[start : start + _CHUNK].float()
            # Zeros and ones survive reduced-precision products (TF32); sums, kept in the
            # output's type, would not survive autocast's.
            with torch.autocast(ones.device.type, enabled=False):
                self.products += (ones.T @ ones).to(self.products)
            self.total += ones.sum(0).to(self.total)
            self.count += len(ones)
        return self

    def merge(self, other: Moments) -> Self:
        """Count in all masks that ``other`` has counted."""
        if other.mask_size != self.mask_size:
            raise ValueError(
                f"Moments of one mask size can be merged; found {self.mask_size} and "
                f"{other.mask_size}."
            )
        self.count += other.count
        self.total += other.total
        self.products += other.products
        return self

    def varied(self) -> bool:
        """Whether at least two of the masks differ."""
        return bool(((self.total > 0) & (self.total < self.count)).any())

    def mean(self) -> Tensor:
        """Return the mean mask, ``(D,)`` float64.

        Raises:
            ValueError: there are no masks.
        """
        if self.count == 0:
            raise ValueError("The mean of masks needs at least 1 mask, found 0.")
        return self.total.double() / self.count

    def covariance(self) -> Tensor:
        """Return the covariance of pixels, ``(D, D)`` float64, ``n - 1`` in the denominator.

        Raises:
            ValueError: there are fewer than two masks.
        """
        if self.count < 2:
            raise ValueError(f"The covariance of masks needs at least 2 masks, found {self.count}.")
        # In integers up to the division, so masks without variance give exact zeros.
        scaled = self.count * self.products - torch.outer(self.total, self.total)
        return scaled.double() / (float(self.count) * (self.count - 1))
