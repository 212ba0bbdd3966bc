"""``meinst data convert``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from meinst.cli.parser import parse_command

if TYPE_CHECKING:
    from meinst.data.coco import CocoData
    from meinst.data.writers.convert import Target

EXAMPLES = """
meinst data convert my-data my-data-coco --to coco
meinst data convert cells/ cells-cellpose --to label-images
"""


@dataclass(frozen=True)
class ConvertArguments:
    """Write a data set in another layout; images are copied.

    What the layout cannot represent (crowds, overlaps, classes) is listed. Masks given as run
    lengths become polygons of exactly the same pixels where the layout has only polygons.

    Attributes:
        data: a data set: a folder, a YOLO description (data.yaml) or a COCO annotation file.
        output: folder for the result; must not exist, or be empty.
        to: coco, yolo, labelme or label-images.
        crowd_as_instances: write crowd regions (iscrowd 1) as ordinary instances.
        allow_outside: allow file names that lead out of the image folder.
    """

    data: Path
    output: Path
    to: Literal["coco", "yolo", "labelme", "label-images"]
    crowd_as_instances: bool = False
    allow_outside: bool = False


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(
        ConvertArguments, arguments, "data convert", EXAMPLES, ("data", "output")
    )
    from meinst.cli.output import read_parts_and_report

    parts = read_parts_and_report(
        options.data,
        crowd_as_instances=options.crowd_as_instances,
        allow_outside=options.allow_outside,
    )
    write_and_report(parts, options.output, options.to)
    return 0


def write_and_report(parts: Mapping[str, CocoData], output: Path, target: Target) -> None:
    """Write a data set with a progress bar, and print what was written and what was lost."""
    from rich.console import Console
    from rich.progress import Progress

    from meinst.data.writers.convert import write_dataset

    total = sum(len(data) for data in parts.values())
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("images", total=total)
        lost = write_dataset(parts, output, target, on_image=lambda: progress.advance(task))
    for what, count in lost.items():
        print(f"warning: {target} cannot represent {what} ({count} objects)", file=sys.stderr)
    counts = ", ".join(f"{name} {len(data)}" for name, data in parts.items())
    print(f"{output}: {total} images ({counts})")
