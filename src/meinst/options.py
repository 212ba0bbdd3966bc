"""What all option dataclasses share: range checks, and construction from plain values."""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")

_LONGEST = 2000  # characters of a message


def check_range(options: object, low: float, high: float, *names: str) -> None:
    """Reject attributes that are out of range or not numbers; None counts as in range.

    Args:
        options: the object that has the attributes.
        low: smallest allowed value.
        high: largest allowed value, or infinity.
        names: names of the attributes.

    Raises:
        ValueError: naming the attribute, the range and the value.
    """
    declared: Any = options
    whole = {each.name for each in fields(declared) if str(each.type).startswith("int")}
    for name in names:
        value = getattr(options, name)
        if value is not None:
            check_number(name, value, low, high, whole=name in whole)


def check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    """Reject a value that is out of range or not a number.

    Args:
        name: name of the value.
        value: the value.
        low: smallest allowed value.
        high: largest allowed value, or infinity.
        whole: whether it must be a whole number.

    Raises:
        ValueError: naming the value and the rule.
    """
    kind = numbers.Integral if whole else numbers.Real
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} must be {'an integer' if whole else 'a number'}, got {value!r}.")
    if not low <= value <= high:  # type: ignore[operator]
        limits = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {limits}, got {value}.")


def options_from_dict(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """Build a nested options dataclass from plain values, checking every key and type.

    Args:
        kind: the dataclass.
        values: content of a recipe or model file; missing keys take their defaults.
        source: where the values come from, for error messages.

    Raises:
        ValueError: if a key is unknown, naming the closest known one, or a value is invalid.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    check_keys(kind, values, source)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "options")
    try:
        parsed = parser.parse_object({"options": values})
        options: T = parser.instantiate(parsed).options
    except (ArgumentError, TypeError, ValueError) as error:
        raise FileError(f"{source}: {plain_message(error)}") from error
    return options


def options_to_dict(options: Any) -> dict[str, Any]:
    """Convert an options dataclass to nested dicts and lists, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, (tuple, list)) else value

    values: dict[str, Any] = plain(asdict(options))
    return values


def check_keys(kind: type, values: Any, source: str, prefix: str = "") -> None:
    """Reject keys that are not fields of a dataclass, at any depth.

    Raises:
        ValueError: naming the key, the closest known key and all others.
    """
    if values is None and prefix:
        return  # a section with comments only
    if not isinstance(values, Mapping):
        section = prefix.rstrip(".") or "it"
        raise FileError(
            f"{source}: {section} must be a section of options, got {values!r}. Its keys are "
            f"{', '.join(field.name for field in fields(kind))}."
        )
    hints = get_type_hints(kind)
    known = [field.name for field in fields(kind)]
    for key, value in values.items():
        if key not in known:
            raise FileError(f"{source}: {unknown_key(f'{prefix}{key}', known, prefix)}")
        if is_dataclass(hints[key]):
            check_keys(hints[key], value, source, f"{prefix}{key}.")


def unknown_key(key: str, known: Iterable[str], prefix: str = "") -> str:
    """Error message for a key that does not exist, with the closest one that does."""
    known = sorted(known)
    close = difflib.get_close_matches(key.removeprefix(prefix), known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{close[0]}? " if close else ""
    return f"unknown key {key}; {hint}The keys here are {', '.join(known)}."


def plain_message(error: Exception) -> str:
    """The message of a jsonargparse error in one line, without Python's type notation."""
    text = " ".join(str(error).split())
    text = re.sub(
        r"Does not validate .+?Subtypes: \[(.+?)\] Errors: .+ Given value: ", _union, text
    )
    text = re.sub(r"Expected an? (.+?)\. Got value:", _expected, text).replace("options.", "")
    return re.sub(r'Parser key "([^"]+)":', r"\1:", text)


def _expected(match: re.Match[str]) -> str:
    """``expected int, got`` instead of ``Expected a <class 'int'>. Got value:``."""
    return f"expected {_type_name(match[1])}, got"


def _union(match: re.Match[str]) -> str:
    """Likewise for a value that may be None."""
    names = [_type_name(name) for name in match[1].split(", ") if "NoneType" not in name]
    return f"expected {' or '.join(names)}, got "


def _type_name(text: str) -> str:
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    choices = re.fullmatch(r"typing\.Literal\[(.+)\]", name)
    return "one of " + choices[1].replace("'", "") if choices else name


def first_few(items: Sequence[str], limit: int = 8, separator: str = ", ") -> str:
    """Join the first few of many items for a message, and say how many more there are."""
    more = len(items) - limit
    return separator.join(map(printable, items[:limit])) + (
        f"{separator}... ({more} more)" if more > 0 else ""
    )


class FileError(ValueError):
    """A file cannot be used; its message is one printable line of at most 2,000 characters."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, limit: int = _LONGEST) -> str:
    """A message in one printable line; the middle is cut out if it is longer than ``limit``.

    The beginning names the file and the end the remedy; what a file contains is between them.
    """
    text = printable(re.sub(r"\s*[\r\n]\s*", " ", text))  # spaces in file names stay
    tail = limit // 4
    return text if len(text) <= limit else f"{text[: limit - tail - 5]} ... {text[-tail:]}"


def printable(text: str) -> str:
    """Escape what a terminal would not print as it is: control characters and line breaks.

    A file name or class name can contain them, and could otherwise forge a line of output.
    """
    return "".join(
        char if char == " " or char.isprintable() else ascii(char)[1:-1] for char in text
    )
