"""A random sample of the masks of annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from meinst.codec_tools.mask_batches import MaskBatches, Source, select, source_path
from meinst.data.coco import Report
from meinst.data.mask_stream import MaskFilter

# An autoencoder is trained in many passes, so its masks stay in memory; more do not improve it.
MAX_SAMPLE = 200_000


def sample_masks(
    sources: Sequence[Source],
    mask_size: int,
    limit: int,
    seed: int,
    mask_filter: MaskFilter | None = None,
    on_masks: Callable[[int], None] = lambda _: None,
    on_report: Callable[[Path, Report], None] = lambda *_: None,
) -> Tensor:
    """Sample at most ``limit`` masks, all with equal probability.

    Args:
        sources: annotation files or their content.
        mask_size: ``S``.
        limit: bounds the memory, ``S * S`` bytes per mask.
        seed: seed of the sample.
        mask_filter: which instances to use; all but crowds if None.
        on_masks: called with the number of masks read since the last call.
        on_report: called after each source with its path and the instances left out or repaired.

    Returns:
        ``(N, S, S)`` uint8; in the order of the sources if all masks fit.

    Raises:
        FileNotFoundError: if a file does not exist.
        AnnotationError: if a file is not in COCO format.
    """
    generator = np.random.default_rng(seed)
    sample = np.empty((limit, mask_size, mask_size), dtype=np.uint8)
    total = 0
    for source in sources:
        batches = MaskBatches(source, mask_filter)
        for batch in batches:
            # Reservoir sampling (Vitter 1985, algorithm R): mask n replaces one of n + 1 rows, of
            # which only the first ``limit`` are kept.
            number = np.arange(total, total + len(batch))
            row = np.where(number < limit, number, generator.integers(0, number + 1))
            new = row < limit
            sample[row[new]] = select(batch, new).masks(mask_size)  # of equal rows the last wins
            total += len(batch)
            on_masks(len(batch))
        on_report(source_path(source), batches.report)
        del batches  # frees the file before the next is read
    return torch.from_numpy(sample[:total])
