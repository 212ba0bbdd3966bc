"""Helpers of the benchmarks: alternating measurements, ratios, versions, peak memory."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any


def versions(*packages: str) -> str:
    """The machine and the versions of packages, as the heading of a table."""
    found = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {found}"
    )


def seconds(run: Callable[[], Any]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Ratio:
    """Times of two implementations, measured alternately.

    Attributes:
        speedups: for each round, the time of the reference divided by that of the tested one.
        tested: seconds of the tested implementation.
        reference: seconds of the reference.
    """

    speedups: Sequence[float]
    tested: Sequence[float]
    reference: Sequence[float]

    def __str__(self) -> str:
        low, high = min(self.speedups), max(self.speedups)
        return (
            f"{statistics.median(self.speedups):.2f} x ({low:.2f} to {high:.2f}; "
            f"{statistics.median(self.tested):.4g} s against "
            f"{statistics.median(self.reference):.4g} s, {len(self.speedups)} rounds)"
        )


def compare(tested: Callable[[], Any], reference: Callable[[], Any], rounds: int) -> Ratio:
    """Time two implementations alternately, since the machine's speed drifts.

    With more than one round, each is first called once without timing.
    """
    if rounds > 1:
        tested()
        reference()
    pairs = [(seconds(tested), seconds(reference)) for _ in range(rounds)]
    times = tuple(zip(*pairs, strict=True))
    return Ratio([slow / fast for fast, slow in pairs], *times)


def peak_memory(run: Callable[[], Any]) -> float:
    """Peak resident memory during a call minus the memory before it, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1000


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)
