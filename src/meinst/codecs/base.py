"""The interface of mask codecs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from meinst.codecs.clipped_logit import Logits
from meinst.codecs.codec_file import (
    CodecFile,
    codec_file_bytes,
    read_codec_file,
    write_codec_file,
)
from meinst.codecs.options import MAX_MASK_SIZE, CodecKind, CodecOptions
from meinst.ops.shapes_only import shapes_only
from meinst.options import check_number


class NotFittedError(ValueError, AttributeError):
    """A codec was used before it was fitted; same base classes as in scikit-learn."""


class MaskDecoder(Protocol):
    """What decoding needs: a :class:`Codec`, or the codec of refined masks."""

    @property
    def n_components(self) -> int:
        """Numbers of a code, ``K``."""

    @property
    def mask_size(self) -> int:
        """Side of decoded masks, ``S``."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Classes with separate encodings; None if all share one."""

    @property
    def code_dtype(self) -> torch.dtype:
        """Type of the codes."""

    def buffers(self) -> Iterator[Tensor]:
        """Tensors whose device codes are decoded on."""

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes ``(N, K)`` to soft masks ``(N, S, S)``."""


class Codec(nn.Module, ABC):
    """A mask codec: encodes binary ``S x S`` masks as vectors of ``K`` numbers, and decodes them.

    The interface follows scikit-learn: ``__init__`` stores hyper-parameters, ``fit`` learns, and
    names of learned attributes end in ``_``. Learned attributes are buffers, so a codec is moved,
    saved and exported together with the detector that holds it, but not trained by it. A codec
    that is not fitted has buffers of the right shapes, ready for ``load_state_dict``.

    Attributes:
        kind: name of the class in files and options.
        title: name of the class in reports.
        code_dtype: type of the codes.
        n_components: ``K``.
        mask_size: ``S``.
        class_names: names of the classes that have separate encodings, which labels index; None
            if all classes share one encoding.
    """

    kind: ClassVar[CodecKind]
    title: ClassVar[str]
    code_dtype: ClassVar[torch.dtype] = torch.float32
    n_components: int
    mask_size: int
    class_names: tuple[str, ...] | None = None

    @abstractmethod
    def fit(self, masks: Tensor, labels: Tensor | None = None) -> Self:
        """Fit the codec, discarding any previous fit.

        Args:
            masks: ``(N, S, S)`` bool, uint8 or float, binary at one half.
            labels: ``(N,)`` int64, indices into ``class_names``; ignored by a codec without.
        """

    @abstractmethod
    def transform(
        self,
        masks: Tensor,
        *,
        labels: Tensor | None = None,
        logits: Logits = "expected",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Encode masks.

        Args:
            masks: ``(N, S, S)`` bool, uint8 or float, binary at one half.
            labels: ``(N,)`` int64, indices into ``class_names``; ignored by a codec without.
            logits: logits that stand for the pixels; codecs that do not use logits support
                "expected" only.
            generator: source of random logits, on the device of the masks.

        Returns:
            ``(N, K)`` float32.

        Raises:
            NotFittedError: if the codec is not fitted.
            ValueError: if a shape or value is wrong, labels are missing, or the codec does not
                support these logits.
        """

    @abstractmethod
    def inverse_logits(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes to logits, for losses on decoded masks; differentiable.

        Args:
            codes: ``(N, K)``.
            labels: ``(N,)`` int64, as in :meth:`transform`.

        Returns:
            ``(N, S, S)`` float32; at least 0 inside the mask.

        Raises:
            NotFittedError: if the codec is not fitted.
            ValueError: if a shape is wrong or labels are missing.
        """

    @abstractmethod
    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes to soft masks.

        Args:
            codes: ``(N, K)``.
            labels: ``(N,)`` int64, as in :meth:`transform`.

        Returns:
            ``(N, S, S)`` float32, 0 to 1; at least one half inside the mask.

        Raises:
            NotFittedError: if the codec is not fitted.
            ValueError: if a shape is wrong or labels are missing.
        """

    @classmethod
    @abstractmethod
    def from_options(
        cls, options: CodecOptions, class_names: tuple[str, ...] | None = None
    ) -> Self:
        """Build a codec, not yet fitted, from the options that apply to its class.

        Args:
            options: the options.
            class_names: names of the classes; used only if ``options.per_class``.

        Raises:
            ValueError: if an option is out of range, or the class names are missing.
        """

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters and ``kind``, ready for JSON."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build a codec, not yet fitted, from the result of :meth:`get_config`.

        Raises:
            ValueError: if the kind differs, or a value is unknown, missing or invalid.
        """

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether the codec can encode and decode."""

    def for_classes(self, class_names: Sequence[str]) -> Codec:
        """Return the codec whose labels index the given names; itself if classes share a basis.

        Raises:
            ValueError: if the codec has a separate basis for each class, but lacks one of these.
        """
        if self.class_names is None or self.class_names == tuple(class_names):
            return self
        raise ValueError(
            f"This codec is for the classes {self.class_names}, got {tuple(class_names)}."
        )

    def save(self, path: str | Path) -> None:
        """Write the codec to an ``.npz`` file; equal codecs give equal bytes.

        Args:
            path: the file; the suffix ``.npz`` is not added.

        Raises:
            NotFittedError: if the codec is not fitted.
            OSError: if the file cannot be written; an existing file is left intact.
        """
        self._check_fitted()
        write_codec_file(path, self.kind, self.get_config(), self._arrays())

    def to_bytes(self) -> bytes:
        """The content of the file that :meth:`save` writes.

        Raises:
            NotFittedError: if the codec is not fitted.
        """
        self._check_fitted()
        return bytes(codec_file_bytes(self.kind, self.get_config(), self._arrays()))

    def _arrays(self) -> dict[str, np.ndarray]:
        """The learned attributes by their names in files."""
        return {
            self._file_name(name): tensor.detach().cpu().numpy()
            for name, tensor in self.state_dict().items()
        }

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a codec from a file written by :meth:`save`.

        Raises:
            FileNotFoundError: if the file does not exist.
            CodecFileError: if the file does not hold a codec of this class.
        """
        return cls.from_file(read_codec_file(path))

    @classmethod
    def from_file(cls, file: CodecFile) -> Self:
        """Build the codec from the content of a file.

        Raises:
            CodecFileError: if the file does not hold a codec of this class.
        """
        if file.kind != cls.kind:
            raise file.error(f"its kind must be {cls.kind!r}", repr(file.kind))
        try:
            with shapes_only():  # no memory before the sizes are checked
                shapes = cls.from_config(file.config).state_dict()
        except ValueError as error:
            raise file.error("its config must match its kind", str(error)) from error
        state = {}
        for name, buffer in shapes.items():
            array = file.require(cls._file_name(name), tuple(buffer.shape))
            if array.dtype.kind != "f":
                raise file.error(f"{cls._file_name(name)} must be floating point", array.dtype)
            state[name] = torch.from_numpy(array.astype(np.float32))
        codec = cls.from_config(file.config)
        codec.load_state_dict(state)
        if not codec.fitted:
            raise file.error("it must hold a fitted codec", "zeros only")
        return codec

    @classmethod
    def _file_name(cls, name: str) -> str:
        """Name of a buffer's array in a file."""
        return name

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with masks, "
                f"or load a fitted codec, before using it."
            )


