"""Where a model runs."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """A device by its name; ``auto`` is a GPU where there is one.

    Raises:
        ValueError: if torch has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from error
