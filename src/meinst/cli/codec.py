"""``meinst codec``: dispatch to the subcommands, as :mod:`meinst.cli.main` does."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

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
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="meinst codec",
        usage="meinst codec [--help] COMMAND ...",
        description="Mask codecs, which encode masks as short vectors and decode them.",
        epilog=f"commands:\n{commands}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    command, *rest = arguments
    if command in ("--help", "-h"):
        parser.parse_args(["--help"])
    if command not in COMMANDS:
        raise ValueError(
            f"unknown command 'codec {command}'; choose one of {', '.join(COMMANDS)}; "
            "see `meinst codec --help`"
        )
    module = importlib.import_module(f"meinst.cli.codec_{command}")
    code: int = module.run(rest)
    return code
