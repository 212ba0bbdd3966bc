"""Training images as numbered draws: any run and any process sees the same draw as the same."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from meinst.data.coco import CocoData
from meinst.data.images import ImageError, load_image
from meinst.data.transforms import (
    AugmentOptions,
    InputOptions,
    jitter_color,
    sample_geometry,
    transform_instances,
)
from meinst.types import Target

_ORDER, _AUGMENT = 0, 1  # streams of random numbers
_ATTEMPTS = 20  # unreadable images in a row before it is the folder that is broken

log = logging.getLogger("meinst")


class TrainingDraws(Dataset[tuple[Tensor, Target]]):
    """Augmented training images; draw ``k`` depends on ``k`` and the seed alone.

    Draw ``k`` takes image ``k % n`` of a permutation drawn anew for each epoch ``k // n`` (``n``
    images), so a resumed run and any number of processes or workers see the same images. There is
    no last draw.

    Args:
        data: with image files.
        options: the input size.
        augment: the random changes.
        mask_size: ``S``.
        seed: at least 0.
        skip_empty: leave out images without instances (crowd regions do not count).

    Raises:
        ValueError: if no images remain, or they have no files.
    """

    def __init__(
        self,
        data: CocoData,
        options: InputOptions,
        augment: AugmentOptions,
        mask_size: int,
        *,
        seed: int,
        skip_empty: bool = False,
    ) -> None:
        if seed < 0:
            raise ValueError(f"The seed must be at least 0, not {seed}.")
        chosen = [
            i
            for i, instances in enumerate(data.instances)
            if not skip_empty or not instances.crowd.all()
        ]
        if not chosen:
            raise ValueError(f"{data.annotations} has no image with instances to train on.")
        if any(record.path is None for record in data.images):
            raise ValueError(f"{data.annotations} was read without its image folder: give it.")
        self.options = options
        self.augment = augment
        self.mask_size = mask_size
        self.seed = seed
        self._data = data
        self._chosen = np.array(chosen)
        self._order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        """Draws of an epoch: the number of images."""
        return len(self._chosen)

    def __getitem__(self, draw: int) -> tuple[Tensor, Target]:
        """Image ``(3, H, W)`` uint8 RGB and its instances.

        An image that cannot be read is skipped with a warning: the next draw takes its place.

        Raises:
            ImageError: if many draws in a row cannot be read.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self._sample(draw + attempt)
            except ImageError as error:
                log.warning("skipped in training: %s", error)
                last = error
        raise last

    def _sample(self, draw: int) -> tuple[Tensor, Target]:
        epoch, place = divmod(draw, len(self))
        if self._order[0] != epoch:
            order = torch.randperm(len(self), generator=self._generator(_ORDER, epoch))
            self._order = epoch, order.tolist()
        position = self._chosen[self._order[1][place]]
        record, instances = self._data.images[position], self._data.instances[position]
        assert record.path is not None
        generator = self._generator(_AUGMENT, draw)
        image = load_image(record.path, (record.width, record.height))
        boxes = instances.boxes[~instances.crowd]
        geometry = sample_geometry(
            record.height, record.width, boxes, self.options, self.augment, generator
        )
        pixels = jitter_color(geometry.image(image), self.augment, generator)
        target = transform_instances(instances, geometry, self.mask_size, self.augment.min_visible)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), target

    def _generator(self, stream: int, number: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.seed, stream, number)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0]))


class DrawSampler(Sampler[int]):
    """The draws of one process: ``start + rank``, then every ``world_size``-th one up to ``stop``.

    All processes get the same number of draws: what does not fill a round is left out. The
    length is that of the whole run, with the draws before ``start``: a training loop that
    resumes counts on from where it was.

    Args:
        stop: number of the first draw that no process takes.
        start: number of the first draw; a resumed run passes what was already taken.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, stop: int, *, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in 0..{world_size - 1}, not {rank}.")
        rounds = max(0, stop - start) // world_size
        self._draws = range(start + rank, start + rank + rounds * world_size, world_size)
        self._length = stop // world_size

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self._draws)


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Lists of images and targets; images are padded to one size on the network's device."""
    return [image for image, _ in samples], [target for _, target in samples]
