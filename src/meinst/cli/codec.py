"""``meinst codec``: finds the subcommand, as :mod:`meinst.cli.main` does."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "fit": "learn a codec from the masks of annotation files",
    "merge": "add up sums that were counted apart, and fit",
    "evaluate": "what masks lose: IoU, boundary IoU, the AP a detector can reach",
    "compare": "choose kind, length and mask size: a table and plots",
    "show": "look at a codec: mean, components, decoded masks",
}

EXAMPLES = """\
examples:
  meinst codec fit train.json --output codec.npz
  meinst codec evaluate codec.npz val.json --output report
  meinst codec compare val.json --fit train.json --output sweep
  meinst codec show codec.npz val.json --output codec.png
  meinst train --codec codec.npz ...

`meinst codec COMMAND --help` tells a command's options."""


def run(arguments: Sequence[str]) -> int:
    """Run the subcommand; returns its exit code."""
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="meinst codec",
        usage="meinst codec [--help] COMMAND ...",
        description="Mask codecs: the part that turns masks to short vectors and back.",
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
            f"there is no command `codec {command}`; choose of {', '.join(COMMANDS)}; "
            "see `meinst codec --help`"
        )
    module = importlib.import_module(f"meinst.cli.codec_{command}")
    code: int = module.run(rest)
    return code
