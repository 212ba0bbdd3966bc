"""A run whose journal is open, for writers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from drawn import NAMES

from meinst.inference.journal import Journal
from meinst.inference.writers.base import Run


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    output = tmp_path / "out"
    output.mkdir()
    journal = Journal(output, {"journal": 1, "images": 9}, resume=False)
    yield Run(output, NAMES, "fingerprint", journal)
    journal.close()
