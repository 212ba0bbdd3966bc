"""Principal components as a mask codec: the encoding of the MEInst paper.

Source: "Mask Encoding for Single Shot Instance Segmentation", CVPR 2020, arXiv 2003.11712.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.clipped_logit import LOGIT, LOGIT_VARIANCE
from meinst.codecs.codec_file import CodecFile, read_codec_file
from meinst.codecs.linear import LinearCodec, checked_config
from meinst.codecs.moments import ClassMoments, Moments
from meinst.codecs.options import CodecOptions

# Entries of a component within this relative distance of the largest count as equally large, so
# that rounding does not decide which of them sets the sign.
_SIGN_TIE = 1e-6
# Names of the arrays in the published matrix files.
_PUBLISHED = {
    "components_": "components_c",
    "mean_": "mean_c",
    "explained_variance_": "explained_variance_c",
    "explained_variance_ratio_": "ratio_c",
}


class PCACodec(LinearCodec):
    """Mask codec that encodes masks as coefficients of their principal components.

    Fitting is exact: a symmetric eigenproblem on integer sums (:class:`Moments`). With ``sigmoid``,
    pixels are encoded as ``+L`` inside and ``-L`` outside the mask, the expected value of the
    published random logit, whose variance is included in ``explained_variance_``. The components
    are the same with and without ``sigmoid``.

    With ``class_names``, each class has a separate basis. Mean and covariance of a class are shrunk
    towards those of all masks, as if ``shrinkage`` average masks were added to its own; a class
    without masks gets the basis of all masks.

    Components are sorted by decreasing variance, and their entry of largest magnitude is positive.
    If the masks span fewer than ``K`` directions, the remaining components are zero, so that their
    coefficients are 0, and :meth:`fit` warns.

    >>> import torch
    >>> from meinst.codecs import PCACodec
    >>> masks = torch.rand(100, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    >>> codec = PCACodec(n_components=16, mask_size=8).fit(masks)
    >>> codec.transform(masks).shape
    torch.Size([100, 16])
    """

    kind = "pca"
    title = "PCA"

    def __init__(
        self,
        n_components: int = 60,
        mask_size: int = 28,
        *,
        sigmoid: bool = True,
        whiten: bool = True,
        class_names: Sequence[str] | None = None,
        shrinkage: float = 3000.0,
    ) -> None:
        """Store the hyper-parameters.

        Args:
            n_components: ``K``, from 1 to ``S * S``.
            mask_size: ``S``.
            sigmoid: encode logits and decode through a sigmoid; otherwise encode zeros and ones,
                and clip decoded values to 0.01 and 0.99.
            whiten: divide each coefficient by its standard deviation.
            class_names: names of the classes that get separate bases; None for a shared basis.
            shrinkage: weight of the statistics of all masks in the basis of one class, in masks.
                With the default, ``K = 60`` and some hundred masks of a class, new masks are
                reconstructed slightly better than with a shared basis; with a tenth of it, worse.

        Raises:
            ValueError: if a value is out of range.
        """
        names = None if class_names is None else tuple(class_names)
        super().__init__(n_components, mask_size, sigmoid, whiten, names)
        if not 0 <= shrinkage < math.inf:
            raise ValueError(f"shrinkage must be a finite number of at least 0, got {shrinkage}.")
        self.shrinkage = shrinkage

    def _solve(self, moments: Moments | ClassMoments) -> int:
        pooled = moments.pooled()
        covariance, mean = pooled.covariance(), pooled.mean()
        if not pooled.varied():
            raise ValueError(
                f"Principal components need masks that differ, but all {moments.count} are the "
                f"same."
            )
        rank = self._solve_basis(0, covariance, mean)
        if not isinstance(moments, ClassMoments) or self.class_names is None:
            return rank
        shared = [buffer[0].clone() for buffer in self._learned()]
        for basis, own in enumerate(moments.classes):
            if own is None or not own.count:
                self._set(basis, *shared)
                continue
            # A single mask has no covariance, but its mean still counts.
            own_covariance = own.covariance() if own.count > 1 else covariance
            share = own.count / (own.count + self.shrinkage)
            self._solve_basis(
                basis,
                share * own_covariance + (1 - share) * covariance,
                share * own.mean() + (1 - share) * mean,
            )
        return rank

    def _learned(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return (
            self.components_,
            self.mean_,
            self.explained_variance_,
            self.explained_variance_ratio_,
        )

    def _solve_basis(self, basis: int, covariance: Tensor, mean: Tensor) -> int:
        """Set a basis from float64 statistics; return the number of directions with variance."""
        variances, vectors = _eigh(covariance)  # ascending; (D,), (D, D)
        variances = variances.flip(0)
        tolerance = float(variances[0]) * len(variances) * torch.finfo(torch.float64).eps
        rank = int((variances > tolerance).sum())
        keep = self.n_components
        components = vectors.flip(1).T[:keep]  # (K, D)
        components = components * _signs(components)
        components[rank:] = 0
        variances = variances[:keep].clone()
        variances[rank:] = 0
        total = covariance.trace()
        if self.sigmoid:
            # Pixels are s * logit with s = 2 m - 1; each adds the variance of the logit.
            mean = LOGIT * (2 * mean - 1)
            variances = (2 * LOGIT) ** 2 * variances + LOGIT_VARIANCE
            total = (2 * LOGIT) ** 2 * total + LOGIT_VARIANCE * covariance.shape[0]
        ratios = variances / total if total > 0 else torch.zeros_like(variances)
        self._set(basis, components, mean, variances, ratios)
        return rank

    # Options, configurations and files

    @classmethod
    def from_options(
        cls, options: CodecOptions, class_names: tuple[str, ...] | None = None
    ) -> Self:
        """Build the codec from options; see :meth:`Codec.from_options`."""
        if options.per_class and class_names is None:
            raise ValueError("per_class needs the names of the classes, got None.")
        return cls(
            options.n_components,
            options.mask_size,
            sigmoid=options.sigmoid,
            whiten=options.whiten,
            class_names=class_names if options.per_class else None,
            shrinkage=options.shrinkage,
        )

    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters and ``kind``, ready for JSON."""
        config: dict[str, Any] = {
            "kind": self.kind,
            "n_components": self.n_components,
            "mask_size": self.mask_size,
            "sigmoid": self.sigmoid,
            "whiten": self.whiten,
        }
        if self.class_names is not None:
            config |= {"class_names": list(self.class_names), "shrinkage": self.shrinkage}
        return config

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the codec from a configuration; see :meth:`Codec.from_config`."""
        types: dict[str, type | tuple[type, ...]] = {
            "n_components": int,
            "mask_size": int,
            "sigmoid": bool,
            "whiten": bool,
        }
        if "class_names" in config:
            types |= {"class_names": (list, tuple, NoneType), "shrinkage": (int, float)}
        return cls(**checked_config(config, cls.kind, types))

    @classmethod
    def _file_name(cls, name: str) -> str:
        return _PUBLISHED[name]

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        sigmoid: bool | None = None,
        whiten: bool | None = None,
        class_names: Sequence[str] | None = None,
    ) -> Self:
        """Read a codec from a file of :meth:`save` or of the published tool.

        Published files hold only arrays, from whose shapes ``K``, ``S`` and the number of classes
        follow. Files of :meth:`save` hold the same arrays under the same names.

        Args:
            path: the ``.npz`` file.
            sigmoid: overrides the value in the file. Published files have it only in their name
                (``sigmoidTrue``); the default for other names is True.
            whiten: likewise (``whitenTrue``).
            class_names: names of the classes of a published class-specific file, in the order of
                its bases; ``"1"``, ``"2"``, ... by default.

        Raises:
            FileNotFoundError: if the file does not exist.
            CodecFileError: if the file does not hold such a codec.
        """
        codec = cls.from_file(read_codec_file(path), class_names)
        codec.sigmoid = codec.sigmoid if sigmoid is None else sigmoid
        codec.whiten = codec.whiten if whiten is None else whiten
        return codec

    @classmethod
    def from_file(cls, file: CodecFile, class_names: Sequence[str] | None = None) -> Self:
        """Build the codec from the content of a file, which may be a published file."""
        if file.kind is None:
            file = CodecFile(file.path, cls.kind, _published_config(file, class_names), file.arrays)
        codec = super().from_file(file)
        if float(codec.explained_variance_.min()) < 0:
            raise file.error(
                "variances must not be negative", float(codec.explained_variance_.min())
            )
        return codec


def _published_config(file: CodecFile, class_names: Sequence[str] | None) -> dict[str, Any]:
    """The hyper-parameters that follow from the shapes and the name of a published file."""
    components = file.require("components_c")
    if components.ndim != 3 or not len(components):
        raise file.error("components_c must have the shape (1 or C, K, D)", components.shape)
    bases, count, size = components.shape
    if math.isqrt(size) ** 2 != size or not 1 <= count <= size:
        raise file.error(
            "components_c must have the shape (1 or C, K, D), D a square number, K from 1 to D",
            components.shape,
        )
    config: dict[str, Any] = {
        "kind": "pca",
        "n_components": count,
        "mask_size": math.isqrt(size),
        "sigmoid": "sigmoidFalse" not in file.path.name,
        "whiten": "whitenFalse" not in file.path.name,
    }
    if bases > 1 or class_names is not None:
        names = [str(n + 1) for n in range(bases)] if class_names is None else list(class_names)
        config |= {"class_names": names, "shrinkage": 0.0}
    return config


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eigh`` on one thread; with more, the last bits depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        variances, vectors = torch.linalg.eigh(matrix)
    finally:
        torch.set_num_threads(threads)
    return variances, vectors


def _signs(components: Tensor) -> Tensor:
    """Signs, ``(K, 1)``, that make the entry of largest magnitude in each row positive."""
    sizes = components.abs()
    largest = sizes >= sizes.amax(dim=1, keepdim=True) * (1 - _SIGN_TIE)
    first = largest.int().argmax(dim=1, keepdim=True)
    return components.gather(1, first).sign()
