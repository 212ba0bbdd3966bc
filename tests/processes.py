"""Child processes of tests: none depends on how the tests were started, none outlives its test."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def default_signals() -> None:
    """Undo what children inherit: nohup ignores SIGHUP, shells ignore SIGINT in the background."""
    for name in ("SIGHUP", "SIGINT", "SIGTERM"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


@contextmanager
def started(command: Sequence[str], seconds: float = 120, **options: Any) -> Iterator[Any]:
    """Start a process that receives signals; it is killed afterwards, or when the time is over."""
    with subprocess.Popen(command, preexec_fn=default_signals, **options) as process:
        deadline = threading.Timer(seconds, process.kill)
        deadline.start()
        try:
            yield process
        finally:
            deadline.cancel()
            process.kill()
