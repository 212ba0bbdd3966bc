"""Coverage-guided fuzzing of a reader: ``pip install atheris`` first; it is no part of ``dev``.

    python scripts/fuzz_coverage.py codecs FOLDER -max_total_time=600

The folder holds valid files to begin with, and gets those that reach new code. Further arguments
are libFuzzer's.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["meinst"]):
    from meinst.cli.main import KNOWN_ERRORS
    from meinst.codecs import load_codec
    from meinst.compat.sources import read_weights
    from meinst.data.coco import read_coco
    from meinst.models.recipe import load_recipe

READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "annotations": (read_coco, "fuzzed.json"),
    "codecs": (load_codec, "fuzzed.npz"),
    "recipes": (load_recipe, "fuzzed.yaml"),
    "weights": (read_weights, "fuzzed.pkl"),
}


def main() -> None:
    """Fuzz until libFuzzer stops; any other error than a clear one ends the run."""
    read, name = READERS[sys.argv.pop(1)]
    path = Path(tempfile.mkdtemp()) / name

    def test_one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            read(path)
        except KNOWN_ERRORS as error:
            if isinstance(error, (MemoryError, RecursionError, UnicodeError)):
                raise
            if name not in str(error) or not str(error).isprintable():
                raise

    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
