"""Low frequencies of the discrete cosine transform as a mask codec.

Source: "DCT-Mask: Discrete Cosine Transform Mask Representation for Instance Segmentation",
CVPR 2021, arXiv 2011.09876.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.clipped_logit import LOGIT, LOGIT_VARIANCE
from meinst.codecs.linear import LinearCodec, checked_config
from meinst.codecs.moments import ClassMoments, Moments
from meinst.codecs.options import CodecOptions


class DCTCodec(LinearCodec):
    """Mask codec that keeps the lowest frequencies of the orthonormal DCT-II, in zig-zag order.

    Only whitened codes, which are easier for a detector to learn, need a fit: :meth:`fit` learns
    the means and variances of the coefficients. This changes the codes but not the masks that they
    decode to. A coefficient that is equal for all masks is centred but not divided.
    """

    kind = "dct"
    title = "DCT"

    def __init__(
        self,
        n_components: int = 60,
        mask_size: int = 28,
        *,
        sigmoid: bool = True,
        whiten: bool = False,
    ) -> None:
        """Store the hyper-parameters.

        Args:
            n_components: ``K``, from 1 to ``S * S``.
            mask_size: ``S``.
            sigmoid: encode logits and decode through a sigmoid; otherwise encode zeros and ones.
            whiten: centre each coefficient and divide it by its standard deviation. Off by default,
                unlike in ``CodecOptions``, so that the codec can be used without a fit.

        Raises:
            ValueError: if a size is out of range.
        """
        super().__init__(n_components, mask_size, sigmoid, whiten)
        self.components_[0].copy_(_basis(mask_size, n_components))
        if not sigmoid:
            self.mean_.fill_(0.5)
        self._fitted = not whiten

    def _solve(self, moments: Moments | ClassMoments) -> int:
        pooled = moments.pooled()
        if self.whiten and pooled.count > 1 and not pooled.varied():
            raise ValueError(
                f"Whitening needs masks that differ, but all {pooled.count} are the same."
            )
        basis = _basis(self.mask_size, self.n_components)  # (K, D) float64
        covariance, mean = pooled.covariance(), pooled.mean()
        variances = ((basis @ covariance) * basis).sum(1)  # (K,)
        total = covariance.trace()
        # Variances within the rounding error count as zero.
        tolerance = float(total) * len(mean) * torch.finfo(torch.float64).eps
        variances[variances <= tolerance] = 0
        middle = torch.full_like(mean, 0.5)
        if self.sigmoid:
            mean, middle = LOGIT * (2 * mean - 1), torch.zeros_like(mean)
            variances = (2 * LOGIT) ** 2 * variances + LOGIT_VARIANCE
            total = (2 * LOGIT) ** 2 * total + LOGIT_VARIANCE * len(mean)
        # Project the mean on the basis, which centres the codes but leaves the masks unchanged.
        centre = middle + basis.T @ (basis @ (mean - middle)) if self.whiten else middle
        ratios = variances / total if total > 0 else torch.zeros_like(variances)
        self._set(0, basis, centre, variances, ratios)
        return self.n_components

    def truncated(self, n_components: int) -> Self:
        """The codec of the first frequencies; equal, up to rounding, to a fit with so few."""
        shorter = super().truncated(n_components)
        # Remove the projection of the mean on the frequencies that are left out.
        beyond = self.components_[0, n_components:]
        shorter.mean_ -= (self.mean_ @ beyond.T) @ beyond
        return shorter

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fitted = not self.whiten or bool(self.explained_variance_.any())

    @classmethod
    def from_options(
        cls,
        options: CodecOptions,
        class_names: tuple[str, ...] | None = None,  # noqa: ARG003
    ) -> Self:
        """Build the codec from options; see :meth:`Codec.from_options`."""
        return cls(
            options.n_components,
            options.mask_size,
            sigmoid=options.sigmoid,
            whiten=options.whiten,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters and ``kind``, ready for JSON."""
        return {
            "kind": self.kind,
            "n_components": self.n_components,
            "mask_size": self.mask_size,
            "sigmoid": self.sigmoid,
            "whiten": self.whiten,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the codec from a configuration; see :meth:`Codec.from_config`."""
        types = {"n_components": int, "mask_size": int, "sigmoid": bool, "whiten": bool}
        return cls(**checked_config(config, cls.kind, types))


def _basis(size: int, count: int) -> Tensor:
    """The first ``count`` cosine products: ``(K, D)`` float64 with orthonormal rows.

    Frequencies ``(u, v)`` are ordered by ``u + v``, in alternating directions, as in JPEG.
    """
    position = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    waves = torch.cos(torch.arange(size, dtype=torch.float64)[:, None] * position)  # (u, x)
    waves *= math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    order = sorted(
        ((u, v) for u in range(size) for v in range(size)),
        key=lambda pair: (sum(pair), pair[0] if sum(pair) % 2 else pair[1]),
    )[:count]
    rows, columns = torch.tensor(order).T
    return (waves[rows][:, :, None] * waves[columns][:, None, :]).flatten(1)  # (K, D)
