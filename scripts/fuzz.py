"""Damage inputs for a long time: ``python scripts/fuzz.py --minutes 60 --target pictures``.

Prints how many cases were accepted, rejected with a clear error, or faulty. The first input of each
fault is saved in ``tests/fuzz/corpus/``, where a test runs it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from fuzz.pool import Case, Outcome, Worker  # noqa: E402
from fuzz.strategies import GENERATE, STRATEGIES  # noqa: E402
from hypothesis import given, seed, settings  # noqa: E402

CORPUS = ROOT / "tests" / "fuzz" / "corpus"
_ROUND = 200  # cases of one target before the next one has its turn
_LARGEST = 200_000  # bytes of a file of the corpus


class _Campaign:
    """Counts the outcomes of a target and keeps the first input of each fault."""

    def __init__(self, corpus: Path) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: Counter[str] = Counter()
        self._corpus = corpus

    def add(self, case: Case, outcome: Outcome) -> None:
        self.counts[case.target, outcome.kind] += 1
        if outcome.kind != "fault":
            return
        place = f"{case.target}: {outcome.place}"
        self.faults[place] += 1
        if self.faults[place] == 1:
            print(f"\n== {place}", *map(_short, outcome.detail.splitlines()), sep="\n", flush=True)
            if len(case.content) <= _LARGEST:
                digest = hashlib.sha256(case.content).hexdigest()[:12]
                folder = self._corpus / case.target
                folder.mkdir(parents=True, exist_ok=True)
                stem, _, suffix = case.name.rpartition(".")
                (folder / f"{stem}-{digest}.{suffix}").write_bytes(case.content)

    def table(self) -> str:
        """A row for each target, in Markdown."""
        rows = ["| target | cases | accepted | clear errors | faults |", "|---|--:|--:|--:|--:|"]
        for target in STRATEGIES:
            kinds = [self.counts[target, kind] for kind in ("accepted", "error", "fault")]
            if sum(kinds):
                cells = " | ".join(f"{count:,}" for count in (sum(kinds), *kinds))
                rows.append(f"| {target} | {cells} |")
        return "\n".join(rows)


def _short(line: str) -> str:
    return line[:300].encode("ascii", "backslashreplace").decode()


def main() -> int:
    """Run the campaign; the exit code is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all targets together")
    parser.add_argument("--target", choices=sorted(STRATEGIES), action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="stop a target after this many cases")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="folder for faulty inputs")
    parser.add_argument("--bases", type=Path, help="folder of the valid files, to keep them")
    options = parser.parse_args()
    campaign = _Campaign(options.corpus)
    with tempfile.TemporaryDirectory() as folder:
        bases = options.bases or Path(folder) / "bases"
        if not bases.exists():
            paths = os.pathsep.join(sys.path[:2])
            command = [sys.executable, "-m", "fuzz.bases", str(bases)]
            subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": paths})
        with Worker(bases, Path(folder)) as worker:
            _run(options, campaign, bases, worker)
    print(f"\nseed {options.seed}\n\n{campaign.table()}")
    for place, count in campaign.faults.most_common():
        print(f"{count:6} x {place}")
    return int(bool(campaign.faults))


def _run(options: argparse.Namespace, campaign: _Campaign, bases: Path, worker: Worker) -> None:
    end = time.monotonic() + 60 * options.minutes
    strategies = {target: STRATEGIES[target](bases) for target in options.target or STRATEGIES}
    strategies = {target: each for target, each in strategies.items() if not each.is_empty}
    number = options.seed
    while strategies and time.monotonic() < end:
        number += 1
        for target, strategy in list(strategies.items()):
            done = sum(campaign.counts[target, kind] for kind in ("accepted", "error", "fault"))
            left = _ROUND if options.cases is None else min(_ROUND, options.cases - done)
            if left <= 0:
                del strategies[target]
                continue

            @seed(number)
            @settings(GENERATE, max_examples=left)
            @given(strategy)
            def check(case: Case) -> None:
                if time.monotonic() < end:
                    campaign.add(case, worker.run(case))

            check()


if __name__ == "__main__":
    sys.exit(main())
