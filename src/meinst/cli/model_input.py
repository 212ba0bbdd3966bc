"""``--intensity`` and ``--channels``, which several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meinst.detector.predictor import Predictor


def override_input(model: Predictor, intensity: str | None, channels: str | None) -> None:
    """Let a model read images by other rules than its own; None keeps its own.

    Raises:
        ValueError: if a text is no rule.
    """
    from meinst.images.intensity import parse_channels

    chosen = None if channels is None else parse_channels(channels)
    model.input_options = model.input_options.override(intensity, chosen)
