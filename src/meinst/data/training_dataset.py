"""Training images as numbered samples: sample ``k`` is the same in every run and process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from meinst.data.coco import CocoData
from meinst.data.color import jitter_color
from meinst.data.images import ImageError, read_image
from meinst.data.transforms import (
    AugmentOptions,
    ResizeOptions,
    sample_geometry,
    transform_instances,
)
from meinst.images.intensity import InputOptions, Stretch
from meinst.types import Target

_ORDER, _AUGMENT = 0, 1  # separate streams of random numbers
_MAX_ATTEMPTS = 20  # consecutive unreadable images before training fails

log = logging.getLogger("meinst")


class TrainingDataset(Dataset[tuple[Tensor, Target]]):
    """Augmented training images; sample ``k`` depends only on ``k`` and the seed.

    Sample ``k`` is image ``k % n`` of a random permutation of the ``n`` images that changes with
    each epoch ``k // n``. So a resumed run, and any number of processes or workers, see the same
    images. The samples never end.

    Args:
        data: annotations with image files.
        options: size of the resized images.
        augment: augmentation of the images.
        mask_size: ``S``.
        seed: at least 0.
        skip_empty: skip images without instances (crowd regions do not count).
        input_options: how pixel values become 0 to 255.

    Raises:
        ValueError: if no images remain, or they have no files.
    """

    def __init__(
        self,
        data: CocoData,
        options: ResizeOptions,
        augment: AugmentOptions,
        mask_size: int,
        *,
        seed: int,
        skip_empty: bool = False,
        input_options: InputOptions | None = None,
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}.")
        chosen = [
            i
            for i, instances in enumerate(data.instances)
            if not skip_empty or not instances.crowd.all()
        ]
        if not chosen:
            raise ValueError(f"{data.annotations} has no image with instances to train on.")
        if any(record.path is None for record in data.images):
            raise ValueError(
                f"{data.annotations} was read without an image folder; pass one to read_coco()."
            )
        self.input_options = input_options or InputOptions()
        self.options = options
        self.augment = augment
        self.mask_size = mask_size
        self.seed = seed
        self._data = data
        self._chosen = np.array(chosen)
        self._stretch_logged = False
        self._skipped: set[str] = set()  # errors of this process's images that are known
        self._order: tuple[int, list[int]] = (-1, [])  # an epoch and its permutation

    def __len__(self) -> int:
        """Samples per epoch: the number of images."""
        return len(self._chosen)

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        """Image ``(3, H, W)`` uint8 RGB and its instances.

        An image that cannot be read is skipped with one warning; the next sample takes its place.

        Raises:
            ImageError: if many consecutive images cannot be read.
        """
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return self._sample(number + attempt)
            except ImageError as error:
                last = str(error)
                if last not in self._skipped:
                    self._skipped.add(last)
                    log.warning("skipped in training: %s", last)
        raise ImageError(
            f"{self._data.annotations}: {_MAX_ATTEMPTS} training images in a row cannot be read; "
            f"the last error: {last}"
        )

    def _sample(self, number: int) -> tuple[Tensor, Target]:
        epoch, place = divmod(number, len(self))
        if self._order[0] != epoch:
            order = torch.randperm(len(self), generator=self._generator(_ORDER, epoch))
            self._order = epoch, order.tolist()
        position = self._chosen[self._order[1][place]]
        record, instances = self._data.images[position], self._data.instances[position]
        assert record.path is not None
        generator = self._generator(_AUGMENT, number)
        size = record.width, record.height
        picture = read_image(record.path, self.input_options, size)
        self._log_stretch(record.path, picture.stretch)
        image = picture.pixels
        boxes = instances.boxes[~instances.crowd]
        geometry = sample_geometry(
            record.height, record.width, boxes, self.options, self.augment, generator
        )
        pixels = jitter_color(geometry.image(image), self.augment, generator)
        target = transform_instances(instances, geometry, self.mask_size, self.augment.min_visible)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))), target

    def _log_stretch(self, path: Path, stretch: Stretch | None) -> None:
        """Log once how values of more than 8 bits are used."""
        worker = get_worker_info()
        if stretch is None or self._stretch_logged or (worker is not None and worker.id > 0):
            return
        self._stretch_logged = True
        log.info(
            "training images of more than 8 bits are scaled by input.intensity = %s; for example, "
            "in %s (%s), %g to %g become 0 to 255",
            *(stretch.rule, path, stretch.dtype, stretch.low, stretch.high),
        )

    def _generator(self, stream: int, number: int) -> torch.Generator:
        seed = np.random.SeedSequence((self.seed, stream, number)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(seed[0]))


class ResumableSampler(Sampler[int]):
    """Sample numbers of one process: ``start + rank``, then every ``world_size``-th up to ``stop``.

    All processes get the same number of samples; a last incomplete round is dropped. The length
    includes the samples before ``start``, because a resumed training loop continues counting.

    Args:
        stop: first sample number that no process takes.
        start: first sample number; a resumed run starts after the samples already used.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, stop: int, *, start: int = 0, rank: int = 0, world_size: int = 1) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be between 0 and {world_size - 1}, got {rank}.")
        rounds = max(0, stop - start) // world_size
        self._numbers = range(start + rank, start + rank + rounds * world_size, world_size)
        self._length = stop // world_size

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)


def collate(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """Collate samples to lists of images and targets; the network pads the images."""
    return [image for image, _ in samples], [target for _, target in samples]
