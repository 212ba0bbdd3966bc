"""Exact sums over binary masks: all that fitting a linear codec needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.base import binary_masks, checked_labels
from meinst.codecs.codec_file import CodecFile, read_codec_file, write_codec_file
from meinst.ops.bit_kernels import WORD, add_shared, pack_pixels

# Masks counted at once: 64 words for each pixel, which fit a processor's cache.
_CHUNK = 64 * WORD


class Moments:
    """Integer sums over binary masks ``m`` of ``D`` pixels: ``n`` and ``sum m m^T``.

    The same masks give the same bits in any order and in any split, so partial sums of several
    processes can be merged. Memory does not grow with the number of masks. Exact up to three
    thousand million masks, where ``n^2`` reaches 2^63.

    Attributes:
        mask_size: ``S``.
        count: number of masks.
        products: ``(D, D)`` int64, ``sum m m^T``, its upper triangle alone.
    """

    kind = "moments"

    def __init__(self, mask_size: int) -> None:
        """Start with no masks of side ``mask_size``."""
        if mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, found {mask_size}.")
        size = mask_size * mask_size
        self.mask_size = mask_size
        self.count = 0
        self.products = torch.zeros((size, size), dtype=torch.int64)

    @property
    def total(self) -> Tensor:
        """``(D,)`` int64, ``sum m``: the diagonal, since ``m * m`` is ``m``."""
        return self.products.diagonal()

    def add(self, masks: Tensor, labels: Tensor | None = None) -> Self:  # noqa: ARG002
        """Count in ``masks``, ``(N, S, S)``, binary at one half, of whatever class."""
        flat = binary_masks(masks.detach(), self.mask_size)  # (N, D)
        ones = flat.cpu().numpy().view(np.uint8)
        for start in range(0, len(ones), _CHUNK):
            chunk = ones[start : start + _CHUNK]
            bits = np.empty((chunk.shape[1], -(-len(chunk) // WORD)), dtype=np.uint64)  # (D, W)
            pack_pixels(chunk, bits)
            add_shared(bits, self.products.numpy())
            self.count += len(chunk)
        return self

    def merge(self, other: Moments) -> Self:
        """Count in all masks that ``other`` has counted.

        Raises:
            ValueError: another mask size.
        """
        _check_sizes(self.mask_size, other.mask_size)
        self.count += other.count
        self.products += other.products
        return self

    def pooled(self) -> Moments:
        """The sums over the masks of all classes: these."""
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
        upper = scaled.triu_().double() / (float(self.count) * (self.count - 1))
        return upper + upper.triu(1).T

    def save(self, path: str | Path) -> None:
        """Write the sums to an ``.npz`` file; the same sums give the same bytes."""
        triangle = self.products.numpy()[np.triu_indices(self.mask_size**2)]
        arrays = {"count": np.array(self.count, dtype=np.int64), "products": triangle}
        write_codec_file(path, self.kind, {"mask_size": self.mask_size}, arrays)

    @classmethod
    def from_file(cls, file: CodecFile) -> Moments:
        """Build the sums from what a file of :meth:`save` holds.

        Raises:
            CodecFileError: it does not hold such sums.
        """
        return _read_sums(file, _mask_size(file), "count", "products")


class ClassMoments:
    """Sums for each class apart; those of classes without masks take no memory.

    Attributes:
        mask_size: ``S``.
        class_names: names of the ``C`` classes, which labels index.
        classes: for each class its sums, None for one without masks.
    """

    kind = "class moments"

    def __init__(self, mask_size: int, class_names: Sequence[str]) -> None:
        """Start with no masks of side ``mask_size``."""
        self.mask_size = mask_size
        self.class_names = tuple(class_names)
        self.classes: list[Moments | None] = [None] * len(self.class_names)

    @property
    def count(self) -> int:
        """Number of masks."""
        return sum(one.count for one in self.classes if one is not None)

    def add(self, masks: Tensor, labels: Tensor | None) -> Self:
        """Count in ``masks``, ``(N, S, S)``, of the classes ``labels``, ``(N,)``."""
        labels = checked_labels(labels, len(masks), self.class_names)
        for label in np.unique(labels.cpu().numpy()).tolist():
            self.of_class(label).add(masks[labels == label])
        return self

    def merge(self, other: ClassMoments) -> Self:
        """Count in all masks that ``other`` has counted; classes are matched by their names.

        Where the names differ, or their order, the union in alphabetical order takes their
        place, so that the order of merging does not matter.

        Raises:
            ValueError: another mask size; nothing was counted in.
        """
        _check_sizes(self.mask_size, other.mask_size)
        if other.class_names != self.class_names:
            known = dict(zip(self.class_names, self.classes, strict=True))
            self.class_names = tuple(sorted({*self.class_names, *other.class_names}))
            self.classes = [known.get(name) for name in self.class_names]
        for name, one in zip(other.class_names, other.classes, strict=True):
            if one is not None:
                self.of_class(self.class_names.index(name)).merge(one)
        return self

    def pooled(self) -> Moments:
        """The sums over the masks of all classes."""
        pooled = Moments(self.mask_size)
        for one in self.classes:
            if one is not None:
                pooled.merge(one)
        return pooled

    def empty_classes(self) -> list[int]:
        """The classes without masks."""
        return [label for label, one in enumerate(self.classes) if one is None or not one.count]

    def of_class(self, label: int) -> Moments:
        """The sums of one class, empty ones if there were none."""
        found = self.classes[label]
        if found is None:
            found = self.classes[label] = Moments(self.mask_size)
        return found

    def save(self, path: str | Path) -> None:
        """Write the sums to an ``.npz`` file; the same sums give the same bytes."""
        triangle = np.triu_indices(self.mask_size**2)
        arrays: dict[str, np.ndarray] = {}
        for label, one in enumerate(self.classes):
            if one is not None and one.count:
                arrays[f"count_{label}"] = np.array(one.count, dtype=np.int64)
                arrays[f"products_{label}"] = one.products.numpy()[triangle]
        config = {"mask_size": self.mask_size, "class_names": list(self.class_names)}
        write_codec_file(path, self.kind, config, arrays)

    @classmethod
    def from_file(cls, file: CodecFile) -> ClassMoments:
        """Build the sums from what a file of :meth:`save` holds.

        Raises:
            CodecFileError: it does not hold such sums.
        """
        names = file.config.get("class_names")
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or len(set(names)) < len(names)
        ):
            raise file.error("its config must hold class_names, different names", repr(names))
        moments = cls(_mask_size(file), names)
        for label in range(len(names)):
            if f"count_{label}" in file.arrays:
                moments.classes[label] = _read_sums(
                    file, moments.mask_size, f"count_{label}", f"products_{label}"
                )
        return moments


def load_moments(path: str | Path) -> Moments | ClassMoments:
    """Read sums that ``save`` of either class wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CodecFileError: the file holds something else.
    """
    file = read_codec_file(path)
    if file.kind == ClassMoments.kind:
        return ClassMoments.from_file(file)
    if file.kind == Moments.kind:
        return Moments.from_file(file)
    raise file.error("it must hold sums of masks, as `meinst codec fit` writes", repr(file.kind))


def _mask_size(file: CodecFile) -> int:
    size = file.config.get("mask_size")
    if type(size) is not int or size < 1:
        raise file.error("its config must hold mask_size, a whole number above 0", repr(size))
    return size


def _read_sums(file: CodecFile, mask_size: int, count_key: str, products_key: str) -> Moments:
    """Build sums from the arrays of these names, if they can be sums of masks."""
    size = mask_size**2
    count = file.require(count_key, ())
    triangle = file.require(products_key, (size * (size + 1) // 2,))
    for key, array in ((count_key, count), (products_key, triangle)):
        if array.dtype != np.int64:
            raise file.error(f"{key} must be int64", array.dtype)
        if array.min() < 0:
            raise file.error(f"{key} must not be negative", array.min())
    if triangle.max() > count:
        raise file.error(f"no sum can be above the number of masks {count}", triangle.max())
    moments = Moments(mask_size)
    moments.count = int(count)
    moments.products.numpy()[np.triu_indices(size)] = triangle
    return moments


def _check_sizes(mine: int, other: int) -> None:
    if mine != other:
        raise ValueError(f"Moments of one mask size can be merged; found {mine} and {other}.")
