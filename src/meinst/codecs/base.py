"""What every mask codec can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from meinst.codecs.clipped_logit import Logits
from meinst.codecs.codec_file import CodecFile, read_codec_file, write_codec_file


class NotFittedError(ValueError, AttributeError):
    """A codec was used before it was fitted (bases as in scikit-learn)."""


class Codec(nn.Module, ABC):
    """A mask codec: binary masks of ``S x S`` to short vectors of ``K`` numbers and back.

    The contract is scikit-learn's: ``__init__`` stores hyper-parameters, ``fit`` learns, names
    of what is learned end in ``_``. What is learned are buffers, so a codec moves, saves and
    exports with the detector that holds it, and is not trained with it. A codec that was built
    but not fitted has buffers of the right shapes, ready for ``load_state_dict``.

    Attributes:
        kind: names the class in files.
        n_components: ``K``.
        mask_size: ``S``.
        class_names: None for one encoding of all classes; else labels index these names, and
            every call needs them.
    """

    kind: ClassVar[str]
    n_components: int
    mask_size: int
    class_names: tuple[str, ...] | None = None

    @abstractmethod
    def fit(self, masks: Tensor, labels: Tensor | None = None) -> Self:
        """Forget what was learned and learn from ``masks``, ``(N, S, S)``, ``labels`` ``(N,)``."""

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
            labels: ``(N,)`` int64, indices into ``class_names``; not looked at by a codec
                without.
            logits: what stands for a pixel; a codec without logits refuses others than the
                expected ones.
            generator: draws random logits, on the masks' device.

        Returns:
            ``(N, K)`` float32.

        Raises:
            NotFittedError: the codec is not fitted.
            ValueError: wrong shape or values, labels missing, or logits that this codec has not.
        """

    @abstractmethod
    def inverse_logits(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes to logits, for losses on decoded masks; differentiable.

        Args:
            codes: ``(N, K)``.
            labels: ``(N,)`` int64, as in :meth:`transform`.

        Returns:
            ``(N, S, S)`` float32; a mask is where they are at least 0.

        Raises:
            NotFittedError: the codec is not fitted.
            ValueError: a wrong shape, or labels missing.
        """

    @abstractmethod
    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes to soft masks.

        Args:
            codes: ``(N, K)``.
            labels: ``(N,)`` int64, as in :meth:`transform`.

        Returns:
            ``(N, S, S)`` float32 from 0 to 1; a mask is where they are at least one half.

        Raises:
            NotFittedError: the codec is not fitted.
            ValueError: a wrong shape, or labels missing.
        """

    @abstractmethod
    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters with ``kind``, as JSON takes them."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build an unfitted codec from what :meth:`get_config` returned.

        Raises:
            ValueError: another kind, or an unknown, missing or wrong value.
        """

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether there is all that encoding and decoding need."""

    def for_classes(self, class_names: Sequence[str]) -> Codec:
        """The codec for labels that index these names; itself if it has no classes.

        Raises:
            ValueError: it has a basis for each class, but none for one of these.
        """
        if self.class_names is None or self.class_names == tuple(class_names):
            return self
        raise ValueError(
            f"This codec is for the classes {self.class_names}, found {tuple(class_names)}."
        )

    def save(self, path: str | Path) -> None:
        """Write the codec to an ``.npz`` file; the same codec gives the same bytes.

        Args:
            path: the file; ``.npz`` is not added.

        Raises:
            NotFittedError: the codec is not fitted.
            OSError: the file cannot be written; an older one is untouched.
        """
        self._check_fitted()
        arrays = {
            self._file_name(name): tensor.detach().cpu().numpy()
            for name, tensor in self.state_dict().items()
        }
        write_codec_file(path, self.kind, self.get_config(), arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a codec that :meth:`save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            CodecFileError: the file holds no codec of this kind.
        """
        return cls.from_file(read_codec_file(path))

    @classmethod
    def from_file(cls, file: CodecFile) -> Self:
        """Build the codec from what a file holds.

        Raises:
            CodecFileError: the file holds no codec of this kind.
        """
        if file.kind != cls.kind:
            raise file.error(f"its kind must be {cls.kind!r}", repr(file.kind))
        try:
            codec = cls.from_config(file.config)
        except ValueError as error:
            raise file.error("its config must be that of such a codec", str(error)) from error
        state = codec.state_dict()
        for name, buffer in state.items():
            array = file.require(cls._file_name(name), tuple(buffer.shape))
            if array.dtype.kind != "f":
                raise file.error(f"{cls._file_name(name)} has a wrong type", array.dtype)
            state[name] = torch.from_numpy(array.astype(np.float32))
        codec.load_state_dict(state)
        if not codec.fitted:
            raise file.error("it must hold a fitted codec", "zeros only")
        return codec

    @classmethod
    def _file_name(cls, name: str) -> str:
        """What a buffer is called in a file."""
        return name

    def _check_fitted(self) -> None:
        if not self.fitted:
            raise NotFittedError(
                f"This {type(self).__name__} instance is not fitted yet. Call 'fit' with masks, "
                f"or load a fitted one, before using it."
            )


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


def checked_labels(labels: Tensor | None, count: int, class_names: tuple[str, ...]) -> Tensor:
    """Check the labels, ``(N,)``, that a codec with classes needs, and return them.

    Raises:
        ValueError: there are none, another number, or some out of range.
    """
    if labels is None:
        raise ValueError(
            f"This codec has a basis for each of {len(class_names)} classes: give the masks' or "
            f"codes' labels, found None."
        )
    if tuple(labels.shape) != (count,) or labels.is_floating_point():
        raise ValueError(
            f"Labels must be {count} integers, found {labels.dtype} of shape {tuple(labels.shape)}."
        )
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < len(class_names):
        raise ValueError(
            f"Labels must be from 0 to {len(class_names) - 1}, found {int(labels.min())} to "
            f"{int(labels.max())}."
        )
    return labels.long()
