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

# Entries within this share of a component's largest count as equally large, so that rounding
# does not decide which of them sets the sign.
_SIGN_TIE = 1e-6
# The published matrix files' names.
_PUBLISHED = {
    "components_": "components_c",
    "mean_": "mean_c",
    "explained_variance_": "explained_variance_c",
    "explained_variance_ratio_": "ratio_c",
}


class PCACodec(LinearCodec):
    """Masks as coefficients of their principal components.

    Fitting is exact: one symmetric eigenproblem on integer sums (:class:`Moments`). With
    ``sigmoid`` a pixel stands for ``+L`` inside and ``-L`` outside, the expectation of the
    published random logit, whose variance is part of ``explained_variance_``; the components
    are the same with and without.

    With ``class_names`` each class has a basis of its own. Mean and covariance of a class are
    drawn towards those of all masks, as if ``shrinkage`` masks of the average kind had been
    seen besides its own; a class without masks gets the basis of all.

    Where the masks span fewer than ``K`` directions, the components beyond are zero vectors
    (their coefficients are 0 and change nothing), and :meth:`fit` warns. Components come with
    the largest variance first; the entry of largest magnitude is positive.
    """

    kind = "pca"

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
            sigmoid: encode logits and decode through the logistic function; else encode zeros
                and ones and decode by clipping to 0.01 and 0.99.
            whiten: divide each coefficient by its standard deviation.
            class_names: a basis for each of these classes; None for one basis.
            shrinkage: weight of the average mask's statistics in those of a class, in masks. With
                the default, ``K = 60`` and some hundred masks of a class, new masks are kept a
                little better than by one basis; with a tenth of it, worse.

        Raises:
            ValueError: a value out of range.
        """
        names = None if class_names is None else tuple(class_names)
        super().__init__(n_components, mask_size, sigmoid, whiten, names)
        if not 0 <= shrinkage < math.inf:
            raise ValueError(f"shrinkage must be a number of masks from 0, found {shrinkage}.")
        self.shrinkage = shrinkage

    def partial_fit(self, masks: Tensor, labels: Tensor | None = None) -> Self:
        """Learn from ``masks``, ``(N, S, S)``, in addition to those seen before.

        The components are worked out at each call; a long stream is cheaper through
        :class:`Moments` and :meth:`fit_moments`. Until two different masks were seen the codec
        stays unfitted; masks that span few directions and classes without any are not warned
        of.

        Raises:
            ValueError: a wrong shape, or a codec from a file, which has no sums to add to.
        """
        if self.moments_ is None:
            self._refuse_without_moments()
            self.moments_ = self.new_moments()
        self.moments_.add(masks, labels)
        if self.moments_.pooled().varied():
            self._solve(self.moments_)
        return self

    def merge(self, other: Self) -> Self:
        """Learn, in addition, from all masks that ``other`` has seen.

        Gives the same bits as fitting on all masks at once.

        Raises:
            ValueError: another mask size or other classes, or a codec that was not fitted here
                but read from a file.
        """
        if (self.mask_size, self.class_names) != (other.mask_size, other.class_names):
            raise ValueError(
                f"Codecs of the same masks and classes can be merged; found mask_size "
                f"{self.mask_size} and {other.mask_size}, classes {self.class_names} and "
                f"{other.class_names}."
            )
        merged: Any = self.new_moments()
        for codec in (self, other):
            codec._refuse_without_moments()
            if codec.moments_ is not None:
                merged.merge(codec.moments_)
        return self.fit_moments(merged)

    def _refuse_without_moments(self) -> None:
        if self.moments_ is None and self._fitted:
            raise ValueError(
                "This codec has lost the sums that its fit rests on (files do not keep them), so "
                "masks cannot be added. Fit a new codec on all masks."
            )

    def _solve(self, moments: Moments | ClassMoments) -> int:
        pooled = moments.pooled()
        covariance, mean = pooled.covariance(), pooled.mean()
        if not pooled.varied():
            raise ValueError(
                f"Principal components need masks that differ, but all {moments.count} are the "
                f"same."
            )
        if not isinstance(moments, ClassMoments) or self.class_names is None:
            return self._solve_basis(0, covariance, mean)
        rank = self._solve_basis(0, covariance, mean)
        shared = [buffer[0].clone() for buffer in self._learned()]
        for basis, one in enumerate(moments.classes):
            if one is None or not one.count:
                self._set(basis, *shared)
                continue
            # A single mask has no covariance, but its mean still counts.
            own = one.covariance() if one.count > 1 else covariance
            share = one.count / (one.count + self.shrinkage)
            self._solve_basis(
                basis,
                share * own + (1 - share) * covariance,
                share * one.mean() + (1 - share) * mean,
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
        """Set one basis from float64 statistics; return how many components carry variance."""
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
            # x = s * logit with s = 2 m - 1, and the logit's variance on top of each pixel.
            mean = LOGIT * (2 * mean - 1)
            variances = (2 * LOGIT) ** 2 * variances + LOGIT_VARIANCE
            total = (2 * LOGIT) ** 2 * total + LOGIT_VARIANCE * covariance.shape[0]
        ratios = variances / total if total > 0 else torch.zeros_like(variances)
        self._set(basis, components, mean, variances, ratios)
        return rank

    # Keeping

    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters with ``kind``, as JSON takes them."""
        config: dict[str, Any] = {
            "kind": "pca",
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
        """Build an unfitted codec from what :meth:`get_config` returned.

        Raises:
            ValueError: another kind, or an unknown, missing or wrong value.
        """
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

        The published file holds arrays alone: ``K``, ``S`` and the number of classes follow
        from their shapes. The files of :meth:`save` hold the same arrays under the same names.

        Args:
            path: the ``.npz`` file.
            sigmoid: overrides what the file says: a published one by its name alone
                (``sigmoidTrue``), where a name that says nothing means ``True``.
            whiten: likewise (``whitenTrue``).
            class_names: names of a published class-specific file's bases, in their order;
                unsaid they are called ``"1"``, ``"2"``, ...

        Raises:
            FileNotFoundError: there is no such file.
            CodecFileError: the file is no codec matrix.
        """
        codec = cls.from_file(read_codec_file(path), class_names)
        codec.sigmoid = codec.sigmoid if sigmoid is None else sigmoid
        codec.whiten = codec.whiten if whiten is None else whiten
        return codec

    @classmethod
    def from_file(cls, file: CodecFile, class_names: Sequence[str] | None = None) -> Self:
        """Build the codec from what a file holds, one of the published tool included."""
        if file.kind is None:
            file = CodecFile(file.path, cls.kind, _published_config(file, class_names), file.arrays)
        codec = super().from_file(file)
        if float(codec.explained_variance_.min()) < 0:
            raise file.error(
                "variances must not be negative", float(codec.explained_variance_.min())
            )
        return codec


def _published_config(file: CodecFile, class_names: Sequence[str] | None) -> dict[str, Any]:
    """The hyper-parameters that a published file's shapes and name tell."""
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
    """torch's, on one thread: with more, the last bits depend on how many."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        variances, vectors = torch.linalg.eigh(matrix)
    finally:
        torch.set_num_threads(threads)
    return variances, vectors


def _signs(components: Tensor) -> Tensor:
    """Return the signs, ``(K, 1)``, that make each row's entry of largest magnitude positive."""
    sizes = components.abs()
    largest = sizes >= sizes.amax(dim=1, keepdim=True) * (1 - _SIGN_TIE)
    first = largest.int().argmax(dim=1, keepdim=True)
    return components.gather(1, first).sign()
