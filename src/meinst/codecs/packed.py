"""Refined masks as codes: soft masks with 4 bits per pixel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 15  # highest value of 4 bits


class PackedMaskCodec(nn.Module):
    """Stores ``S x S`` soft masks with 4 bits per pixel, two pixels per byte.

    Mask refinement adds detail that the detector's codec cannot represent. Of all encodings of at
    most 480 bytes that were compared (docs/experiments/reencoding.md) this one is the simplest and
    loses least: 392 bytes for 28 x 28 pixels, at most 0.1 points of mask AP.

    Attributes:
        mask_size: ``S``.
        n_components: ``K``, bytes of a code.
        class_names: always None: all classes share the encoding.
        code_dtype: uint8.
    """

    class_names = None
    code_dtype = torch.uint8

    def __init__(self, mask_size: int) -> None:
        super().__init__()
        self.mask_size = mask_size
        self.n_components = -(-(mask_size**2) // 2)

    def encode(self, soft_masks: Tensor) -> Tensor:
        """Encode soft masks ``(N, S, S)`` of 0 to 1 as ``(N, K)`` uint8."""
        levels = (soft_masks.flatten(1) * _LEVELS).round().to(torch.uint8)  # (N, D)
        levels = F.pad(levels, (0, levels.shape[1] % 2))
        return levels[:, 0::2] * 16 + levels[:, 1::2]

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Decode codes ``(N, K)`` to soft masks ``(N, S, S)``.

        Values differ from the encoded ones by at most half a level, 1/30, and are at least one
        half exactly where those were.
        """
        levels = torch.stack((codes // 16, codes % 16), dim=2).flatten(1)[:, : self.mask_size**2]
        return (levels.float() / _LEVELS).view(-1, self.mask_size, self.mask_size)
