"""Exact sums over binary masks, from which linear codecs are fitted."""

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

# Masks counted at a time: 64 words per pixel, which fit a processor's cache.
_CHUNK = 64 * WORD


class Moments:
    """Integer sums over binary masks ``m`` of ``D`` pixels: ``n`` and ``sum m m^T``.

    The sums do not depend on the order of the masks, so partial sums of several processes can be
    merged. Memory does not grow with the number of masks. Exact up to three billion masks, where
    ``n^2`` reaches 2^63.

    Attributes:
        mask_size: ``S``.
        count: number of masks.
        products: ``(D, D)`` int64, the upper triangle of ``sum m m^T``.
    """

    kind = "moments"

    def __init__(self, mask_size: int) -> None:
        """Create sums over no masks."""
        if mask_size < 1:
            raise ValueError(f"mask_size must be at least 1, got {mask_size}.")
        size = mask_size * mask_size
        self.mask_size = mask_size
        self.count = 0
        self.products = torch.zeros((size, size), dtype=torch.int64)

    @property
    def total(self) -> Tensor:
        """``(D,)`` int64, ``sum m``: the diagonal of the products, since ``m * m = m``."""
        return self.products.diagonal()

    def add(self, masks: Tensor, labels: Tensor | None = None) -> Self:  # noqa: ARG002
        """Add ``(N, S, S)`` masks, binary at one half; labels are ignored."""
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
        """Add the sums of ``other``, which is not changed.

        Raises:
            ValueError: if the mask size differs.
        """
        _check_sizes(self.mask_size, other.mask_size)
        self.count += other.count
        self.products += other.products
        return self

    def pooled(self) -> Moments:
        """The sums over the masks of all classes: the object itself."""
        return self

    def varied(self) -> bool:
        """Whether at least two of the masks differ."""
        return bool(((self.total > 0) & (self.total < self.count)).any())

    def mean(self) -> Tensor:
        """Return the mean mask, ``(D,)`` float64.

        Raises:
            ValueError: if there are no masks.
        """
        if self.count == 0:
            raise ValueError("The mean of masks needs at least 1 mask, got 0.")
        return self.total.double() / self.count

    def covariance(self) -> Tensor:
        """Return the covariance of pixels, ``(D, D)`` float64, with ``n - 1`` in the denominator.

        Raises:
            ValueError: if there are fewer than two masks.
        """
        if self.count < 2:
            raise ValueError(f"The covariance of masks needs at least 2 masks, got {self.count}.")
        # Use integers up to the division, so that pixels without variance give exact zeros.
        scaled = self.count * self.products - torch.outer(self.total, self.total)
        upper = scaled.triu_().double() / (float(self.count) * (self.count - 1))
        return upper + upper.triu(1).T

    def save(self, path: str | Path) -> None:
        """Write the sums to an ``.npz`` file; equal sums give equal bytes."""
        triangle = self.products.numpy()[np.triu_indices(self.mask_size**2)]
        arrays = {"count": np.array(self.count, dtype=np.int64), "products": triangle}
        write_codec_file(path, self.kind, {"mask_size": self.mask_size}, arrays)

    @classmethod
    def from_file(cls, file: CodecFile) -> Moments:
        """Build the sums from the content of a file of :meth:`save`.

        Raises:
            CodecFileError: if the file does not hold such sums.
        """
        return _read_sums(file, _mask_size(file), "count", "products")


