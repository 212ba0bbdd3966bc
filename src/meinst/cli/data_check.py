"""``meinst data check``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.parser import parse_command

if TYPE_CHECKING:
    from meinst.data_tools.inspect import Inspection

EXAMPLES = """
meinst data check my-data
meinst data check my-data --output report.html
"""


@dataclass(frozen=True)
class CheckArguments:
    """Check a data set before training: faults, doubles, sizes of objects, balance of classes.

    The exit code is 1 if something should be corrected first: faulty masks, images that cannot be
    used, or images that are in several parts.

    Attributes:
        data: a data set: a folder, a YOLO description (data.yaml) or a COCO annotation file.
        output: file for a report with pictures (HTML, opens without a network); by default the
            figures are only printed.
        crowd_as_instances: read crowd regions (iscrowd 1) as ordinary instances.
        allow_outside: allow file names that lead out of the image folder.
    """

    data: Path
    output: Path | None = None
    crowd_as_instances: bool = False
    allow_outside: bool = False


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(CheckArguments, arguments, "data check", EXAMPLES, ("data",))
    from rich.console import Console
    from rich.progress import Progress

    from meinst.cli.output import check_file, print_warnings, read_parts_and_report
    from meinst.data_tools.html import write_report
    from meinst.data_tools.inspect import inspect_dataset

    if options.output is not None:
        check_file(options.output, [options.data])
    parts = read_parts_and_report(
        options.data,
        crowd_as_instances=options.crowd_as_instances,
        allow_outside=options.allow_outside,
    )
    total = sum(map(len, parts.values()))
    with print_warnings(), Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=total)
        found = inspect_dataset(parts, on_image=lambda: progress.advance(task))
    print(summary(found))
    if options.output is not None:
        write_report(options.output, str(options.data), found, parts)
        print(f"report: {options.output}")
    return 1 if found.faulty else 0


def summary(found: Inspection) -> str:
    """The figures in some lines."""
    from meinst.options import first_few

    lines = []
    for name, part in found.parts.items():
        objects = first_few([f"{count} {label}" for label, count in part.objects.items()], 10)
        sizes = " to ".join(dict.fromkeys(part.sides))
        lines.append(f"{name}: {part.images} images of {sizes} pixels, objects: {objects}")
        lines += [f"{name}: {error}" for error in part.unusable[:10]]
    lines.append(
        f"identical files: {len(found.leaks)} groups across parts, {len(found.doubles)} within a "
        "part"
    )
    if found.ceiling is not None:
        lines.append(f"most mask AP that codes of 60 numbers allow: {found.ceiling:.3f}")
    return "\n".join(lines + [f"- {line}" for line in found.advice])
