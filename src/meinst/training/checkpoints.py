"""Checkpoint files: written atomically, read only if whole, and chosen for ``--resume``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from torch import Tensor

from meinst.files import open_atomically
from meinst.training.options import TrainOptions

log = logging.getLogger("meinst")

_KEYS = ("state_dict", "global_step", "metrics", "seed")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints to a temporary file beside their target.

    Lightning writes to the system's temporary folder, and copies from there if it is on another
    file system: a kill then leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; one that it replaces stays until it is complete."""
        assert storage_options is None
        with open_atomically(Path(path)) as file:
            torch.save(checkpoint, file)


def first_non_finite(checkpoint: dict[str, Any]) -> str | None:
    """The name of a weight that contains NaN or infinity; None if all are finite."""
    for part in ("state_dict", "current_model_state"):  # the moving average, if any, and weights
        for name, value in checkpoint.get(part, {}).items():
            if isinstance(value, Tensor) and not value.isfinite().all():
                return str(name)
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run.

    Raises:
        ValueError: if it is missing, damaged or incomplete, or its weights are not finite.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any class: the content is interpreted as instructions
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:80]
        raise ValueError(f"{path}: not a complete checkpoint ({reason})") from error
    if not isinstance(checkpoint, dict) or any(key not in checkpoint for key in _KEYS):
        raise ValueError(f"{path}: not a checkpoint of `meinst train`")
    if name := first_non_finite(checkpoint):
        raise ValueError(f"{path}: its weights are not finite ({name})")
    return checkpoint


def read_with_fallback(path: Path, other: Path, purpose: str) -> tuple[Path, dict[str, Any]]:
    """Read a checkpoint, or with a warning another one if it is not usable.

    Args:
        path: the file.
        other: the file that is read instead.
        purpose: what it is read for, for the warning.

    Returns:
        The file that was read, and its content.

    Raises:
        ValueError: if neither is usable.
    """
    try:
        return path, read_checkpoint(path)
    except ValueError as error:
        try:
            checkpoint = read_checkpoint(other)
        except ValueError as second:
            raise ValueError(
                f"{error}; {second}; restore one of them, or start a new run in another --output."
            ) from error
        update = checkpoint["global_step"]
        log.warning("%s; %s %s of update %d instead", error, purpose, other, update)
        return other, checkpoint


def checkpoint_to_resume(options: TrainOptions) -> tuple[Path, dict[str, Any]]:
    """The checkpoint from which a run continues: the last, or else the best one.

    Raises:
        ValueError: if neither is usable.
    """
    last, best = options.last_checkpoint, options.best_checkpoint
    return read_with_fallback(last, best, "continuing from")
