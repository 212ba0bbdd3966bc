"""Sight: what the picture shows inside a box, added to the mask that its code decodes to.

A code is what one point says of a whole outline; edges finer than that are lost. The network gives
a few channels at half the finest stride; for detections that are kept, and for them alone, those
inside the box are sampled on the codec's grid and correct the decoded logits (the idea is ISTR's,
arXiv 2105.00637, the sampling Mask R-CNN's RoIAlign).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meinst.ops.frames import sample_in_frames
from meinst.types import HeadOutputs


class SightMap(nn.Module):
    """A map of a few channels from the backbone's finer level and the pyramid's finest.

    Args:
        finer_channels: of the backbone's map at half the pyramid's finest stride.
        pyramid_channels: of the pyramid.
        channels: of the map, ``E``.
    """

    def __init__(self, finer_channels: int, pyramid_channels: int, channels: int) -> None:
        super().__init__()
        self.finer = nn.Conv2d(finer_channels, channels, 1)
        self.coarser = nn.Conv2d(pyramid_channels, channels, 1)
        self.mix = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, finer: Tensor, pyramid: Tensor) -> Tensor:
        """``(B, ., 2 H, 2 W)`` and ``(B, ., H, W)`` to ``(B, E, 2 H, 2 W)``."""
        coarser = nn.functional.interpolate(self.coarser(pyramid), scale_factor=2.0)
        result: Tensor = self.mix(self.finer(finer) + coarser)
        return result


class MaskRefiner(nn.Module):
    """Corrects decoded masks by the sight map inside their boxes. It begins by correcting nothing.

    Args:
        channels: of the sight map, ``E``, and of its own convs.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.Conv2d(channels, 1, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(
            nn.Conv2d(channels + 1, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            last,
        )

    def forward(
        self, sight: Tensor, stride: float, image: Tensor, boxes: Tensor, logits: Tensor
    ) -> Tensor:
        """What to add to the logits.

        Args:
            sight: ``(B, E, H, W)``.
            stride: of the map, in the input's pixels.
            image: ``(N,)`` int64, which image each box is in.
            boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in the input's pixels.
            logits: ``(N, S, S)``, decoded codes, stretched over the boxes.

        Returns:
            ``(N, S, S)``.
        """
        seen = sample_in_frames(sight, image, boxes / stride, logits.shape[-1])  # (N, E, S, S)
        shape = 2 * logits.sigmoid() - 1
        both = torch.cat((seen, shape[:, None]), dim=1)  # (N, E + 1, S, S)
        # oneDNN's faster layout, whatever that of the map is.
        result: Tensor = self.layers(both.contiguous(memory_format=torch.channels_last)).squeeze(1)
        return result

    def correct(self, outputs: HeadOutputs, image: Tensor, boxes: Tensor, logits: Tensor) -> Tensor:
        """What to add to the logits, by a network's own sight; otherwise as :meth:`forward`."""
        assert outputs.sight is not None
        result: Tensor = self(outputs.sight, outputs.strides[0].item() / 2, image, boxes, logits)
        return result


def mask_sureness(logits: Tensor) -> Tensor:
    """The mean of a mask's soft values where it is on, 0.5 to 1; 0 for a mask that is off.

    A blurred or doubtful outline tells of a bad mask (SOLO's "maskness", arXiv 2106.15947).

    Args:
        logits: ``(N, S, S)``.

    Returns:
        ``(N,)``.
    """
    soft, on = logits.sigmoid().flatten(1), (logits > 0).flatten(1)
    return (soft * on).sum(1) / on.sum(1).clamp(min=1)
