"""The logit that stands for a binary pixel in the sigmoid variant of mask encoding.

For each pixel the published code samples ``u`` uniformly from [0, 1), sets
``v = max(0.05 u, 0.01)``, and uses ``log((1 - v) / v)`` inside the mask and its negative outside.
This package uses the expected value, ``L``, by default.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

_TOP = 0.05
_BOTTOM = 0.01


def _moments() -> tuple[float, float]:
    """Mean and variance of the logit of a pixel inside the mask.

    The probability of the lower clip is ``bottom / top``; elsewhere the density is ``1 / top``, and
    the integrand is so smooth that 40 Gauss-Legendre points give double precision.
    """
    nodes, weights = np.polynomial.legendre.leggauss(40)
    half = (_TOP - _BOTTOM) / 2
    v = _BOTTOM + half * (nodes + 1)
    logit = np.log((1 - v) / v)
    at_bottom = math.log((1 - _BOTTOM) / _BOTTOM)
    share, density = _BOTTOM / _TOP, 1 / _TOP
    mean = share * at_bottom + density * half * float(weights @ logit)
    square = share * at_bottom**2 + density * half * float(weights @ logit**2)
    return mean, square - mean**2


LOGIT, LOGIT_VARIANCE = _moments()
"""``L`` and ``sigma^2``: mean and variance of the logit of a pixel inside the mask."""


Logits = Literal["expected", "random", "constant"]
"""``expected``: ``L`` for every pixel; ``random``: sampled, as published; ``constant``: the logit
of ``v = 0.01`` for every pixel, an option of the published code."""


def clipped_logits(
    inside: Tensor, logits: Logits = "expected", generator: torch.Generator | None = None
) -> Tensor:
    """Convert binary pixels to logits.

    Args:
        inside: bool, any shape.
        logits: which logits to use.
        generator: source of random logits, on the same device; for random logits only.

    Returns:
        float32, same shape.

    Raises:
        ValueError: if the logits are unknown, the generator is missing for random logits, or a
            generator is given for others.
    """
    if logits not in get_args(Logits):
        raise ValueError(f"logits must be one of {', '.join(get_args(Logits))}, got {logits!r}.")
    if (logits == "random") != (generator is not None):
        raise ValueError(
            f"A generator is needed for random logits, and for no others: got logits={logits!r} "
            f"with {'no' if generator is None else 'a'} generator."
        )
    signs = 2 * inside.float() - 1
    if logits == "expected":
        return signs * LOGIT
    if logits == "constant":
        return signs * math.log((1 - _BOTTOM) / _BOTTOM)
    u = torch.rand(inside.shape, generator=generator, device=inside.device)
    v = (_TOP * u).clamp(min=_BOTTOM)
    return signs * torch.log((1 - v) / v)
