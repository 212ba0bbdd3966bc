"""Command-line options out of a dataclass: names, types, defaults and help stand there once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_METAVARS = {"Path": "PATH", "int": "N", "float": "X", "str": "NAME"}


def parse_arguments(
    kind: type[T],
    arguments: Sequence[str],
    command: str,
    examples: str,
    positional: str | tuple[str, ...] = (),
    description: str | None = None,
) -> T:
    """Read a subcommand's options.

    Args:
        kind: a dataclass; its docstring begins with what the command does and lists what the
            options are under "Attributes:", ``None`` being the default of those that need none.
        arguments: what follows the subcommand's name.
        command: the subcommand's name.
        examples: command lines, one a line.
        positional: the field, a list or tuple, that takes the arguments without a name; or
            several fields that take one each, the last of which may be a tuple.
        description: what the command does, where the docstring tells something else.

    Raises:
        ValueError: for an unknown option or a value that does not fit, in one sentence.
        SystemExit: for ``--help``, after showing it.
    """
    from docstring_parser import parse_from_object
    from jsonargparse import ArgumentError, ArgumentParser

    documentation = parse_from_object(kind)
    parser = ArgumentParser(
        prog=f"meinst {command}",
        description=description or documentation.description,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    texts = {entry.arg_name: entry.description or "" for entry in documentation.params}
    hints = get_type_hints(kind)
    for option in fields(kind):  # type: ignore[arg-type]
        if option.name == positional or (
            isinstance(positional, tuple)
            and option.name in positional
            and get_origin(hints[option.name]) is tuple
        ):
            # A list must not be empty, unless the field has a default.
            parser.add_argument(
                option.name,
                nargs="+" if option.default is MISSING else "*",
                metavar=option.name.removesuffix("s").upper(),
                help=_help(option, texts),
                **_type_of_items(hints[option.name]),
            )
        elif isinstance(positional, tuple) and option.name in positional:
            parser.add_argument(
                option.name,
                type=hints[option.name],
                metavar=option.name.upper(),
                help=_help(option, texts),
            )
        else:
            _add_option(parser, option, hints[option.name], _help(option, texts))
    try:
        parsed = parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise ValueError(f"{_one_sentence(error)}; see `{parser.prog} --help`") from error
    values = {option.name: parsed[option.name] for option in fields(kind)}  # type: ignore[arg-type]
    for name, value in values.items():
        if get_origin(hints[name]) is tuple:
            values[name] = tuple(value)
    return kind(**values)


def _type_of_items(hint: Any) -> dict[str, Any]:
    """What a positional list holds: text, unless a tuple's type says otherwise."""
    return {"type": get_args(hint)[0]} if get_origin(hint) is tuple else {}


def _add_option(parser: Any, option: Field[Any], hint: Any, text: str) -> None:
    flag = "--" + option.name.replace("_", "-")
    default = None if option.default is MISSING else option.default
    if hint is bool and default is True:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=True, help=text)
        return
    if hint is bool:
        parser.add_argument(flag, action="store_true", help=text)
        return
    if get_origin(hint) is Literal:
        parser.add_argument(flag, choices=get_args(hint), default=default, help=text)
        return
    several = {"nargs": "+"} if get_origin(hint) is tuple else {}
    (kind,) = {part for part in get_args(hint) or (hint,) if part not in (NoneType, Ellipsis)}
    parser.add_argument(
        flag,
        type=kind,
        default=list(default) if several and default is not None else default,
        required=option.default is MISSING,
        metavar=_METAVARS[kind.__name__],
        help=text,
        **several,
    )


def _help(option: Field[Any], texts: dict[str, str]) -> str:
    text = " ".join(texts[option.name].split()).replace("``", "").replace("%", "%%")
    if option.default is MISSING:
        return f"{text} (required)"
    known = option.default is None or option.default is False or option.default == ()
    if known:
        return text
    several = isinstance(option.default, tuple)
    default = " ".join(map(str, option.default)) if several else option.default
    return f"{text} (default: {default})"


def _one_sentence(error: Exception) -> str:
    """The message of jsonargparse, in the words of the command line."""
    text = " ".join(str(error).split())
    text = re.sub(
        r"Expected an? <class '(?:\w+\.)*(\w+)'>\. Got value: ", r"expected \1, got ", text
    )
    return re.sub(
        r'Parser key "([^"]+)": ', lambda match: f"--{match[1].replace('_', '-')}: ", text
    )
