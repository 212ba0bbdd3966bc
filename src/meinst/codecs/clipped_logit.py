"""The logit that stands for a binary pixel in the "sigmoid" variant of mask encoding.

The published code draws ``v = max(0.05 u, 0.01)`` for each pixel, ``u`` uniform in [0, 1), and
takes ``log((1 - v) / v)`` inside and its negative outside. This project takes the expectation,
unless told to draw.
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
    """Mean and variance of an inside pixel's logit.

    The mass at the lower clip is ``bottom / top``; over the rest the density is ``1 / top``,
    and the integrand is so smooth that 40 Gauss-Legendre points reach double precision.
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
"""``L`` and ``sigma^2``: mean and variance of an inside pixel's logit."""


Logits = Literal["expected", "random", "constant"]
"""``expected``: ``L`` for all; ``random``: drawn, as published; ``constant``: ``v = 0.01`` for all,
an option of the published code."""


def clipped_logits(
    inside: Tensor, logits: Logits = "expected", generator: torch.Generator | None = None
) -> Tensor:
    """Turn binary pixels into logits.

    Args:
        inside: bool, any shape.
        logits: which of them.
        generator: draws random logits, on the same device; needed for those, and for them alone.

    Returns:
        float32 of the same shape.

    Raises:
        ValueError: if there are no such logits, or if a generator is missing, or given where
            nothing is drawn.
    """
    if logits not in get_args(Logits):
        raise ValueError(f"logits must be one of {', '.join(get_args(Logits))}, found {logits!r}.")
    if (logits == "random") != (generator is not None):
        raise ValueError(
            f"Random logits are drawn by a generator, others are not: found logits={logits!r} "
            f"with {'no' if generator is None else 'a'} generator."
        )
    signs = 2 * inside.float() - 1
    if logits == "expected":
        return signs * LOGIT
    if logits == "constant":
        return signs * math.log((1 - _BOTTOM) / _BOTTOM)
    draws = torch.rand(inside.shape, generator=generator, device=inside.device)
    v = (_TOP * draws).clamp(min=_BOTTOM)
    return signs * torch.log((1 - v) / v)
