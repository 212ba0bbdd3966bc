"""Command lines that contain the options of a codec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from docstring_parser import parse_from_object

from meinst.cli.parser import CommandParser, build
from meinst.codecs.options import CodecOptions

T = TypeVar("T")


def parse_with_codec_options(
    kind: type[T],
    arguments: Sequence[str],
    command: str,
    examples: str,
    positional: Sequence[str],
    skip: Sequence[str] = (),
) -> tuple[T, dict[str, Any]]:
    """Parse a command whose options are the fields of a dataclass and of ``CodecOptions``.

    Args:
        kind: the dataclass; its docstring starts with what the command does.
        arguments: the command line after the command's name.
        command: name of the command.
        examples: command lines, one per line.
        positional: fields given without a name.
        skip: codec options to leave out.

    Returns:
        The dataclass, and the values of the codec options by name.

    Raises:
        ValueError: in one line, for an unknown or repeated option or an invalid value.
        SystemExit: for ``--help``, after printing it.
    """
    parser = CommandParser(command, parse_from_object(kind).description or "", examples)
    parser.add_dataclass(kind, positional)
    parser.add_dataclass(CodecOptions, skip=skip)
    values = parser.parse(arguments)
    names = [name for name in CodecOptions.__dataclass_fields__ if name not in skip]
    return build(kind, values), {name: values[name] for name in names}
