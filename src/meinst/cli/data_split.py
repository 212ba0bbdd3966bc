"""``meinst data split``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from meinst.cli.parser import parse_command
from meinst.options import check_range

EXAMPLES = """
meinst data split my-data divided
meinst data split my-data divided --val 0.2 --test 0.1 --to yolo
"""


@dataclass(frozen=True)
class SplitArguments:
    """Divide a data set into training, validation and test parts; images are copied.

    Files of the same content stay together, and no class is left out of training. Parts that the
    data set already has are joined first. The same data and seed give the same parts.

    Attributes:
        data: a data set: a folder, a YOLO description (data.yaml) or a COCO annotation file.
        output: folder for the result; must not exist, or be empty.
        val: share of the images for validation.
        test: share of the images for tests.
        seed: seed of the draw.
        to: layout of the result: coco, yolo, labelme or label-images.
        allow_outside: allow file names that lead out of the image folder.
    """

    data: Path
    output: Path
    val: float = 0.2
    test: float = 0.0
    seed: int = 0
    to: Literal["coco", "yolo", "labelme", "label-images"] = "coco"
    allow_outside: bool = False

    def __post_init__(self) -> None:
        """Reject shares that leave nothing to train on."""
        check_range(self, 0, 0.9, "val", "test")
        check_range(self, 0, 2**32 - 1, "seed")
        if not 0 < self.val + self.test <= 0.9:
            raise ValueError(
                f"--val {self.val:g} and --test {self.test:g} must leave a tenth for training, and "
                "not be 0 both."
            )


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(SplitArguments, arguments, "data split", EXAMPLES, ("data", "output"))
    from meinst.cli.data_convert import write_and_report
    from meinst.cli.output import read_parts_and_report
    from meinst.data.datasets.dataset import join
    from meinst.data.datasets.split import split

    given = read_parts_and_report(options.data, allow_outside=options.allow_outside)
    rest = join(list(given.values()))
    parts = {}
    left = 1.0
    for name, share in (("test", options.test), ("val", options.val)):
        if share:
            drawn = split(rest, share=share / left, seed=options.seed)
            parts[name] = rest.select(drawn.val)
            rest, left = rest.select(drawn.train), left - share
    write_and_report({"train": rest, **dict(reversed(parts.items()))}, options.output, options.to)
    return 0
