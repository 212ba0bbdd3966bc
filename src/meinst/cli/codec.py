"""``meinst codec``: dispatch to the subcommands, as :mod:`meinst.cli.main` does."""

from __future__ import annotations

from collections.abc import Sequence

from meinst.cli.subcommands import run_subcommand

COMMANDS = {
    "fit": "fit a codec on the masks of annotation files",
    "merge": "add up sums of several fits, and fit a codec on them",
    "evaluate": "measure a codec: IoU, boundary IoU, the AP that a detector can reach",
    "compare": "compare kinds, code lengths and mask sizes: a table and plots",
    "show": "draw a codec: mean, components, decoded masks",
}

EXAMPLES = """\
examples:
  meinst codec fit train.json --output codec.npz
  meinst codec evaluate codec.npz val.json --output report
  meinst codec compare val.json --fit train.json --output sweep
  meinst codec show codec.npz val.json --output codec.png
  meinst train --codec codec.npz ...

`meinst codec COMMAND --help` lists the options of a command."""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; returns its exit code."""
    description = "Mask codecs, which encode masks as short vectors and decode them."
    return run_subcommand("codec", COMMANDS, description, EXAMPLES, arguments)
