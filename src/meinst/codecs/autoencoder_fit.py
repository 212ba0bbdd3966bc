"""The network of the autoencoder codec as pure functions, and its training."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from meinst.codecs.base import binary_masks
from meinst.codecs.clipped_logit import LOGIT
from meinst.codecs.moments import Moments
from meinst.codecs.pca import PCACodec
from meinst.ops.dice import dice_loss

# Noise that is added to codes in training, in standard deviations. It makes the decoder smooth,
# which matters because the codes of a detector are never exact.
_NOISE = 0.1
# Steps of linear warm-up of the learning rate; at most a tenth of all steps.
_WARM_UP = 100
_CHUNK = 4096  # masks encoded at a time


class Layers(NamedTuple):
    """A linear map with a hidden layer in parallel, from ``I`` numbers to ``O``.

    Attributes:
        linear: ``(O, I)``.
        hidden: ``(H, I)``.
        hidden_bias: ``(H,)``.
        output: ``(O, H)``.
        bias: ``(O,)``.
    """

    linear: Tensor
    hidden: Tensor
    hidden_bias: Tensor
    output: Tensor
    bias: Tensor

    @classmethod
    def zeros(cls, inputs: int, hidden: int, outputs: int) -> Layers:
        """Create layers whose parameters are zero."""
        shapes = ((outputs, inputs), (hidden, inputs), (hidden,), (outputs, hidden), (outputs,))
        return cls(*map(torch.zeros, shapes))


def run_layers(layers: Layers, values: Tensor) -> Tensor:
    """Map ``values``, ``(N, I)`` float32, to ``(N, O)``."""
    with torch.autocast(values.device.type, enabled=False):
        hidden = F.gelu(F.linear(values, layers.hidden, layers.hidden_bias))  # (N, H)
        return F.linear(values, layers.linear, layers.bias) + F.linear(hidden, layers.output)


def fit_layers(
    masks: Tensor,
    mask_size: int,
    n_components: int,
    *,
    hidden: int,
    iterations: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    device: torch.device,
    on_step: Callable[[int], None] | None,
) -> tuple[Layers, Layers]:
    """Train encoder and decoder on the cross-entropy of pixels and the Dice loss of masks.

    The linear maps are initialised with whitened principal components, and the outputs of the
    hidden layers with zeros. Masks are flipped and transposed at random, to prevent overfitting.

    Args:
        masks: ``(N, S, S)``, binary at one half.
        mask_size: ``S``.
        n_components: ``K``.
        hidden: ``H``.
        iterations: number of steps.
        batch_size: masks per step.
        lr: largest learning rate, reached after linear warm-up and followed by cosine decay.
        generator: source of all randomness; on the CPU.
        device: device to train on.
        on_step: called after each step with the number of steps done.

    Returns:
        The encoder, from pixels of -1 and 1 to codes of mean 0 and variance 1 over the masks, and
        the decoder, from codes to logits.

    Raises:
        ValueError: if the masks span fewer than ``K`` directions, or training diverges.
    """
    encoder, decoder = _initial_layers(masks, mask_size, n_components, hidden, generator)
    weights = [tensor.to(device).requires_grad_() for tensor in (*encoder, *decoder)]
    encoder, decoder = Layers(*weights[:5]), Layers(*weights[5:])
    optimizer = torch.optim.Adam(weights, lr=lr, fused=True)
    schedule = _warm_up_and_cosine(optimizer, iterations)
    batches = _batches(len(masks), batch_size, generator)
    with torch.enable_grad():
        for step in range(1, iterations + 1):
            batch = binary_masks(masks[next(batches)], mask_size).float()  # (N, D)
            batch = _augment(batch.cpu(), generator).to(device)
            codes = run_layers(encoder, 2 * batch - 1)
            noise = torch.randn(codes.shape, generator=generator).to(device)
            scale = _NOISE * codes.detach().std(0, correction=0)
            loss = _loss(run_layers(decoder, codes + scale * noise), batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if on_step is not None:
                on_step(step)
    _check_finite(weights, lr)
    weights = [tensor.detach() for tensor in weights]
    return _standardise(Layers(*weights[:5]), Layers(*weights[5:]), masks, mask_size)


def _warm_up_and_cosine(
    optimizer: torch.optim.Optimizer, iterations: int
) -> torch.optim.lr_scheduler.LambdaLR:
    warm_up = min(_WARM_UP, iterations // 10 + 1)

    def factor(step: int) -> float:
        return min((step + 1) / warm_up, 1) * (1 + math.cos(math.pi * step / iterations)) / 2

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _check_finite(weights: Sequence[Tensor], lr: float) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in weights):
        raise ValueError(
            f"Training the autoencoder diverged at lr={lr}: its weights are not finite. Lower lr."
        )


def _initial_layers(
    masks: Tensor,
    mask_size: int,
    n_components: int,
    hidden: int,
    generator: torch.Generator,
) -> tuple[Layers, Layers]:
    """Layers equal to principal components, with hidden layers that do not contribute yet."""
    moments = Moments(mask_size).add(masks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a low rank is an error here
        pca = PCACodec(n_components, mask_size).fit_moments(moments)
    components, mean = pca.components_[0], pca.mean_[0]  # (K, D), (D,)
    rank = int(components.any(1).sum())
    if rank < n_components:
        raise ValueError(
            f"An autoencoder needs masks that span at least n_components={n_components} "
            f"directions, but these {len(masks)} masks span {rank}. Use more masks, fewer "
            f"components, or a PCACodec, which is exact for these masks."
        )
    deviation = pca.explained_variance_[0].sqrt()[:, None]  # (K, 1)
    encoder = Layers.zeros(mask_size**2, hidden, n_components)
    decoder = Layers.zeros(n_components, hidden, mask_size**2)
    encoder.linear.copy_(LOGIT * components / deviation)
    encoder.bias.copy_(-(components / deviation) @ mean)
    decoder.linear.copy_((components * deviation).T)
    decoder.bias.copy_(mean)
    for layers in (encoder, decoder):
        bound = layers.hidden.shape[1] ** -0.5
        for tensor in (layers.hidden, layers.hidden_bias):
            tensor.uniform_(-bound, bound, generator=generator)
    return encoder, decoder


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of ``size`` of ``count`` indices, shuffled anew for every epoch."""
    size = min(size, count)
    while True:
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def _augment(masks: Tensor, generator: torch.Generator) -> Tensor:
    """Flip and transpose each of the ``(N, D)`` masks at random."""
    size = math.isqrt(masks.shape[1])
    image = masks.reshape(-1, size, size)  # (N, S, S)
    choice = torch.rand(3, len(image), 1, 1, generator=generator) < 0.5
    image = torch.where(choice[0], image.flip(1), image)
    image = torch.where(choice[1], image.flip(2), image)
    return torch.where(choice[2], image.transpose(1, 2), image).flatten(1)  # (N, D)


