"""Check the size limits of packages, files and functions in ``src``.

    python scripts/check_sizes.py

Prints the figures; the exit code is 1 if a limit is exceeded. Limits: the largest package (a folder
without its subfolders) has at most 15 % of the lines, no file has more than 400 lines, no function
more than 60, and at most ten functions have more than 45.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "meinst"


def main() -> int:
    """Print the figures; returns the exit code."""
    packages: Counter[str] = Counter()
    long_files: list[str] = []
    functions: list[tuple[int, str]] = []
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text()
        lines = text.count("\n")
        name = path.relative_to(SOURCE)
        packages[str(name.parent)] += lines
        if lines > 400:
            long_files.append(f"{name}: {lines}")
        functions += [
            (_lines(node), f"{name}:{node.lineno} {node.name}")
            for node in ast.walk(ast.parse(text))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ]
    total = sum(packages.values())
    largest, size = packages.most_common(1)[0]
    over_45 = sorted((f for f in functions if f[0] > 45), reverse=True)
    over_60 = [f for f in over_45 if f[0] > 60]
    print(f"{total} lines; largest package {largest}: {size / total:.1%}")
    for name, lines in packages.most_common():
        print(f"  {name:20} {lines:5} {lines / total:6.1%}")
    print(f"files over 400 lines: {long_files or 'none'}")
    print(f"functions over 60 lines: {len(over_60)}; over 45: {len(over_45)}")
    for lines, name in over_45:
        print(f"  {lines} {name}")
    return int(size > 0.15 * total or bool(long_files) or bool(over_60) or len(over_45) > 10)


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its name to its end, with its docstring."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


if __name__ == "__main__":
    sys.exit(main())
