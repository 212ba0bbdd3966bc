"""What is raised for foreign files."""

from __future__ import annotations


class ForeignFileError(ValueError):
    """A file that is not what can be translated, or a model that has no counterpart."""


def first_few(faults: list[str], count: int = 4) -> str:
    """The first of a list of faults, and how many more there are."""
    more = len(faults) - count
    return "; ".join(faults[:count]) + (f"; and {more} more" if more > 0 else "")
