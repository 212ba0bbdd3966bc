"""The Dice loss of detectors and autoencoders."""

from __future__ import annotations

from torch import Tensor


def dice_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """One minus the Dice coefficient with squared sums (V-Net), for each mask.

    Args:
        logits: ``(N, D)``.
        masks: ``(N, D)`` of 0 and 1.

    Returns:
        ``(N,)`` in 0..1.
    """
    soft = logits.sigmoid()
    overlap = 2 * (soft * masks).sum(-1) + 1
    return 1 - overlap / (soft.square().sum(-1) + masks.sum(-1) + 1)
