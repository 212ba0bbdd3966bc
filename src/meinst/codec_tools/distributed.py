"""Several processes, started by torchrun, that count masks together."""

from __future__ import annotations

import os

import torch

from meinst.codecs import ClassMoments, Moments


def rank_and_world_size() -> tuple[int, int]:
    """Index of this process and number of processes, as set by torchrun; ``(0, 1)`` without."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def sum_over_processes(moments: Moments | ClassMoments) -> None:
    """Replace the sums of each process by the total, in place.

    Initialises torch's default process group for the duration of the call. With class moments, all
    processes must have the same class names.
    """
    from torch import distributed

    distributed.init_process_group("gloo")
    try:
        _all_reduce(moments)
    finally:
        distributed.destroy_process_group()


def _all_reduce(moments: Moments | ClassMoments) -> None:
    from torch import distributed

    if isinstance(moments, ClassMoments):
        counts = torch.tensor([0 if sums is None else sums.count for sums in moments.classes])
        distributed.all_reduce(counts)
        for label in counts.nonzero().flatten().tolist():
            _all_reduce(moments.of_class(label))
        return
    count = torch.tensor(moments.count)
    distributed.all_reduce(count)
    distributed.all_reduce(moments.products)
    moments.count = int(count)
