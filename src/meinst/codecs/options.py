"""The options of all mask codecs, declared once for recipes, commands and Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from meinst.options import check_range

CodecKind = Literal["pca", "dct", "grid", "autoencoder"]
"""Kinds of codecs; ``meinst.codecs.registry.CODECS`` maps them to classes."""

MAX_MASK_SIZE = 512
"""Largest side of masks in pixels; published models have 28, and more than 128 gain nothing."""


@dataclass(frozen=True)
class CodecOptions:
    """How masks are encoded.

    Attributes:
        kind: pca (principal components, as in the paper), dct (low frequencies), grid (a
            downsampled mask) or autoencoder (a small network).
        n_components: length of a mask's code, K; a square number for a grid.
        mask_size: side S of the grid on which masks are rasterised inside their boxes.
        sigmoid: encode logits and decode through a sigmoid; otherwise encode zeros and ones (pca,
            dct).
        whiten: scale codes to unit variance, which helps a detector to learn them (pca, dct).
        per_class: fit a separate basis for each class (pca).
        shrinkage: weight of all classes' statistics in the basis of each class, as a number of
            masks (pca with per_class).
        seed: seed of an autoencoder's training.
    """

    kind: CodecKind = "pca"
    n_components: int = 60
    mask_size: int = 28
    sigmoid: bool = True
    whiten: bool = True
    per_class: bool = False
    shrinkage: float = 3000.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject values that are out of range or do not apply to the kind of codec."""
        check_range(self, 1, MAX_MASK_SIZE, "mask_size")
        check_range(self, 1, math.inf, "n_components")
        check_range(self, 0, math.inf, "shrinkage")
        if self.per_class and self.kind != "pca":
            raise ValueError(
                f"per_class (a separate basis for each class) needs kind pca, got {self.kind}."
            )
