"""Mask codecs whose codes are projections on a few directions."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.base import (
    Codec,
    binary_masks,
    check_mask_size,
    checked_codes,
    checked_labels,
)
from meinst.codecs.clipped_logit import LOGIT, Logits, clipped_logits
from meinst.codecs.moments import ClassMoments, Moments
from meinst.options import first_few

_SHARED = 0  # index of the basis that all classes share


class LinearCodec(Codec):
    """Base of codecs that encode masks as coefficients of orthonormal directions.

    With ``x`` the logits of a mask, or its zeros and ones,
    ``code = (x - mean) @ components.T``, divided by the standard deviations if whitened; decoding
    inverts this. All classes share a basis, or each of the ``C`` classes has a separate basis.

    :meth:`fit` needs all masks in memory. For masks in a stream, add them to :class:`Moments` or
    :class:`ClassMoments`, which can also be merged and saved, and call :meth:`fit_moments`; the
    result is the same, bit for bit.

    Attributes:
        components_: ``(1 or C, K, D)``, orthonormal rows.
        mean_: ``(1 or C, D)``.
        explained_variance_: ``(1 or C, K)``, variances of codes that are not whitened.
        explained_variance_ratio_: ``(1 or C, K)``, shares of the total variance.
    """

    components_: Tensor
    mean_: Tensor
    explained_variance_: Tensor
    explained_variance_ratio_: Tensor

    def __init__(
        self,
        n_components: int,
        mask_size: int,
        sigmoid: bool,
        whiten: bool,
        class_names: tuple[str, ...] | None = None,
    ) -> None:
        """Check and store the hyper-parameters, and allocate the learned buffers."""
        super().__init__()
        check_mask_size(mask_size)
        size = mask_size * mask_size
        if not 1 <= n_components <= size:
            raise ValueError(
                f"n_components must be between 1 and mask_size squared ({size}), got "
                f"{n_components}."
            )
        if class_names is not None and (
            not class_names
            or not all(isinstance(name, str) for name in class_names)
            or len(set(class_names)) < len(class_names)
        ):
            raise ValueError(f"class_names must be one or more different names, got {class_names}.")
        self.n_components = n_components
        self.mask_size = mask_size
        self.sigmoid = sigmoid
        self.whiten = whiten
        self.class_names = None if class_names is None else tuple(class_names)
        bases = 1 if class_names is None else len(class_names)
        self.register_buffer("components_", torch.zeros(bases, n_components, size))
        self.register_buffer("mean_", torch.zeros(bases, size))
        self.register_buffer("explained_variance_", torch.zeros(bases, n_components))
        self.register_buffer("explained_variance_ratio_", torch.zeros(bases, n_components))
        self._fitted = False

    # Fitting

    @abstractmethod
    def _solve(self, moments: Moments | ClassMoments) -> int:
        """Set the buffers from sums; return the number of directions that the masks span."""

    def fit(self, masks: Tensor, labels: Tensor | None = None) -> Self:
        """Fit the codec, discarding any previous fit.

        Args:
            masks: ``(N, S, S)`` bool, uint8 or float, binary at one half.
            labels: ``(N,)`` int64; needed if the codec has class names.

        Raises:
            ValueError: if there are fewer than two masks, all masks are equal, or a shape is wrong.

        Warns:
            UserWarning: if the masks span fewer than ``K`` directions, or a class has no masks.
        """
        if self.class_names is None:
            return self.fit_moments(Moments(self.mask_size).add(masks))
        return self.fit_moments(ClassMoments(self.mask_size, self.class_names).add(masks, labels))

    def fit_moments(self, moments: Moments | ClassMoments) -> Self:
        """Fit the codec from sums over masks, discarding any previous fit.

        Args:
            moments: the sums; not changed, and not kept.

        Raises:
            ValueError: as :meth:`fit`; or if the mask size or the classes of the sums differ.

        Warns:
            UserWarning: as :meth:`fit`.
        """
        if moments.mask_size != self.mask_size:
            raise ValueError(
                f"moments must have this codec's mask_size of {self.mask_size}, got "
                f"{moments.mask_size}."
            )
        names = moments.class_names if isinstance(moments, ClassMoments) else None
        if self.class_names is not None and names != self.class_names:
            raise ValueError(
                f"This codec has a basis for each of the classes {self.class_names}, so it needs "
                f"their sums, got those of {names or 'all classes together'}."
            )
        rank = self._solve(moments)
        if isinstance(moments, ClassMoments) and self.class_names is not None:
            empty = [self.class_names[label] for label in moments.empty_classes()]
            if empty:
                warnings.warn(
                    f"{len(empty)} of {len(self.class_names)} classes have no masks and get the "
                    f"basis of all masks: {first_few(empty)}.",
                    stacklevel=2,
                )
        if rank < self.n_components:
            warnings.warn(
                f"The {moments.count} masks span {rank} directions, fewer than n_components="
                f"{self.n_components}: the other coefficients are always 0. Fit on more masks "
                f"or use fewer components.",
                stacklevel=2,
            )
        return self

    def _set(
        self, basis: int, components: Tensor, mean: Tensor, variances: Tensor, ratios: Tensor
    ) -> None:
        """Set the buffers of a basis."""
        self.components_[basis].copy_(components)
        self.mean_[basis].copy_(mean)
        self.explained_variance_[basis].copy_(variances)
        self.explained_variance_ratio_[basis].copy_(ratios)
        self._fitted = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fitted = bool(self.components_.any())

    @property
    def fitted(self) -> bool:
        """Whether the codec can encode and decode."""
        return self._fitted

    def truncated(self, n_components: int) -> Self:
        """The codec of the first components; identical to fitting with that many components.

        Raises:
            NotFittedError: if the codec is not fitted.
            ValueError: if the number is not from 1 to ``K``.
        """
        self._check_fitted()
        if not 1 <= n_components <= self.n_components:
            raise ValueError(
                f"n_components must be between 1 and this codec's {self.n_components}, got "
                f"{n_components}."
            )
        shorter = self.from_config(self.get_config() | {"n_components": n_components})
        for basis in range(len(self.components_)):
            shorter._set(
                basis,
                self.components_[basis, :n_components],
                self.mean_[basis],
                self.explained_variance_[basis, :n_components],
                self.explained_variance_ratio_[basis, :n_components],
            )
        return shorter

    def for_classes(self, class_names: Sequence[str]) -> LinearCodec:
        """Return the codec whose labels index the given names; itself if classes share a basis.

        Raises:
            ValueError: if the codec has a separate basis for each class, but lacks one of these.
        """
        names = tuple(class_names)
        if self.class_names is None or self.class_names == names:
            return self
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            raise ValueError(
                f"This codec has a basis for each of {len(self.class_names)} classes, but none "
                f"for {first_few(unknown)}; fit a codec on annotations with these classes."
            )
        chosen = self.from_config(self.get_config() | {"class_names": list(names)})
        rows = [self.class_names.index(name) for name in names]
        chosen.load_state_dict({name: array[rows] for name, array in self.state_dict().items()})
        return chosen

    # Encoding and decoding

    def transform(
        self,
        masks: Tensor,
        *,
        labels: Tensor | None = None,
        logits: Logits = "expected",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Encode masks; see :meth:`Codec.transform`. Random logits need ``sigmoid``."""
        self._check_fitted()
        inside = binary_masks(masks, self.mask_size)  # (N, D)
        if logits != "expected" and not self.sigmoid:
            raise ValueError(
                f"logits={logits!r} needs a codec with logits; this codec has sigmoid=False."
            )
        values = clipped_logits(inside, logits, generator) if self.sigmoid else inside.float()

        def encode(values: Tensor, basis: int) -> Tensor:
            codes = (values - self.mean_[basis]) @ self.components_[basis].T  # (N, K)
            return codes / self._deviation(basis) if self.whiten else codes

        return self._by_basis(values, labels, encode)

    def inverse_logits(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes to logits; see :meth:`Codec.inverse_logits`.

        Without ``sigmoid``, values of 0 and 1 are mapped to the logits ``-L`` and ``L``.
        """
        values = self._values(codes, labels)
        return values if self.sigmoid else LOGIT * (2 * values - 1)

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes to soft masks; see :meth:`Codec.inverse_transform`.

        Without ``sigmoid``, values are clipped to 0.01 and 0.99.
        """
        values = self._values(codes, labels)
        return values.sigmoid() if self.sigmoid else values.clamp(0.01, 0.99)

    def _values(self, codes: Tensor, labels: Tensor | None) -> Tensor:
        self._check_fitted()
        codes = checked_codes(codes, self.n_components)

        def decode(codes: Tensor, basis: int) -> Tensor:
            if self.whiten:
                codes = codes * self._deviation(basis)
            return codes @ self.components_[basis] + self.mean_[basis]  # (N, D)

        values = self._by_basis(codes, labels, decode)
        return values.reshape(-1, self.mask_size, self.mask_size)  # (N, S, S)

    def _by_basis(
        self, values: Tensor, labels: Tensor | None, apply: Callable[[Tensor, int], Tensor]
    ) -> Tensor:
        """Apply the basis of its class to each row, keeping the order of rows."""
        with torch.autocast(values.device.type, enabled=False):
            if self.class_names is None:
                return apply(values, _SHARED)
            labels = checked_labels(labels, len(values), self.class_names).to(values.device)
            order = labels.argsort(stable=True)
            counts = labels.bincount(minlength=len(self.class_names)).tolist()
            chunks = torch.split(values[order], counts)
            pieces = [apply(chunk, basis) for basis, chunk in enumerate(chunks)]
            return torch.cat(pieces)[order.argsort()]

    def _deviation(self, basis: int) -> Tensor:
        """Standard deviations, ``(K,)``; 1 where the variance is zero, since those codes are 0."""
        variances = self.explained_variance_[basis]
        return torch.where(variances > 0, variances, 1.0).sqrt()


def checked_config(
    config: Mapping[str, Any], kind: str, types: Mapping[str, type | tuple[type, ...]]
) -> dict[str, Any]:
    """Check a codec's configuration and return its hyper-parameters without the kind.

    Args:
        config: result of ``get_config``.
        kind: the required kind.
        types: the required names and their types; no others are allowed.

    Raises:
        ValueError: if the kind differs, or a value is unknown, missing or of another type.
    """
    options = dict(config)
    matches = options.pop("kind", None) == kind and options.keys() == types.keys()
    if not matches or not all(
        isinstance(options[name], required)
        and (required is bool or type(options[name]) is not bool)
        for name, required in types.items()
    ):
        raise ValueError(
            f"The config of a codec of kind {kind!r} must have exactly the keys "
            f"{', '.join(types)}, with values of their types, got {dict(config)}."
        )
    return options
