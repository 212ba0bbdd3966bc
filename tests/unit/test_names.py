"""Source code and documentation use no retired names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RETIRED = (
    *("sight", "sight_channels", "SightMap", "hold_votes", "Elected", "sureness"),
    *("Trainee", "TrainingDraws", "conv_at", "conv_to_few", "convs_of_one", "codec_truth"),
    *("find_in_each", "read_told", "told_warnings"),
)
# Names that are ordinary words otherwise.
RETIRED_PATTERNS = (r"\beverywhere\(", r"\bvotes? of doubt\b", r"\bengine/")
PATTERN = re.compile("|".join((rf"\b(?:{'|'.join(RETIRED)})\b", *RETIRED_PATTERNS)))
SUFFIXES = {".py", ".pyi", ".md", ".yaml", ".j2", ".css"}


def find_retired_names(paths: list[Path]) -> list[str]:
    """Every line with a retired name, as ``path:line: name``."""
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found += [f"{path}:{number}: {match[0]}" for match in PATTERN.finditer(line)]
    return found


@pytest.mark.parametrize("place", ["src", "docs", "README.md"])
def test_no_retired_names(place: str) -> None:
    start = ROOT / place
    if not start.exists():
        pytest.skip(f"{place} is not part of this checkout")
    files = [start] if start.is_file() else sorted(start.rglob("*"))
    files = [path for path in files if path.is_file() and path.suffix in SUFFIXES]
    assert files
    assert find_retired_names(files) == []


def test_retired_names_are_found_as_words(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    lines = ["model.sight_channels", "insight", "a vote of doubt", "src/meinst/engine/x.py"]
    path.write_text("\n".join([*lines, "an engine", "codes.everywhere()", "everywhere"]))
    found = [line.removeprefix(f"{path}:") for line in find_retired_names([path])]
    assert found == ["1: sight_channels", "3: vote of doubt", "4: engine/", "6: everywhere("]
