"""``meinst data``: dispatch to the subcommands, as :mod:`meinst.cli.main` does."""

from __future__ import annotations

from collections.abc import Sequence

from meinst.cli.subcommands import run_subcommand

COMMANDS = {
    "check": "check a data set: a report of its faults, objects and doubles",
    "convert": "write a data set in another layout",
    "split": "divide a data set into training, validation and test parts",
    "sample": "write a smaller data set with the classes in proportion",
}

EXAMPLES = """\
examples:
  meinst data check my-data --output report.html
  meinst data convert my-data my-data-coco --to coco
  meinst data split my-data divided --val 0.2 --test 0.1
  meinst data sample my-data small --images 100

`meinst data COMMAND --help` lists the options of a command.

A data set is a folder, a YOLO description (data.yaml) or a COCO annotation file. Its layout is
detected: COCO JSON (also of LVIS, Roboflow, CVAT and Label Studio), COCO panoptic, YOLO
segmentation, labelme, Pascal VOC, SBD, or label images as of Cellpose and StarDist."""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; returns its exit code."""
    description = "Data sets of instance masks: check, convert, divide and reduce them."
    return run_subcommand("data", COMMANDS, description, EXAMPLES, arguments)
