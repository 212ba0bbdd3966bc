"""The process that runs cases: limits its memory, watches what is executed, judges errors.

Reads one JSON object per line, ``{"target": ..., "path": ...}`` or ``{"warm_up": target}``, and
answers with the fields of ``pool.Outcome``.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

MEMORY = 2**30
"""Bytes of address space that a case may add."""

_CODE_RUN = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_FORBIDDEN = {*_CODE_RUN, *_NETWORK, "socket.bind", "meinst.executed", "pty.spawn"}
_NOT_CLEAR = (MemoryError, UnicodeError, RecursionError, NotImplementedError)
_OUT_OF_MEMORY = ("can't allocate memory", "Unable to allocate", "bad_alloc", "std::bad_alloc")

_flagged: list[str] = []
_watching: list[bool] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in _FORBIDDEN:
        _flagged.append(f"{event} {arguments!r:.200}")
        raise PermissionError(f"{event} in a fuzzed case")


def _run(target: str, path: Path, bases: Path) -> dict[str, str]:
    from fuzz.targets import RUN

    _flagged.clear()
    try:
        RUN[target](path, bases)
    except BaseException as error:  # whatever it is, it is the outcome
        outcome = _judge(error, None if target == "detections" else path.name)
    else:
        outcome = {"kind": "accepted"}
    if _flagged:
        detail = f"a forbidden event: {_flagged}"
        return {"kind": "fault", "detail": detail, "place": f"event {_flagged[0].split()[0]}"}
    return outcome


def _judge(error: BaseException, name: str | None) -> dict[str, str]:
    """A clear error is one of the command line's, in one printable line that names the file."""
    from meinst.cli.main import KNOWN_ERRORS

    try:
        text = str(error)
    except Exception as broken:
        text = f"\n{broken!r}"
    fault = None
    if not isinstance(error, KNOWN_ERRORS) or isinstance(error, _NOT_CLEAR):
        fault = "another type"
    elif _out_of_memory(error):
        fault = "out of memory"
    elif not text.strip():
        fault = "no message"
    elif not text.isprintable():
        fault = "more than one line" if "\n" in text else "not printable"
    elif len(text) > 2000:
        fault = "too long"
    elif name is not None and name not in text:
        fault = "does not name the file"
    if fault is None:
        return {"kind": "error", "detail": text}
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/meinst/" in frame.filename and "/src/" in frame.filename]
    last = own[-1] if own else frames[-1]
    place = f"{type(error).__name__} ({fault}) {Path(last.filename).name}:{last.name}"
    detail = "".join(traceback.format_exception(error, chain=False)[-12:])
    detail = "\n".join(line[:300] for line in detail.splitlines()[-30:])
    return {"kind": "fault", "detail": f"{fault}\n{detail}", "place": place}


def _out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was exhausted, even if a reader took that for damage of the file."""
    while error is not None:
        words = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or any(each in words for each in _OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def _limit(more: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> None:
    """Answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what foreign readers print must not be taken for answers
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    bases = Path(sys.argv[1])
    from fuzz.targets import warm_up

    sys.addaudithook(_watch)
    print(json.dumps({"kind": "ready"}), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "warm_up" in question:
            _watching.clear()
            warm_up(question["warm_up"], bases)
            _watching.append(True)
            print(json.dumps({"kind": "ready"}), file=answers, flush=True)
            continue
        _limit(MEMORY)
        answer = _run(question["target"], Path(question["path"]), bases)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
