"""A small autoencoder as a mask codec: a nonlinear alternative to principal components."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from meinst.codecs.autoencoder_fit import Layers, fit_layers, run_layers
from meinst.codecs.base import Codec, binary_masks, check_mask_size, checked_codes
from meinst.codecs.clipped_logit import Logits
from meinst.codecs.linear import checked_config
from meinst.codecs.options import CodecOptions
from meinst.options import check_number

_MOST = 10**9  # of hidden units, iterations and masks per step
_PARTS = ("encoder", "decoder")


class AutoencoderCodec(Codec):
    """Mask codec that encodes masks as the bottleneck of a network with small hidden layers.

    Encoder and decoder each consist of a linear map, initialised with the principal components,
    and a hidden layer in parallel that learns the remainder. At ``K = 60`` this reconstructs masks
    better than any linear code, since outlines do not lie in a linear subspace. Over the fitted
    masks, coefficients have mean 0 and variance 1. All classes share one encoding.

    The network is trained only by :meth:`fit`: its weights are buffers, so the detector that holds
    the codec does not train them.

    Attributes:
        encoder_linear_, decoder_linear_: ``(K, D)`` and ``(D, K)``.
        encoder_hidden_, decoder_hidden_: ``(H, D)`` and ``(H, K)``.
        encoder_hidden_bias_, decoder_hidden_bias_: ``(H,)``.
        encoder_output_, decoder_output_: ``(K, H)`` and ``(D, H)``.
        encoder_bias_, decoder_bias_: ``(K,)`` and ``(D,)``.
    """

    kind = "autoencoder"
    title = "Autoencoder"

    def __init__(
        self,
        n_components: int = 60,
        mask_size: int = 28,
        *,
        hidden: int = 512,
        iterations: int = 3000,
        batch_size: int = 256,
        lr: float = 3e-3,
        seed: int = 0,
    ) -> None:
        """Store the hyper-parameters.

        Args:
            n_components: ``K``, from 1 to ``S * S``.
            mask_size: ``S``.
            hidden: ``H``, units of each hidden layer.
            iterations: training steps; the time of a fit does not depend on the number of masks.
            batch_size: masks per step.
            lr: largest learning rate.
            seed: seed of the initial weights, the order of masks and the noise.

        Raises:
            ValueError: if a value is out of range.
        """
        super().__init__()
        check_mask_size(mask_size)
        size = mask_size * mask_size
        if not 1 <= n_components <= size:
            raise ValueError(
                f"n_components must be between 1 and mask_size squared, got "
                f"mask_size={mask_size} and n_components={n_components}."
            )
        for name, value in (
            ("hidden", hidden),
            ("iterations", iterations),
            ("batch_size", batch_size),
        ):
            check_number(name, value, 1, _MOST, whole=True)
        if not 0 < lr < math.inf:
            raise ValueError(f"lr must be a finite number above 0, got {lr}.")
        self.n_components = n_components
        self.mask_size = mask_size
        self.hidden = hidden
        self.iterations = iterations
        self.batch_size = batch_size
        self.lr = lr
        self.seed = seed
        for part, inputs, outputs in (
            ("encoder", size, n_components),
            ("decoder", n_components, size),
        ):
            for name, tensor in Layers.zeros(inputs, hidden, outputs)._asdict().items():
                self.register_buffer(f"{part}_{name}_", tensor)
        self._fitted = False

    # Fitting

    def fit(
        self,
        masks: Tensor,
        labels: Tensor | None = None,  # noqa: ARG002
        *,
        on_step: Callable[[int], None] | None = None,
    ) -> Self:
        """Train the network, discarding any previous fit.

        On one machine, the same masks in the same order, seed and number of threads give the same
        bits. Training iterates over the masks many times, so all must be in memory; they are not
        copied. A sample of some 200,000 masks is enough.

        Args:
            masks: ``(N, S, S)`` bool, uint8 or float, binary at one half.
            labels: ignored.
            on_step: called after each step with the number of steps done.

        Raises:
            ValueError: if the masks span fewer than ``K`` directions, so that principal components
                reconstruct them exactly; if a shape is wrong; or if training diverges.
        """
        encoder, decoder = fit_layers(
            masks.detach(),
            self.mask_size,
            self.n_components,
            hidden=self.hidden,
            iterations=self.iterations,
            batch_size=self.batch_size,
            lr=self.lr,
            generator=torch.Generator().manual_seed(self.seed),
            device=self.get_buffer("decoder_bias_").device,
            on_step=on_step,
        )
        for part, layers in zip(_PARTS, (encoder, decoder), strict=True):
            for learned, buffer in zip(layers, self._layers(part), strict=True):
                buffer.copy_(learned)
        self._fitted = True
        return self

    def _layers(self, part: str) -> Layers:
        return Layers(*(self.get_buffer(f"{part}_{name}_") for name in Layers._fields))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._fitted = bool(self.get_buffer("decoder_linear_").any())

    @property
    def fitted(self) -> bool:
        """Whether the codec can encode and decode."""
        return self._fitted

    # Encoding and decoding

    def transform(
        self,
        masks: Tensor,
        *,
        labels: Tensor | None = None,  # noqa: ARG002
        logits: Logits = "expected",
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Encode masks; see :meth:`Codec.transform`."""
        self._check_fitted()
        inside = binary_masks(masks, self.mask_size)  # (N, D)
        if logits != "expected":
            raise ValueError(
                f"logits={logits!r} needs a codec with logits; an autoencoder has none."
            )
        return run_layers(self._layers("encoder"), 2 * inside.float() - 1)  # (N, K)

    def inverse_logits(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Decode codes to logits; see :meth:`Codec.inverse_logits`."""
        self._check_fitted()
        codes = checked_codes(codes, self.n_components)
        logits = run_layers(self._layers("decoder"), codes)  # (N, D)
        return logits.reshape(-1, self.mask_size, self.mask_size)  # (N, S, S)

    def inverse_transform(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Decode codes to soft masks; see :meth:`Codec.inverse_transform`."""
        return self.inverse_logits(codes, labels).sigmoid()

    # Options and configurations

    @classmethod
    def from_options(
        cls,
        options: CodecOptions,
        class_names: tuple[str, ...] | None = None,  # noqa: ARG003
    ) -> Self:
        """Build the codec from options; see :meth:`Codec.from_options`."""
        return cls(options.n_components, options.mask_size, seed=options.seed)

    def get_config(self) -> dict[str, Any]:
        """Return the hyper-parameters and ``kind``, ready for JSON."""
        return {
            "kind": self.kind,
            "n_components": self.n_components,
            "mask_size": self.mask_size,
            "hidden": self.hidden,
            "iterations": self.iterations,
            "batch_size": self.batch_size,
            "lr": self.lr,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the codec from a configuration; see :meth:`Codec.from_config`."""
        names = ("n_components", "mask_size", "hidden", "iterations", "batch_size", "seed")
        types: dict[str, type | tuple[type, ...]] = dict.fromkeys(names, int)
        return cls(**checked_config(config, cls.kind, types | {"lr": (int, float)}))
