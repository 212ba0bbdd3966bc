"""What classes of options share."""

from __future__ import annotations

import math


def check_range(options: object, low: float, high: float, *names: str) -> None:
    """Refuse numbers out of range, by name; None is no number, and as it may be.

    Args:
        options: holds them.
        low: the smallest allowed.
        high: the largest allowed, or infinity.
        names: of the attributes.

    Raises:
        ValueError: naming the attribute, the range and the value.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise ValueError(f"{name} must be {limits}, got {value}.")
