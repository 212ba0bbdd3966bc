"""Run cases in subprocesses that may crash, hang or fill the memory."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

TESTS = Path(__file__).parents[1]
SECONDS, START_SECONDS = 10.0, 300.0
"""Time of a case, and of the first of a target in a worker, which may have to compile kernels."""
_LIFE = 2000  # cases of a worker, so that leaks of foreign readers do not add up


@dataclass(frozen=True)
class Case:
    """An input.

    Attributes:
        target: what reads it, a key of ``targets.RUN``.
        name: name of the file.
        content: the bytes of the file.
    """

    target: str
    name: str
    content: bytes


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        kind: accepted, error (a clear one) or fault.
        detail: what went wrong, on several lines.
        place: type of the fault and the function in which it arose; equal for equal faults.
    """

    kind: str
    detail: str = ""
    place: str = ""


class Worker:
    """A subprocess that runs cases; it is started again if it dies or is killed.

    Args:
        bases: the folder that ``bases.py`` has filled.
        folder: for the files of cases.
    """

    def __init__(self, bases: Path, folder: Path | None = None) -> None:
        self._bases = bases
        self._temporary = tempfile.TemporaryDirectory(dir=folder)
        self._folder = Path(self._temporary.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._done = 0
        self._warm: set[str] = set()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop()
        self._temporary.cleanup()

    def run(self, case: Case) -> Outcome:
        """Run a case; one that takes too long is run again, since the machine may be busy."""
        outcome = self._run(case)
        return self._run(case) if outcome.place.startswith("timeout") else outcome

    def _run(self, case: Case) -> Outcome:
        if self._process is None or self._done >= _LIFE:
            self._start()
        if case.target not in self._warm:
            self._warm.add(case.target)
            if self._ask({"warm_up": case.target}, START_SECONDS) is None:
                raise RuntimeError((self._folder / "log").read_text(errors="replace")[-3000:])
        path = self._folder / case.name
        path.write_bytes(case.content)
        answer = self._ask({"target": case.target, "path": str(path)}, SECONDS)
        path.unlink(missing_ok=True)
        self._done += 1
        if answer is not None:
            return Outcome(**answer)
        assert self._process is not None
        code = self._process.poll()
        self._stop()
        if code is None:
            return Outcome("fault", f"took more than {SECONDS:g} s", f"timeout {case.target}")
        log = (self._folder / "log").read_text(errors="replace")[-3000:]
        return Outcome("fault", f"the process died with {code}\n{log}", f"crash {case.target}")

    def _start(self) -> None:
        self._stop()
        self._done = 0
        self._warm = set()
        variables = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
        variables |= {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-m", "fuzz.worker", str(self._bases)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._folder,
                env=os.environ | variables,
            )
        if self._answer(START_SECONDS) is None:
            raise RuntimeError((self._folder / "log").read_text(errors="replace")[-3000:])

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._process.wait()
            return None
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer
