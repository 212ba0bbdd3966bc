"""Command lines from dataclasses: jsonargparse checks the types, the docstring is the help."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from meinst.options import plain_message

if TYPE_CHECKING:
    from docstring_parser.common import DocstringParam

T = TypeVar("T")


class CommandParser(ArgumentParser):
    """Parser of one command: errors are one-line ValueErrors, an option is given only once.

    Args:
        command: name of the command, without ``meinst``.
        description: what the command does.
        examples: command lines, one per line.
    """

    def __init__(self, command: str = "", description: str = "", examples: str = "") -> None:
        lines = "\n".join(f"  {line}" for line in examples.strip().splitlines())
        super().__init__(
            prog=f"meinst {command}",
            description=description,
            epilog=f"examples:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            exit_on_error=False,
            allow_abbrev=False,
        )

    def add_dataclass(
        self, kind: type, positional: Sequence[str] = (), skip: Iterable[str] = ()
    ) -> None:
        """Add an option for each field of a dataclass.

        Args:
            kind: the dataclass; its docstring describes the fields under "Attributes:".
            positional: fields given without a name; a sequence takes the remaining arguments.
            skip: fields to leave out.
        """
        from docstring_parser import parse_from_object

        docs = parse_from_object(kind)
        descriptions = {entry.arg_name: entry.description or "" for entry in docs.params}
        hints = get_type_hints(kind)
        for field in fields(kind):
            if field.name in skip:
                continue
            required = field.default is MISSING
            text = _help_text(descriptions[field.name], docs.params)
            hint = hints[field.name]
            options: dict[str, Any] = {"help": text + _suffix(field.default)}
            if get_origin(hint) in (tuple, list):
                hint = get_args(hint)[0]
                optional = field.name in positional and not required
                options["nargs"] = "*" if optional else "+"
            if field.name in positional:
                metavar = "DATA" if field.name == "data" else field.name.removesuffix("s").upper()
                if not required and "nargs" not in options:
                    options |= {"nargs": "?", "default": field.default}
                self.add_argument(field.name, type=hint, metavar=metavar, **options)
                continue
            flag = "--" + field.name.replace("_", "-")
            if hint is bool:
                action: Any = argparse.BooleanOptionalAction if field.default else "store_true"
                self.add_argument(flag, action=action, default=field.default, **options)
                continue
            default = None if required else field.default
            if isinstance(default, tuple):  # jsonargparse assigns to the items of a default
                default = list(default)
            options |= {"required": required, "metavar": _metavar(hint)}
            self.add_argument(flag, type=hint, default=default, **options)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse a command line.

        Raises:
            ValueError: in one line, for an unknown or repeated option or an invalid value.
            SystemExit: for ``--help``, after printing it.
        """
        from jsonargparse import ArgumentError

        self._reject_repeated(arguments)
        self._reject_empty(arguments)
        try:
            return dict(vars(self.instantiate(self.parse_args(list(arguments)))))
        except ArgumentError as error:
            raise ValueError(self._message(error)) from error

    def _reject_repeated(self, arguments: Sequence[str]) -> None:
        names = [each.partition("=")[0] for each in arguments if each.startswith("--")]
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1 and name != "--"]
        if repeated:
            raise ValueError(f"{repeated[0]} is given twice; keep one; see `{self.prog} --help`")

    def _reject_empty(self, arguments: Sequence[str]) -> None:
        """Reject empty values, as of unset shell variables: as a path, it is the current folder."""
        for previous, argument in zip(("", *arguments), arguments, strict=False):
            name, equals, value = argument.partition("=")
            if not argument.strip() or (name.startswith("--") and equals and not value.strip()):
                where = name if equals else previous
                option = where if where.startswith("--") else "an argument"
                raise ValueError(
                    f"{option} is empty; give a value (. is the current folder) and check that "
                    f"shell variables are set; see `{self.prog} --help`"
                )

    def _message(self, error: Exception) -> str:
        """Jsonargparse's message in the words of the command line."""
        text = plain_message(error)
        if unknown := re.match(r"unrecognized arguments: (--[^ =]+)", text, re.IGNORECASE):
            text = self._unknown_option(unknown[1])
        elif missing := re.match(r"the following arguments are required: (.+)", text):
            flags = (self._flag(name) for name in missing[1].split(", "))
            text = f"missing arguments: {', '.join(flags)}"
        else:
            text = re.sub(r"^(?:argument )?([\w.]+):", lambda m: f"{self._flag(m[1])}:", text)
        return f"{text}; see `{self.prog} --help`"

    def _unknown_option(self, name: str) -> str:
        """Error message with the closest option, preferably of the same section."""
        section = name[: name.rfind(".") + 1]
        options = [each for each in self._option_string_actions if each.startswith("--")]
        siblings = [each for each in options if section and each.startswith(section)]
        close = difflib.get_close_matches(name, siblings or options, n=1, cutoff=0.5)
        return f"unknown option {name}" + (f"; did you mean {close[0]}?" if close else "")

    def _flag(self, name: str) -> str:
        """The option string of a field, or the field itself if it is positional."""
        for action in self._actions:
            if action.dest == name:
                return action.option_strings[0] if action.option_strings else name.upper()
        return name


def parse_command(
    kind: type[T],
    arguments: Sequence[str],
    command: str,
    examples: str,
    positional: Sequence[str] = (),
) -> T:
    """Parse a command whose options are the fields of one dataclass.

    Args:
        kind: the dataclass; its docstring starts with what the command does.
        arguments: the command line after the command's name.
        command: name of the command.
        examples: command lines, one per line.
        positional: fields given without a name.

    Raises:
        ValueError: in one line, for an unknown or repeated option or an invalid value.
        SystemExit: for ``--help``, after printing it.
    """
    from docstring_parser import parse_from_object

    parser = CommandParser(command, parse_from_object(kind).description or "", examples)
    parser.add_dataclass(kind, positional)
    return build(kind, parser.parse(arguments))


def build(kind: type[T], values: Mapping[str, Any]) -> T:
    """Construct a dataclass from parsed values; sequences become tuples where declared."""
    hints = get_type_hints(kind)
    chosen = {field.name: values[field.name] for field in fields(kind)}  # type: ignore[arg-type]
    for name, value in chosen.items():
        if get_origin(hints[name]) is tuple and value is not None:
            chosen[name] = tuple(value)
    return kind(**chosen)


def _help_text(description: str, parameters: Sequence[DocstringParam]) -> str:
    """A field's description in one line, with the names of other fields as options."""
    text = " ".join(description.split())
    for name in (parameter.arg_name for parameter in parameters):
        text = text.replace(f"``{name}``", "--" + name.replace("_", "-"))
    return text.replace("``", "").replace("%", "%%")


def _suffix(default: Any) -> str:
    """What the help adds about the default."""
    if default is MISSING:
        return " (required)"
    if default is None or default is False or default == ():
        return ""  # the description says what happens
    several = isinstance(default, tuple)
    return f" (default: {' '.join(map(str, default)) if several else default})"


def _metavar(hint: Any) -> str | None:
    """Placeholder of a value in the help; choices show themselves."""
    types = get_args(hint) or (hint,)
    names = {"Path": "PATH", "int": "N", "float": "X", "str": "NAME"}
    found = [names[t.__name__] for t in types if getattr(t, "__name__", "") in names]
    return found[0] if found else None