def check_mask_size(mask_size: int) -> None:
    """Check the side of a codec's masks.

    Raises:
        ValueError: if it is out of range.
    """
    check_number("mask_size", mask_size, 1, MAX_MASK_SIZE, whole=True)


def binary_masks(masks: Tensor, mask_size: int) -> Tensor:
    """Check the shape of masks and threshold them at one half.

    Args:
        masks: ``(N, S, S)`` bool, uint8 (0 is background) or float (soft masks).
        mask_size: ``S``.

    Returns:
        ``(N, D)`` bool with ``D = S * S``.

    Raises:
        ValueError: if the shape differs or a value is not finite.
    """
    if masks.ndim != 3 or tuple(masks.shape[1:]) != (mask_size, mask_size):
        raise ValueError(
            f"Masks must have the shape (N, {mask_size}, {mask_size}), got "
            f"{tuple(masks.shape)}. Rasterise them at this size, or use a codec with another "
            f"mask_size."
        )
    if masks.is_floating_point() and not torch.isfinite(masks).all():
        raise ValueError("Masks must be finite, got NaN or infinity. Remove such masks first.")
    return masks.flatten(1) >= 0.5  # (N, D)


def checked_codes(codes: Tensor, n_components: int) -> Tensor:
    """Check the shape of codes, ``(N, K)``, and convert them to float32.

    Raises:
        ValueError: if the shape differs.
    """
    if codes.ndim != 2 or codes.shape[1] != n_components:
        raise ValueError(
            f"Codes must have the shape (N, {n_components}), got {tuple(codes.shape)}."
        )
    return codes.float()


def checked_labels(labels: Tensor | None, count: int, class_names: tuple[str, ...]) -> Tensor:
    """Check the labels, ``(N,)``, for a codec with class names, and convert them to int64.

    Raises:
        ValueError: if labels are missing, their number differs, or a label is out of range.
    """
    if labels is None:
        raise ValueError(
            f"This codec has a basis for each of {len(class_names)} classes, so it needs labels, "
            f"got None."
        )
    if tuple(labels.shape) != (count,) or labels.is_floating_point():
        raise ValueError(
            f"Labels must be {count} integers, got {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
        raise ValueError(
            f"Labels must be between 0 and {len(class_names) - 1}, got {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    return labels.long()
