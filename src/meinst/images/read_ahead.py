"""Read the next images in a thread, while the current ones are used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def read_ahead(
    sources: Iterable[S], read: Callable[[S], T], batch_size: int
) -> Iterator[list[tuple[S, Future[T]]]]:
    """Read batch after batch; a thread reads the next batch meanwhile.

    Args:
        sources: what to read.
        read: called in the thread; errors are in the futures.
        batch_size: sources per batch.

    Yields:
        The sources of a batch and their results, in order.
    """
    with ThreadPoolExecutor(max_workers=1) as reader:
        remaining = iter(sources)
        waiting = deque((s, reader.submit(read, s)) for s in islice(remaining, batch_size))
        while waiting:
            batch = list(waiting)
            waiting = deque((s, reader.submit(read, s)) for s in islice(remaining, batch_size))
            yield batch
