"""The examples in the documentation run as they stand."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def test_codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the examples write a file
    failed, attempted = doctest.testfile(
        str(DOCS / "codecs.md"), module_relative=False, encoding="utf-8"
    )
    assert failed == 0
    assert attempted > 30