def _loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Mean over masks of cross-entropy (mean over pixels) plus Dice loss."""
    entropy = F.binary_cross_entropy_with_logits(logits, masks)
    return entropy + dice_loss(logits, masks).mean()


def _standardise(
    encoder: Layers, decoder: Layers, masks: Tensor, mask_size: int
) -> tuple[Layers, Layers]:
    """Rescale codes to mean 0 and variance 1 over the masks, without changing decoded masks."""
    device = encoder.bias.device
    total = torch.zeros(len(encoder.bias), dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, len(masks), _CHUNK):
        chunk = binary_masks(masks[start : start + _CHUNK], mask_size).to(device)
        codes = run_layers(encoder, 2 * chunk.float() - 1).cpu().double()  # (N, K)
        total += codes.sum(0)
        squares += codes.square().sum(0)
    mean = total / len(masks)  # (K,)
    # Avoid division by zero for a coefficient that is equal for all masks.
    deviation = (squares / len(masks) - mean.square()).clamp(min=1e-12).sqrt()
    mean, deviation = mean.to(encoder.bias), deviation.to(encoder.bias)
    encoder = encoder._replace(
        linear=encoder.linear / deviation[:, None],
        output=encoder.output / deviation[:, None],
        bias=(encoder.bias - mean) / deviation,
    )
    decoder = decoder._replace(
        linear=decoder.linear * deviation,
        hidden=decoder.hidden * deviation,
        hidden_bias=decoder.hidden_bias + decoder.hidden @ mean,
        bias=decoder.bias + decoder.linear @ mean,
    )
    return encoder, decoder
