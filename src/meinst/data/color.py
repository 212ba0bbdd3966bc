"""Random changes of colour for training."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageEnhance

from meinst.data.transforms import AugmentOptions
from meinst.images.rgb import Pixels


def jitter_color(image: Pixels, augment: AugmentOptions, generator: torch.Generator) -> Pixels:
    """Jitter brightness, contrast, saturation and hue, in this order.

    Args:
        image: ``(H, W, 3)`` uint8; not changed, returned itself if all strengths are 0.
        augment: the strengths.
        generator: source of all randomness; every call samples the same number of values.
    """
    random = (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1).tolist()
    strengths = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    if not any(strengths):
        return image
    jittered = Image.fromarray(np.ascontiguousarray(image))
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhancer, strength, value in zip(enhancers, strengths, random, strict=False):
        if strength:
            jittered = enhancer(jittered).enhance(1 + strength * value)
    if augment.hue:
        hsv = np.array(jittered.convert("HSV"))
        hsv[..., 0] += np.uint8(round(augment.hue * random[3] * 256) % 256)  # wraps around
        jittered = Image.fromarray(hsv, mode="HSV").convert("RGB")
    return np.array(jittered)
