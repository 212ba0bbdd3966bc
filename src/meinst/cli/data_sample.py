"""``meinst data sample``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meinst.cli.parser import parse_command
from meinst.options import check_range

EXAMPLES = """
meinst data sample my-data small --images 100
"""


@dataclass(frozen=True)
class SampleArguments:
    """Write a smaller data set in which the classes keep their proportions; images are copied.

    The parts keep their proportions too. The same data and seed give the same images.

    Attributes:
        data: a data set: a folder, a YOLO description (data.yaml) or a COCO annotation file.
        output: folder for the result; must not exist, or be empty.
        images: number of images, of all parts together.
        seed: seed of the draw.
        to: layout of the result: coco, yolo, labelme or label-images.
        allow_outside: allow file names that lead out of the image folder.
    """

    data: Path
    output: Path
    images: int
    seed: int = 0
    to: Literal["coco", "yolo", "labelme", "label-images"] = "coco"
    allow_outside: bool = False

    def __post_init__(self) -> None:
        """Reject values that are out of range."""
        check_range(self, 1, math.inf, "images")
        check_range(self, 0, 2**32 - 1, "seed")


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(SampleArguments, arguments, "data sample", EXAMPLES, ("data", "output"))
    from meinst.cli.data_convert import write_and_report
    from meinst.cli.output import read_parts_and_report
    from meinst.data.datasets.sample import sample

    parts = read_parts_and_report(options.data, allow_outside=options.allow_outside)
    total = sum(len(data) for data in parts.values())
    counts = {
        name: max(1, round(options.images * len(data) / total)) for name, data in parts.items()
    }
    largest = max(counts, key=lambda name: counts[name])
    counts[largest] += options.images - sum(counts.values())  # rounding
    chosen = {
        name: data.select(sample(data, counts[name], seed=options.seed))
        for name, data in parts.items()
    }
    write_and_report(chosen, options.output, options.to)
    return 0
