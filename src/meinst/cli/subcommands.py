"""Commands that have subcommands of their own."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence


def run_subcommand(
    name: str,
    commands: Mapping[str, str],
    description: str,
    examples: str,
    arguments: Sequence[str],
) -> int:
    """Run a subcommand, or print the help that lists them; returns the exit code.

    A subcommand's module is imported only when it is called.

    Args:
        name: the command.
        commands: what each subcommand does; its module is ``meinst.cli.NAME_SUBCOMMAND``.
        description: what the command is about.
        examples: shown at the end of the help.
        arguments: the subcommand and its arguments.

    Raises:
        ValueError: if there is no such subcommand.
    """
    width = max(map(len, commands)) + 2
    listed = "\n".join(f"  {command:{width}}{what}" for command, what in commands.items())
    parser = argparse.ArgumentParser(
        prog=f"meinst {name}",
        usage=f"meinst {name} [--help] COMMAND ...",
        description=description,
        epilog=f"commands:\n{listed}\n\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    command, *rest = arguments
    if command in ("--help", "-h"):
        parser.parse_args(["--help"])
    if command not in commands:
        raise ValueError(
            f"unknown command '{name} {command}'; choose one of {', '.join(commands)}; "
            f"see `meinst {name} --help`"
        )
    module = importlib.import_module(f"meinst.cli.{name}_{command}")
    code: int = module.run(rest)
    return code
