"""What the benchmarks share: taking turns, medians of ratios, versions, peak memory."""

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
    """The machine and the packages' versions, for the head of a table."""
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
    """How many times faster one side is.

    Attributes:
        speedups: their seconds by ours, round by round.
        ours: our seconds.
        theirs: their seconds.
    """

    speedups: Sequence[float]
    ours: Sequence[float]
    theirs: Sequence[float]

    def __str__(self) -> str:
        low, high = min(self.speedups), max(self.speedups)
        return (
            f"{statistics.median(self.speedups):.2f} x ({low:.2f} to {high:.2f}; "
            f"{statistics.median(self.ours):.4g} s against {statistics.median(self.theirs):.4g} s, "
            f"{len(self.speedups)} rounds)"
        )


def compare(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> Ratio:
    """Time both sides in turns, since the machine's speed drifts.

    With more than one round each side is called once before, untimed.
    """
    if rounds > 1:
        ours()
        theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    mine, other = zip(*pairs, strict=True)
    return Ratio([their / our for our, their in pairs], mine, other)


def peak_memory(run: Callable[[], Any]) -> float:
    """Peak resident memory during a call above that before it, in MB (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
    before = _status("VmRSS")
    run()
    return (_status("VmHWM") - before) / 1000


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise KeyError(key)
