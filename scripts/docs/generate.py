"""Generates the reference pages of the site: options, commands, model cards, project files."""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

OPTIONS_INTRO = """\
# Options

Each option is declared once, in a dataclass; commands, recipe files and this page are generated
from it. Where the default is `None`, the description states what happens.
"""

RECIPE_INTRO = """\
In a recipe file the sections are nested mappings:

```yaml
base: photos
schedule: {iterations: 2000, validate_every: 1000}
```

On the command line they are joined by dots: `--recipe.schedule.iterations 2000`. In Python they are
arguments of the dataclasses. An unknown key is an error that names the closest known one.
"""

IN_PYTHON = """\
## In Python

`CodecOptions` is an argument of `meinst.fit_codec`, and `SelectOptions` one of
`meinst.predict_files`. Their options are those of the sections [codec](#codec) and
[selection](#selection).
"""

COMMANDS_INTRO = """\
# Commands

This page shows the `--help` of each command. The exit code is 0 if everything was done, 1 if part
of it failed, 2 for bad arguments or input, 130 after Ctrl-C and 143 after SIGTERM.
"""


def pages(root: Path) -> dict[str, str]:
    """Path and Markdown content of each generated page.

    Args:
        root: root of the repository.
    """
    generated = {
        "reference/options.md": options_page(),
        "reference/commands.md": commands_page(),
        "project/changelog.md": _project_page(root / "CHANGELOG.md"),
        "project/contributing.md": _project_page(root / "CONTRIBUTING.md"),
        "project/security.md": _project_page(root / "SECURITY.md"),
    }
    for card in sorted((root / "src/meinst/models/zoo").glob("*.md")):
        generated[f"reference/models/{card.name}"] = _without_links(card.read_text())
    return generated


def options_page() -> str:
    """Tables of all options, with type, default and description."""
    from meinst import Recipe, TrainOptions

    parts = [
        OPTIONS_INTRO,
        _section("Training: TrainOptions", TrainOptions, "##"),
        _section("Recipe", Recipe, "##", RECIPE_INTRO),
    ]
    for field, hint in _hints(Recipe):
        if is_dataclass(hint):
            parts += _nested(field.name, hint)
    parts.append(IN_PYTHON)
    return "\n".join(parts)


def commands_page() -> str:
    """The help of each command."""
    from meinst.cli import codec, main

    parts = [COMMANDS_INTRO, _help_section("meinst", [], "##")]
    for name in main.COMMANDS:
        parts.append(_help_section(f"meinst {name}", [name], "##"))
        if name == "codec":
            parts += [
                _help_section(f"meinst codec {each}", ["codec", each], "###")
                for each in codec.COMMANDS
            ]
    return "\n".join(parts)


def command_help(arguments: list[str]) -> str:
    """What a command prints for ``--help``."""
    from meinst.cli.main import main

    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "88"
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([*arguments, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
    return printed.getvalue()


def _help_section(title: str, arguments: list[str], heading: str) -> str:
    text = command_help(arguments).rstrip()
    assert text, f"{title} --help printed nothing"
    return f"{heading} {title}\n\n``` {{ .text .help }}\n{text}\n```\n"


def _nested(prefix: str, kind: type) -> Iterator[str]:
    yield _section(prefix, kind, "###" if "." not in prefix else "####")
    for field, hint in _hints(kind):
        if is_dataclass(hint):
            yield from _nested(f"{prefix}.{field.name}", hint)


def _section(title: str, kind: type, heading: str, more: str = "") -> str:
    from docstring_parser import parse_from_object

    docs = parse_from_object(kind)
    descriptions = {entry.arg_name: entry.description or "" for entry in docs.params}
    rows = []
    for field, hint in _hints(kind):
        assert descriptions.get(field.name), f"{kind.__name__}.{field.name} has no description"
        default = field.default if field.default is not MISSING else None
        if is_dataclass(hint):
            kind_text, default_text = "section", ""
        else:
            kind_text = _type(hint)
            missing = field.default is MISSING and field.default_factory is MISSING
            default_text = "required" if missing else f"`{_plain(default)}`"
        text = _clean(descriptions[field.name])
        rows.append(f"| `{field.name}` | {kind_text} | {default_text} | {text} |")
    summary = _clean(docs.description or "")
    table = "\n".join(["| option | type | default | description |", "|---|---|---|---|", *rows])
    return f"{heading} {title}\n\n{summary}\n\n{more}\n{table}\n"


def _hints(kind: type) -> list[tuple[Any, Any]]:
    hints = get_type_hints(kind)
    return [(field, hints[field.name]) for field in fields(kind)]


def _type(hint: Any) -> str:
    """A type in words, for example "list of int"."""
    if hint is type(None):
        return "None"
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (tuple, list):
        if Ellipsis in args or origin is list:
            return f"list of {_type(args[0])}"
        return f"{len(args)} x {_type(args[0])}"
    if args:  # a union
        return " or ".join(_type(each) for each in args)
    return {"Path": "path", "str": "text"}.get(hint.__name__, hint.__name__)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _clean(text: str) -> str:
    """A docstring's text as one paragraph of Markdown."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text)
    return " ".join(textwrap.dedent(text).split()).replace("``", "`").replace("|", "\\|")


def _without_links(text: str) -> str:
    """Replace links to files of the repository by their text."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


def _project_page(path: Path) -> str:
    """A file of the repository's root, with its links to ``docs`` made relative to the site."""
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](../\1)", path.read_text())
    return re.sub(r"\[([^\]]+)\]\((?!https?:|\.\./)[^)]+\)", r"\1", text)
