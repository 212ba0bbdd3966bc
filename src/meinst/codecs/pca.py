"""Principal components as a mask codec: the encoding of the MEInst paper.

Source: "Mask Encoding for Single Shot Instance Segmentation", CVPR 2020, arXiv 2003.11712.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.base import Codec, NotFittedError, binary_masks, checked_codes
from meinst.codecs.clipped_logit import LOGIT, LOGIT_VARIANCE, Logits, clipped_logits
from meinst.codecs.matrix_file import PCAMatrix, read_matrix, write_matrix
from meinst.codecs.moments import Moments

# Entries within this share of a component's largest count as equally large, so that rounding
# does not decide which of them sets the sign.
_SIGN_TIE = 1e-6


class PCACodec(Codec):
    """Masks as coefficients of their principal components.

    Fitting is exact: one symmetric eigenproblem on integer sums (:class:`Moments`). With
    ``sigmoid`` a pixel stands for ``+L`` inside and ``-L`` outside, the expectation of the
    published random logit, whose variance is part of ``explained_variance_``; the components
    are the same with and without.

    Where the masks span fewer than ``K`` directions, the components beyond are zero vectors
    (their coefficients are 0 and change nothing), and :meth:`fit` warns.

    Attributes:
        components_: ``(1, K, D)``, orthonormal rows, largest variance first; the entry of
            largest magnitude is positive.
        mean_: ``(1, D)``.
        explained_variance_: ``(1, K)``.
        explained_variance_ratio_: ``(1, K)``, shares of the total variance.
        moments_: the sums behind the fit; ``None`` for a codec from a file. Not saved.
    """

    components_: Tensor
    mean_: Tensor
    explained_variance_: Tensor
    explained_variance_ratio_: Tensor

    def __init__(
        self,
        n_components: int = 60,
        mask_size: int = 28,
        *,
        sigmoid: bool = True,
        whiten: bool = True,
    ) -> None:
        """Store the hyper-parameters.

        Args:
            n_components: ``K``, from 1 to ``S * S``.
            mask_size: ``S``.
            sigmoid: encode logits and decode through the logistic function; else encode zeros
                and ones and decode by clipping to 0.01 and 0.99.
            whiten: divide each coefficient by its standard deviation.

        Raises:
            ValueError: a size out of range.
        """
        super().__init__()
        if mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, found {mask_size}.")
        size = mask_size * mask_size
        if not 1 <= n_components <= size:
            raise ValueError(
                f"n_components must be from 1 to mask_size squared ({size}), found {n_components}."
            )
        self.n_components = n_components
        self.mask_size = mask_size
        self.sigmoid = sigmoid
        self.whiten = whiten
        self.moments_: Moments | None = None
        self.register_buffer("components_", torch.zeros(1, n_components, size))
        self.register_buffer("mean_", torch.zeros(1, size))
        self.register_buffer("explained_variance_", torch.zeros(1, n_components))
        self.register_buffer("explained_variance_ratio_", torch.zeros(1, n_components))
        self._fitted = False

    # Learning

    def fit(self, masks: Tensor) -> Self:
        """Forget what was learned and learn from ``masks``, ``(N, S, S)``.

        Raises:
            ValueError: fewer than two masks, masks that are all the same, or a wrong shape.

        Warns:
            UserWarning: the masks span fewer than ``K`` directions.
        """
        return self.fit_moments(Moments(self.mask_size).add(masks))

    def fit_moments(self, moments: Moments) -> Self:
        """Forget what was learned and learn from sums; the way for masks that come in a stream.

        Args:
            moments: kept as ``moments_``, not copied.

        Raises:
            ValueError: as :meth:`fit`.

        Warns:
            UserWarning: as :meth:`fit`.
        """
        if moments.mask_size != self.mask_size:
            raise ValueError(
                f"This codec has mask_size {self.mask_size}, the moments have {moments.mask_size}."
            )
        rank = self._solve(moments)
        if rank < self.n_components:
            warnings.warn(
                f"The {moments.count} masks span {rank} directions, fewer than n_components="
                f"{self.n_components}: the other coefficients are always 0. Fit on more masks "
                f"or ask for fewer components.",
                stacklevel=2,
            )
        self.moments_ = moments
        return self

    def partial_fit(self, masks: Tensor) -> Self:
        """Learn from ``masks``, ``(N, S, S)``, in addition to those seen before.

        The components are worked out at each call; a long stream is cheaper through
        :class:`Moments` and :meth:`fit_moments`. Until two different masks were seen the codec
        stays unfitted; that the masks span few directions is not warned of.

        Raises:
            ValueError: a wrong shape, or a codec from a file, which has no sums to add to.
        """
        if self.moments_ is None:
            self._refuse_without_moments()
            self.moments_ = Moments(self.mask_size)
        self.moments_.add(masks)
        if self.moments_.varied():
            self._solve(self.moments_)
        return self

    def merge(self, other: Self) -> Self:
        """Learn, in addition, from all masks that ``other`` has seen.

        Gives the same bits as fitting on all masks at once.

        Raises:
            ValueError: another mask size, or a codec that was not fitted here but read from a
                file.
        """
        for codec in (self, other):
            codec._refuse_without_moments()
        merged = Moments(self.mask_size)
        for moments in (self.moments_, other.moments_):
            if moments is not None:
                merged.merge(moments)
        return self.fit_moments(merged)

    def _refuse_without_moments(self) -> None:
        if self.moments_ is None and self._fitted:
            raise ValueError(
                "A codec read from a file has lost the sums it was fitted on, so masks cannot "
                "be added. Fit a new codec on all masks."
            )

    def _solve(self, moments: Moments) -> int:
        """Set the buffers from sums; return how many components carry variance."""
        covariance = moments.covariance()
        variances, vectors = torch.linalg.eigh(covariance)  # ascending; (D,), (D, D)
        variances = variances.flip(0)
        tolerance = float(variances[0]) * len(variances) * torch.finfo(torch.float64).eps
        rank = int((variances > tolerance).sum())
        if rank == 0:
            raise ValueError(
                f"Principal components need masks that differ, but all {moments.count} are the "
                f"same."
            )
        keep = self.n_components
        components = vectors.flip(1).T[:keep]  # (K, D)
        components = components * _signs(components)
        components[rank:] = 0
        variances = variances[:keep].clone()
        variances[rank:] = 0
        mean, total = moments.mean(), covariance.trace()
        if self.sigmoid:
            # x = s * logit with s = 2 m - 1, and the logit's variance on top of each pixel.
            mean = LOGIT * (2 * mean - 1)
            variances = (2 * LOGIT) ** 2 * variances + LOGIT_VARIANCE
            total = (2 * LOGIT) ** 2 * total + LOGIT_VARIANCE * covariance.shape[0]
        self._set(components, mean, variances, variances / total)
        return rank

    def _set(self, components: Tensor, mean: Tensor, variances: Tensor, ratios: Tensor) -> None:
        self.components_.copy_(components)
        self.mean_.copy_(mean)
        self.explained_variance_.copy_(variances)
        self.explained_variance_ratio_.copy_(ratios)
        self._fitted = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fitted = bool(self.components_.any())
        self.moments_ = None

    # Encoding and decoding

    def transform(
        self,
        masks: Tensor,
        *,
        logits: Logits = "expected",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Encode masks.

        Args:
            masks: ``(N, S, S)`` bool, uint8 or float, binary at one half.
            logits: what stands for a pixel; others than the expected one need ``sigmoid``.
            generator: draws random logits, on the masks' device.

        Returns:
            ``(N, K)`` float32.

        Raises:
            NotFittedError: the codec is not fitted.
            ValueError: wrong shape or values, or logits that this codec has not.
        """
        self._check_fitted()
        inside = binary_masks(masks, self.mask_size)  # (N, D)
        if logits != "expected" and not self.sigmoid:
            raise ValueError(f"logits={logits!r} needs logits; this codec has sigmoid=False.")
        values = clipped_logits(inside, logits, generator) if self.sigmoid else inside.float()
        with torch.autocast(values.device.type, enabled=False):
            codes = (values - self.mean_[0]) @ self.components_[0].T  # (N, K)
        return codes / self._deviation() if self.whiten else codes

    def inverse_logits(self, codes: Tensor) -> Tensor:
        """Decode codes to the values before the logistic function or the clip.

        Args:
            codes: ``(N, K)``.

        Returns:
            ``(N, S, S)`` float32, differentiable.

        Raises:
            NotFittedError: the codec is not fitted.
            ValueError: a wrong shape.
        """
        self._check_fitted()
        codes = checked_codes(codes, self.n_components)
        if self.whiten:
            codes = codes * self._deviation()
        with torch.autocast(codes.device.type, enabled=False):
            values = codes @ self.components_[0] + self.mean_[0]  # (N, D)
        return values.reshape(-1, self.mask_size, self.mask_size)  # (N, S, S)

    def inverse_transform(self, codes: Tensor) -> Tensor:
        """Decode codes to soft masks.

        Args:
            codes: ``(N, K)``.

        Returns:
            ``(N, S, S)`` float32 from 0 to 1; a mask is where they are at least one half.

        Raises:
            NotFittedError: the codec is not fitted.
            ValueError: a wrong shape.
        """
        values = self.inverse_logits(codes)
        return values.sigmoid() if self.sigmoid else values.clamp(0.01, 0.99)

    def _deviation(self) -> Tensor:
        """Standard deviations, ``(K,)``; 1 where there is no variance, for codes that are 0."""
        variances = self.explained_variance_[0]
        return torch.where(variances > 0, variances, 1.0).sqrt()

    def _check_fitted(self) -> None:
        if not self._fitted:
            raise NotFittedError(
                "This PCACodec instance is not fitted yet. Call 'fit' with masks, or load a "
                "fitted one, before using it."
            )

    # Keeping

    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters, as JSON takes them."""
        return {
            "kind": "pca",
            "n_components": self.n_components,
            "mask_size": self.mask_size,
            "sigmoid": self.sigmoid,
            "whiten": self.whiten,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an unfitted codec from what :meth:`get_config` returned.

        Raises:
            ValueError: another kind, or an unknown or missing key.
        """
        options = dict(config)
        kind = options.pop("kind", None)
        types = {"n_components": int, "mask_size": int, "sigmoid": bool, "whiten": bool}
        found = {name: type(value) for name, value in options.items()}
        if kind != "pca" or found != types:
            raise ValueError(
                f"The configuration of a PCACodec has kind 'pca', the integers n_components and "
                f"mask_size and the truth values sigmoid and whiten; found {dict(config)}."
            )
        return cls(**options)

    def save(self, path: str | Path) -> None:
        """Write the codec in the published matrix format, ``.npz`` without pickle.

        The published code reads such a file. Options other than the published ones (no
        sigmoid, no whitening) are noted in two more arrays. The file appears whole or not at
        all, and the same codec gives the same bytes.

        Args:
            path: the file; ``.npz`` is not added.

        Raises:
            NotFittedError: the codec is not fitted.
            OSError: the file cannot be written; an older one is untouched.
        """
        self._check_fitted()

        def array(buffer: Tensor) -> NDArray[np.float32]:
            return buffer.detach().cpu().float().numpy()

        write_matrix(
            Path(path),
            PCAMatrix(
                components=array(self.components_),
                mean=array(self.mean_),
                ratio=array(self.explained_variance_ratio_),
                explained_variance=array(self.explained_variance_),
                sigmoid=self.sigmoid,
                whiten=self.whiten,
            ),
        )

    @classmethod
    def load(
        cls, path: str | Path, *, sigmoid: bool | None = None, whiten: bool | None = None
    ) -> Self:
        """Read a codec from a file of :meth:`save` or of the published tool.

        ``K`` and ``S`` follow from the shapes.

        Args:
            path: the ``.npz`` file.
            sigmoid: overrides what the file says. Published files say it in their names
                (``sigmoidTrue``) alone; unsaid means ``True``.
            whiten: likewise (``whitenTrue``).

        Raises:
            FileNotFoundError: there is no such file.
            CodecFileError: the file is no codec matrix.
        """
        matrix = read_matrix(Path(path))
        _, n_components, size = matrix.components.shape
        codec = cls(
            n_components,
            math.isqrt(size),
            sigmoid=matrix.sigmoid if sigmoid is None else sigmoid,
            whiten=matrix.whiten if whiten is None else whiten,
        )
        codec._set(
            torch.from_numpy(matrix.components),
            torch.from_numpy(matrix.mean),
            torch.from_numpy(matrix.explained_variance),
            torch.from_numpy(matrix.ratio),
        )
        return codec


def _signs(components: Tensor) -> Tensor:
    """Return the signs, ``(K, 1)``, that make each row's entry of largest magnitude positive."""
    sizes = components.abs()
    largest = sizes >= sizes.amax(dim=1, keepdim=True) * (1 - _SIGN_TIE)
    first = largest.int().argmax(dim=1, keepdim=True)
    return components.gather(1, first).sign()
