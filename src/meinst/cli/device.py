"""The option ``--device``."""

from __future__ import annotations

import torch


def find_device(name: str) -> torch.device:
    """Return a device by its name; ``auto`` is the GPU if there is one, else the CPU.

    Raises:
        ValueError: if the device is not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used: {reason}") from error
