"""Every example in the documentation runs, and every command line in it can be parsed.

A page's blocks run in order, in one namespace and one folder of synthetic data. Blocks after
``<!-- skip: reason -->`` are only checked: Python for syntax and public names, commands by their
own parsers. ``<!-- file: name -->`` stores the next block as a file.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

import meinst
from meinst.cli.main import COMMANDS, main
from meinst.cli.parser import CommandParser

ROOT = Path(__file__).parents[2]
_SITE = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", *_SITE]
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>skip|ci|file): (?P<value>[^\n]+) -->\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced code block, and the comment before it."""

    language: str
    text: str
    mark: str | None
    value: str | None
    line: int

    @property
    def skipped(self) -> bool:
        return self.mark in ("skip", "ci")


def blocks(page: str) -> Iterator[Block]:
    content = (ROOT / page).read_text()
    for match in _BLOCK.finditer(content):
        line = content.count("\n", 0, match.start("text"))
        yield Block(match["language"], match["text"], match["mark"], match["value"], line)


def command_lines(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell block, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


class Parsed(BaseException):
    """Raised where a command would start its work."""


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """A function that runs a command line up to the end of its parsing."""

    def check(arguments: Sequence[str]) -> None:
        original = CommandParser.parse

        def parse_only(parser: CommandParser, values: Sequence[str]) -> None:
            original(parser, values)
            raise Parsed

        with monkeypatch.context() as patch:
            patch.setattr(CommandParser, "parse", parse_only)
            with pytest.raises(Parsed):
                assert main(arguments) == 0, f"meinst {' '.join(arguments)} cannot be parsed"

    return check


def extra_names() -> set[str]:
    """The extras that pyproject.toml declares."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text.split("[project.optional-dependencies]\n")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


def check_names(source: str) -> None:
    """The syntax is valid, and all names taken from meinst are public."""
    for node in ast.walk(ast.parse(source)):
        name = node.value if isinstance(node, ast.Attribute) else None
        if isinstance(name, ast.Name) and name.id == "meinst":
            assert node.attr in meinst.__all__


def run_python(source: str, namespace: dict[str, Any], name: str) -> None:
    if ">>>" not in source:
        exec(compile(source, name, "exec"), namespace)
        return
    example = doctest.DocTestParser().get_doctest(source, namespace, name, name, 0)
    printed = io.StringIO()
    result = doctest.DocTestRunner(verbose=False).run(example, out=printed.write, clear_globs=False)
    assert result.failed == 0, printed.getvalue()
    namespace.update(example.globs)


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")  # supervision without its fast backend
@pytest.mark.parametrize("page", PAGES)
def test_examples_run(
    page: str,
    world: Path,
    parse: Callable[[Sequence[str]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    extras = extra_names()
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.mark == "file":
            Path(str(block.value)).write_text(block.text)
        elif block.language == "python":
            if block.skipped:
                check_names(block.text)
            else:
                run_python(block.text, namespace, where)
        elif block.language == "sh":
            for words in command_lines(block.text):
                if words[0] == "pip":
                    named = re.findall(r"\[([\w,]+)\]", " ".join(words))
                    assert {extra for group in named for extra in group.split(",")} <= extras, where
                if "meinst" not in words:
                    continue
                arguments = words[words.index("meinst") + 1 :]
                parse(arguments)
                if not block.skipped:
                    code = main(arguments)
                    assert code == 0, f"{where}: {capsys.readouterr().err}"


def documented() -> list[str]:
    """The objects whose docstrings the API pages show."""
    pages = (ROOT / "docs/reference/api").glob("*.md")
    return sorted(
        name for page in pages for name in re.findall("^::: (.+)$", page.read_text(), re.M)
    )


@pytest.mark.parametrize("name", documented())
def test_docstring_examples_run(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    module, _, attribute = name.rpartition(".")
    documented_object = getattr(importlib.import_module(module), attribute)
    printed = io.StringIO()
    for example in doctest.DocTestFinder().find(documented_object, name, globs={}):
        doctest.DocTestRunner(verbose=False).run(example, out=printed.write)
    assert not printed.getvalue(), printed.getvalue()


def test_every_public_name_is_documented() -> None:
    shown = {name.rpartition(".")[2] for name in documented()}
    assert set(meinst.__all__) - {"__version__"} <= shown


def test_every_block_has_a_known_language() -> None:
    known = {"python", "sh", "yaml", "text"}
    found = {block.language for page in PAGES for block in blocks(page)}
    assert found <= known


@pytest.mark.parametrize("page", PAGES)
def test_named_python_files_exist(page: str) -> None:
    names = {
        path.name
        for folder in ("src", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    }
    for name in re.findall(r"`([\w/.]+\.py)`", (ROOT / page).read_text()):
        places = (ROOT / name, ROOT / "src/meinst" / name, ROOT / "src" / name)
        assert any(place.is_file() for place in places) or name in names, name


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The generator of the reference pages."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts/docs"), *sys.path])
    import generate

    return generate


def test_options_page_lists_every_option_of_a_recipe(generate: Any) -> None:
    page = generate.options_page()

    def check(kind: type, prefix: str) -> None:
        hints = get_type_hints(kind)
        for field in fields(kind):
            name = f"{prefix}.{field.name}" if prefix else field.name
            if is_dataclass(hints[field.name]):
                assert re.search(rf"^#+ {re.escape(name)}$", page, re.MULTILINE), name
                check(hints[field.name], name)
            else:
                assert f"| `{field.name}` |" in page, name

    check(meinst.Recipe, "")
    for field in fields(meinst.TrainOptions):
        assert f"| `{field.name}` |" in page


def test_commands_page_has_the_help_of_every_command(generate: Any) -> None:
    from meinst.cli.codec import COMMANDS as CODEC_COMMANDS

    page = generate.commands_page()
    for name in (*COMMANDS, *(f"codec {each}" for each in CODEC_COMMANDS)):
        section = page.split(f"# meinst {name}\n")[1]
        assert section.lstrip().partition("\n")[2].startswith(f"usage: meinst {name}")


def test_generated_pages_have_no_links_into_the_repository(generate: Any) -> None:
    for path, content in generate.pages(ROOT).items():
        for target in re.findall(r"\]\(([^)]+)\)", content):
            if path.startswith("project/") and target.startswith("../"):
                assert (ROOT / "docs" / target.removeprefix("../")).is_file(), (path, target)
            else:
                assert target.startswith(("https:", "#")), (path, target)