class ClassMoments:
    """Separate sums for each class; classes without masks take no memory.

    Attributes:
        mask_size: ``S``.
        class_names: names of the ``C`` classes, which labels index.
        classes: the sums of each class; None for classes without masks.
    """

    kind = "class moments"

    def __init__(self, mask_size: int, class_names: Sequence[str]) -> None:
        """Create sums over no masks."""
        self.mask_size = mask_size
        self.class_names = tuple(class_names)
        self.classes: list[Moments | None] = [None] * len(self.class_names)

    @property
    def count(self) -> int:
        """Number of masks."""
        return sum(sums.count for sums in self.classes if sums is not None)

    def add(self, masks: Tensor, labels: Tensor | None) -> Self:
        """Add ``(N, S, S)`` masks of the classes ``labels``, ``(N,)`` int64."""
        labels = checked_labels(labels, len(masks), self.class_names)
        for label in np.unique(labels.cpu().numpy()).tolist():
            self.of_class(label).add(masks[labels == label])
        return self

    def merge(self, other: ClassMoments) -> Self:
        """Add the sums of ``other``, which is not changed; classes are matched by name.

        If the names or their order differ, the class names become the union in alphabetical order,
        so that the order of merging does not matter.

        Raises:
            ValueError: if the mask size differs; the sums are then unchanged.
        """
        _check_sizes(self.mask_size, other.mask_size)
        if other.class_names != self.class_names:
            known = dict(zip(self.class_names, self.classes, strict=True))
            self.class_names = tuple(sorted({*self.class_names, *other.class_names}))
            self.classes = [known.get(name) for name in self.class_names]
        for name, sums in zip(other.class_names, other.classes, strict=True):
            if sums is not None:
                self.of_class(self.class_names.index(name)).merge(sums)
        return self

    def pooled(self) -> Moments:
        """The sums over the masks of all classes."""
        pooled = Moments(self.mask_size)
        for sums in self.classes:
            if sums is not None:
                pooled.merge(sums)
        return pooled

    def empty_classes(self) -> list[int]:
        """Indices of the classes without masks."""
        return [n for n, sums in enumerate(self.classes) if sums is None or not sums.count]

    def of_class(self, label: int) -> Moments:
        """The sums of a class, created if there are none."""
        sums = self.classes[label]
        if sums is None:
            sums = self.classes[label] = Moments(self.mask_size)
        return sums

    def save(self, path: str | Path) -> None:
        """Write the sums to an ``.npz`` file; equal sums give equal bytes."""
        triangle = np.triu_indices(self.mask_size**2)
        arrays: dict[str, np.ndarray] = {}
        for label, sums in enumerate(self.classes):
            if sums is not None and sums.count:
                arrays[f"count_{label}"] = np.array(sums.count, dtype=np.int64)
                arrays[f"products_{label}"] = sums.products.numpy()[triangle]
        config = {"mask_size": self.mask_size, "class_names": list(self.class_names)}
        write_codec_file(path, self.kind, config, arrays)

    @classmethod
    def from_file(cls, file: CodecFile) -> ClassMoments:
        """Build the sums from the content of a file of :meth:`save`.

        Raises:
            CodecFileError: if the file does not hold such sums.
        """
        names = file.config.get("class_names")
        if (
            not isinstance(names, list)
            or not all(isinstance(name, str) for name in names)
            or len(set(names)) < len(names)
        ):
            raise file.error(
                "its config must contain class_names, a list of different names", repr(names)
            )
        moments = cls(_mask_size(file), names)
        for label in range(len(names)):
            if f"count_{label}" in file.arrays:
                moments.classes[label] = _read_sums(
                    file, moments.mask_size, f"count_{label}", f"products_{label}"
                )
        return moments


def load_moments(path: str | Path) -> Moments | ClassMoments:
    """Read sums from a file written by ``save`` of either class.

    Raises:
        FileNotFoundError: if the file does not exist.
        CodecFileError: if the file does not hold sums.
    """
    file = read_codec_file(path)
    if file.kind == ClassMoments.kind:
        return ClassMoments.from_file(file)
    if file.kind == Moments.kind:
        return Moments.from_file(file)
    raise file.error(
        "it must hold sums over masks, from `meinst codec fit --moments`", repr(file.kind)
    )


def _mask_size(file: CodecFile) -> int:
    size = file.config.get("mask_size")
    if type(size) is not int or size < 1:
        raise file.error("its config must contain mask_size, an integer of at least 1", repr(size))
    return size


def _read_sums(file: CodecFile, mask_size: int, count_key: str, products_key: str) -> Moments:
    """Build sums from two arrays, checking that they can be sums over masks."""
    size = mask_size**2
    count = file.require(count_key, ())
    triangle = file.require(products_key, (size * (size + 1) // 2,))
    for key, array in ((count_key, count), (products_key, triangle)):
        if array.dtype != np.int64:
            raise file.error(f"{key} must be int64", array.dtype)
        if array.min() < 0:
            raise file.error(f"{key} must not be negative", array.min())
    if triangle.max() > count:
        raise file.error(
            f"{products_key} must be at most the number of masks, {count}", triangle.max()
        )
    moments = Moments(mask_size)
    moments.count = int(count)
    moments.products.numpy()[np.triu_indices(size)] = triangle
    return moments


def _check_sizes(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"Sums to merge must have equal mask sizes, got {first} and {second}.")
