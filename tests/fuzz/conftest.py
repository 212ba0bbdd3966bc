"""Fixtures of the fuzzing tests: valid files to damage, and a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz.pool import TESTS, Worker


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of valid files."""
    folder = tmp_path_factory.mktemp("fuzz") / "bases"
    variables = {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent / "src")])}
    command = [sys.executable, "-m", "fuzz.bases", str(folder)]
    subprocess.run(command, check=True, env=os.environ | variables)
    return folder


@pytest.fixture(scope="session")
def worker(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that outlives what it runs."""
    with Worker(bases, tmp_path_factory.mktemp("worker")) as started:
        yield started
