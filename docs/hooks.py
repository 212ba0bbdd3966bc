"""Hook of mkdocs: adds the pages that are generated from the package.

The options come from the dataclasses, the commands from their own ``--help``, the model cards from
the package, and changes and contributing from the root of the repository.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))

import generate  # noqa: E402


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to the site."""
    for path, content in generate.pages(ROOT).items():
        files.append(File.generated(config, path, content=content))
    return files
