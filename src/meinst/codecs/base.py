"""What every mask codec can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from meinst.codecs.clipped_logit import Logits


class NotFittedError(ValueError, AttributeError):
    """A codec was used before it was fitted (bases as in scikit-learn)."""


class CodecFileError(ValueError):
    """A file does not hold a codec of the expected kind."""


class Codec(nn.Module, ABC):
    """A mask codec: binary masks of ``S x S`` to short vectors of ``K`` numbers and back.

    The contract is scikit-learn's: ``__init__`` stores hyper-parameters, ``fit`` learns, names
    of what is learned end in ``_``. What is learned are buffers, so a codec moves, saves and
    exports with the detector that holds it. A codec that was built but not fitted has buffers
    of the right shapes, ready for ``load_state_dict``.

    Attributes:
        n_components: ``K``.
        mask_size: ``S``.
    """

    n_components: int
    mask_size: int

    @abstractmethod
    def fit(self, masks: Tensor) -> Self:
        """Forget what was learned and learn from ``masks``, ``(N, S, S)``."""

    @abstractmethod
    def partial_fit(self, masks: Tensor) -> Self:
        """Learn from ``masks``, ``(N, S, S)``, in addition to those seen before."""

    @abstractmethod
    def merge(self, other: Self) -> Self:
        """Learn, in addition, from all masks that ``other`` has seen."""

    @abstractmethod
    def transform(
        self,
        masks: Tensor,
        *,
        logits: Logits = "expected",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Encode ``masks``, ``(N, S, S)``, as codes ``(N, K)`` float32.

        A codec without logits refuses others than the expected ones.
        """

    @abstractmethod
    def inverse_logits(self, codes: Tensor) -> Tensor:
        """Decode ``codes``, ``(N, K)``, as far as before the squashing: ``(N, S, S)``.

        Differentiable, for losses on decoded masks.
        """

    @abstractmethod
    def inverse_transform(self, codes: Tensor) -> Tensor:
        """Decode ``codes``, ``(N, K)``, as soft masks ``(N, S, S)`` from 0 to 1.

        A mask is where the values are at least one half.
        """

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters, as JSON takes them."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an unfitted codec from what :meth:`get_config` returned."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write the fitted codec to a file; an interrupted write leaves the old file whole."""

    @classmethod
    @abstractmethod
    def load(cls, path: str | Path) -> Self:
        """Read a codec that :meth:`save` wrote."""


def binary_masks(masks: Tensor, mask_size: int) -> Tensor:
    """Check the shape of masks and threshold them at one half.

    Args:
        masks: ``(N, S, S)`` bool, uint8 (0 is background) or float (soft masks).
        mask_size: ``S``.

    Returns:
        ``(N, D)`` bool.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    if masks.ndim != 3 or tuple(masks.shape[1:]) != (mask_size, mask_size):
        raise ValueError(
            f"Masks must have the shape (N, {mask_size}, {mask_size}), found "
            f"{tuple(masks.shape)}. Rasterise them at this size, or make a codec with "
            f"another mask_size."
        )
    if masks.is_floating_point() and not torch.isfinite(masks).all():
        raise ValueError("Masks must be finite, found NaN or infinity. Remove such masks first.")
    return masks.flatten(1) >= 0.5  # (N, D)


def checked_codes(codes: Tensor, n_components: int) -> Tensor:
    """Check the shape of codes, ``(N, K)``, and return them as float32."""
    if codes.ndim != 2 or codes.shape[1] != n_components:
        raise ValueError(
            f"Codes must have the shape (N, {n_components}), found {tuple(codes.shape)}."
        )
    return codes.float()
