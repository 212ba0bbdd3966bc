"""Damaged inputs are read or rejected with a clear error; ``scripts/fuzz.py`` runs many more."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from fuzz.pool import Case, Worker
from fuzz.strategies import GENERATE, STRATEGIES
from fuzz.targets import RUN, valid_cases

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = {"annotations": 150, "pictures": 250, "models": 120, "codecs": 250, "weights": 150}
EXAMPLES |= {"exports": 15, "detections": 100, "datasets": 100, "videos": 60, "parquet": 100}


@pytest.mark.parametrize("target", EXAMPLES)
def test_damaged_input_is_read_or_rejected_clearly(
    target: str, bases: Path, worker: Worker
) -> None:
    strategy = STRATEGIES[target](bases)
    if strategy.is_empty:
        pytest.skip("what it needs is not installed")

    @settings(GENERATE, max_examples=EXAMPLES[target], derandomize=True)
    @given(strategy)
    def check(case: Case) -> None:
        outcome = worker.run(case)
        assert outcome.kind != "fault", f"{outcome.place}\n{outcome.detail}"

    check()


def test_valid_files_are_accepted(bases: Path, worker: Worker) -> None:
    for case in valid_cases(bases):
        outcome = worker.run(Case(*case))
        assert outcome.kind == "accepted", (case[:2], outcome)


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*/*")), ids=lambda path: path.name)
def test_inputs_that_once_failed(path: Path, bases: Path, worker: Worker) -> None:
    target = path.parent.name
    if target == "exports" and not (bases / "exports").is_dir():
        pytest.skip("no engine is installed")
    outcome = worker.run(Case(target, path.name, path.read_bytes()))
    assert outcome.kind != "fault", f"{outcome.place}\n{outcome.detail}"


def test_corpus_belongs_to_known_targets() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} <= RUN.keys()


_FAULTS = {
    "a type that is no known error": ("raise KeyError('x')", "KeyError"),
    "an error on two lines": ("raise ValueError(path.name + '\\nforged')", "more than one line"),
    "an error without the file": ("raise ValueError('bad')", "does not name the file"),
    "recursion": ("f = lambda: f()\nf()", "RecursionError"),
    "memory": ("bytearray(3 * 2**30)", "MemoryError"),
    "memory, taken for damage": (
        "try: bytearray(3 * 2**30)\nexcept Exception as e: raise ValueError(path.name) from e",
        "out of memory",
    ),
    "executed code": ("import os\nos.system('true')", "event os.system"),
    "a connection": ("import socket\nsocket.create_connection(('127.0.0.1', 9))", "event socket"),
    "a crash": ("import ctypes\nctypes.string_at(0)", "crash"),
}


@pytest.mark.parametrize("kind", _FAULTS)
def test_worker_finds(kind: str, worker: Worker) -> None:
    code, place = _FAULTS[kind]
    outcome = worker.run(Case("self_test", "case.py", code.encode()))
    assert outcome.kind == "fault"
    assert place in outcome.place


def test_worker_stops_hanging_cases(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.pool.SECONDS", 0.5)
    outcome = worker.run(Case("self_test", "case.py", b"while True: pass"))
    assert outcome.place == "timeout self_test"


def test_worker_accepts_and_names_clear_errors(worker: Worker) -> None:
    assert worker.run(Case("self_test", "case.py", b"pass")).kind == "accepted"
    outcome = worker.run(Case("self_test", "case.py", b"raise ValueError(path.name)"))
    assert outcome.kind == "error"
