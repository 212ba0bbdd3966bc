"""Griffe extension: turns Sphinx roles in docstrings into cross-references of the site."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):`(~?)(?:([^<`]+?) <([^>`]+)>|([^`]+))`")


class Roles(griffe.Extension):
    """Replaces ``:func:`name``` by a link to the object if the site documents it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if obj.docstring:
            obj.docstring.value = rewrite(obj.docstring.value, obj)


def rewrite(text: str, obj: griffe.Object) -> str:
    """Replace the roles in a docstring, and double backticks by single ones."""

    def link(match: re.Match[str]) -> str:
        short, title, target, plain = match.groups()
        target = target or plain
        if not title:
            title = target.rpartition(".")[2] if short else target
        return (
            f'<autoref identifier="{_resolve(target, obj)}" optional><code>{title}</code></autoref>'
        )

    return re.sub(r"``([^`\n]+(?:\n[^`\n]+)?)``", r"`\1`", _ROLE.sub(link, text))


def _resolve(name: str, obj: griffe.Object) -> str:
    """The full path of a name as it is seen from an object."""
    if name.startswith("meinst"):
        return name
    parent: Any = obj
    while parent is not None:
        if name in parent.members:
            return f"{parent.path}.{name}"
        parent = parent.parent
    try:
        return str(obj.resolve(name))
    except griffe.NameResolutionError:
        return name
