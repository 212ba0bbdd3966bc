"""Fitting a mask codec on the annotations of a data set, in one pass."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from meinst.codecs import Moments, PCACodec
from meinst.data.coco import CocoData
from meinst.engine.config import CodecOptions

_CHUNK = 4096  # masks rasterised before they are added up; bounds the memory


def fit_codec(data: CocoData, options: CodecOptions) -> PCACodec:
    """Fit principal components on all instances that are not crowds.

    Args:
        data: annotations; no image is read.
        options: length of the code, side of the mask, variant.

    Raises:
        ValueError: if there are fewer than two different masks.
    """
    codec = PCACodec(
        options.n_components,
        options.mask_size,
        sigmoid=options.sigmoid,
        whiten=options.whiten,
    )
    moments = Moments(options.mask_size)
    for masks in _chunks(data, options.mask_size):
        moments.add(torch.from_numpy(masks))
    try:
        return codec.fit_moments(moments)
    except ValueError as error:
        raise ValueError(f"{data.annotations}: no codec can be fitted: {error}") from error


def _chunks(data: CocoData, size: int) -> Iterator[NDArray[np.uint8]]:
    """The data set's masks ``(N, S, S)``, about ``_CHUNK`` at a time."""
    held: list[NDArray[np.uint8]] = []
    count = 0
    for instances in data.instances:
        held.append(instances.select(np.flatnonzero(~instances.crowd)).masks(size))
        count += len(held[-1])
        if count >= _CHUNK:
            yield np.concatenate(held)
            held, count = [], 0
    if held:
        yield np.concatenate(held)
