"""Mask refinement: image features inside a box correct the mask decoded from its code.

A code describes a whole outline from a single feature-map location, so details finer than that are
lost. The network therefore predicts a few channels at half the finest stride. For the detections
that are kept, and only for them, these features are sampled inside the box on the codec's grid and
a small network turns them into a correction of the decoded logits. (The idea follows ISTR, arXiv
2105.00637, and RefineMask, arXiv 2104.08569; the sampling is Mask R-CNN's RoIAlign.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from meinst.ops.rois import sample_rois
from meinst.types import HeadOutputs


class RefinementFeatures(nn.Module):
    """Features for mask refinement, from a fine backbone level and the finest pyramid level.

    Args:
        fine_channels: channels of the backbone level at half the pyramid's finest stride.
        pyramid_channels: channels of the pyramid.
        channels: channels of the result, ``E``.
    """

    def __init__(self, fine_channels: int, pyramid_channels: int, channels: int) -> None:
        super().__init__()
        self.finer = nn.Conv2d(fine_channels, channels, 1)
        self.coarser = nn.Conv2d(pyramid_channels, channels, 1)
        self.mix = nn.Sequential(
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, fine: Tensor, pyramid: Tensor) -> Tensor:
        """Combine ``(B, ., 2 H, 2 W)`` and ``(B, ., H, W)`` into ``(B, E, 2 H, 2 W)``."""
        coarse = nn.functional.interpolate(self.coarser(pyramid), scale_factor=2.0)
        result: Tensor = self.mix(self.finer(fine) + coarse)
        return result


class MaskRefiner(nn.Module):
    """Predict what to add to decoded mask logits. Initialised to add nothing.

    Args:
        channels: channels of the refinement features, ``E``, and of the hidden convs.
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
        self, features: Tensor, stride: float, image: Tensor, boxes: Tensor, logits: Tensor
    ) -> Tensor:
        """Return the correction of the logits.

        Args:
            features: ``(B, E, H, W)`` refinement features.
            stride: stride of the features, in pixels of the network's input.
            image: ``(N,)`` int64, the image that each box belongs to.
            boxes: ``(N, 4)`` ``x1 y1 x2 y2`` in pixels of the network's input.
            logits: ``(N, S, S)`` decoded codes, stretched over the boxes.

        Returns:
            ``(N, S, S)``.
        """
        rois = sample_rois(features, image, boxes / stride, logits.shape[-1])  # (N, E, S, S)
        shape = 2 * logits.sigmoid() - 1
        inputs = torch.cat((rois, shape[:, None]), dim=1)  # (N, E + 1, S, S)
        # Channels-last is oneDNN's faster layout, whatever the layout of the features.
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        result: Tensor = self.layers(inputs).squeeze(1)
        return result

    def correct(self, outputs: HeadOutputs, image: Tensor, boxes: Tensor, logits: Tensor) -> Tensor:
        """Return the correction from the features in ``outputs``; see :meth:`forward`."""
        assert outputs.refinement is not None
        stride = outputs.strides[0].item() / 2
        result: Tensor = self(outputs.refinement, stride, image, boxes, logits)
        return result


def maskness(logits: Tensor) -> Tensor:
    """Mean soft value of a mask's foreground pixels: 0.5 to 1, or 0 for an empty mask.

    Blurred outlines indicate an unreliable mask (SOLO, arXiv 2106.15947).

    Args:
        logits: ``(N, S, S)``.

    Returns:
        ``(N,)``.
    """
    soft, foreground = logits.sigmoid().flatten(1), (logits > 0).flatten(1)
    return (soft * foreground).sum(1) / foreground.sum(1).clamp(min=1)
