"""Choose some images of a data set so that the classes keep their proportions."""

from __future__ import annotations

import numpy as np

from meinst.data.coco import CocoData
from meinst.data.datasets.parts import DatasetError

_CANDIDATES = 32  # images that compete for each place


def sample(data: CocoData, count: int, *, seed: int = 0) -> list[int]:
    """Choose images, as indices in ascending order.

    For each place, the best of some images drawn at random is taken: the one after which the shares
    of the classes are closest to those of all images. Images of a class that the
    sample lacks come first.

    Args:
        data: the data set.
        count: number of images.
        seed: seed of the draw.

    Raises:
        DatasetError: if there are not as many images.
    """
    if not 1 <= count <= len(data):
        raise DatasetError(
            f"{data.annotations}: a sample of {count} images is impossible; it has {len(data)}, "
            "choose from 1 on."
        )
    objects = np.zeros((len(data), len(data.class_names)))  # and images without objects
    for row, instances in zip(objects, data.instances, strict=True):
        np.add.at(row, instances.labels[~instances.crowd], 1)
    objects = np.column_stack((objects, objects.sum(axis=1) == 0))
    shares = objects.sum(axis=0) / max(objects.sum(), 1)
    rest = np.random.default_rng(seed).permutation(len(data))
    chosen: list[int] = []
    total = np.zeros(objects.shape[1])
    while len(chosen) < count:
        window = rest[:_CANDIDATES]
        after = total + objects[window]
        distance = np.abs(after / after.sum(axis=1, keepdims=True).clip(min=1) - shares).sum(axis=1)
        missing = ((total == 0) & (shares > 0))[None] & (objects[window] > 0)
        best = int(np.lexsort((distance, -missing.sum(axis=1)))[0])
        chosen.append(int(window[best]))
        total = after[best]
        rest = np.delete(rest, best)
    return sorted(chosen)
