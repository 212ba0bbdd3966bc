"""The downsampled mask as its code: the baseline for all other codecs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.base import Codec, binary_masks, check_mask_size, checked_codes
from meinst.codecs.clipped_logit import LOGIT, Logits
from meinst.codecs.linear import checked_config
from meinst.codecs.options import CodecOptions


class GridCodec(Codec):
    """Mask codec that averages a mask over ``sqrt(K) x sqrt(K)`` cells.

    A coefficient is the share of its cell that the mask covers, scaled from -1 (none) to 1 (all).
    Decoding interpolates bilinearly between the centres of the cells. Nothing is learned.
    """

    kind = "grid"
    title = "Grid"

    def __init__(self, n_components: int = 49, mask_size: int = 28) -> None:
        """Store the hyper-parameters.

        Args:
            n_components: ``K``, a square number, at most ``S * S``. The default is the largest
                square below the default of the other codecs, 60.
            mask_size: ``S``.

        Raises:
            ValueError: if a size is out of range.
        """
        super().__init__()
        check_mask_size(mask_size)
        side = math.isqrt(max(n_components, 0))
        if side < 1 or side**2 != n_components or side > mask_size:
            nearest = max(1, min(side, mask_size)) ** 2
            raise ValueError(
                f"n_components of a grid must be a square number between 1 and mask_size squared "
                f"({mask_size**2}), got {n_components}; use {nearest}."
            )
        self.n_components = n_components
        self.mask_size = mask_size
        self._side = side

    def fit(self, masks: Tensor, labels: Tensor | None = None) -> Self:  # noqa: ARG002
        """Check the shape of the masks; there is nothing to learn."""
        binary_masks(masks, self.mask_size)
        return self

    def transform(
        self,
        masks: Tensor,
        *,
        labels: Tensor | None = None,  # noqa: ARG002
        logits: Logits = "expected",
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Encode masks; see :meth:`Codec.transform`."""
        if logits != "expected":
            raise ValueError(f"logits={logits!r} needs a codec with logits; a grid has none.")
        flat = binary_masks(masks, self.mask_size).float()  # (N, D)
        if not len(flat):
            return flat.new_zeros(0, self.n_components)
        image = flat.reshape(-1, 1, self.mask_size, self.mask_size)  # (N, 1, S, S)
        return 2 * F.adaptive_avg_pool2d(image, self._side).flatten(1) - 1  # (N, K)

    def inverse_logits(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Decode codes to logits, ``-L`` for an empty cell; see :meth:`Codec.inverse_logits`."""
        return LOGIT * (2 * self._interpolate(codes) - 1)

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Decode codes to soft masks; see :meth:`Codec.inverse_transform`."""
        return self._interpolate(codes).clamp(0, 1)

    def _interpolate(self, codes: Tensor) -> Tensor:
        """Interpolate between cells, without clamping, so that every code has a gradient."""
        codes = checked_codes(codes, self.n_components)
        size = self.mask_size
        if not len(codes):
            return codes.new_zeros(0, size, size)
        cells = (codes / 2 + 0.5).reshape(-1, 1, self._side, self._side)
        soft = F.interpolate(cells, size=(size, size), mode="bilinear", align_corners=False)
        return soft[:, 0]  # (N, S, S)

    @property
    def fitted(self) -> bool:
        """Always True, since nothing is learned."""
        return True

    @classmethod
    def from_options(
        cls,
        options: CodecOptions,
        class_names: tuple[str, ...] | None = None,  # noqa: ARG003
    ) -> Self:
        """Build the codec from options; see :meth:`Codec.from_options`."""
        return cls(options.n_components, options.mask_size)

    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters and ``kind``, ready for JSON."""
        return {"kind": self.kind, "n_components": self.n_components, "mask_size": self.mask_size}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the codec from a configuration; see :meth:`Codec.from_config`."""
        return cls(**checked_config(config, cls.kind, {"n_components": int, "mask_size": int}))
