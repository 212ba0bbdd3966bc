"""Colours of the kinds of errors, the same in plots, tables and pictures."""

from __future__ import annotations

from meinst.diagnosis.kinds import Kind
from meinst.ops.draw import PALETTE, Color

_ORANGE, _SKY, _, _YELLOW, _GREEN, _VERMILLION, _BLUE, _ = PALETTE
_GREY = (140, 150, 160)
_BROWN = (140, 86, 40)
_INDIGO = (80, 60, 220)
_MAGENTA = (230, 0, 126)

COLORS: dict[Kind, Color] = {
    Kind.CORRECT: _GREEN,
    Kind.IGNORED: _GREY,
    Kind.DOUBLE: _BROWN,
    Kind.WRONG_CLASS: _BLUE,
    Kind.MERGED: _INDIGO,
    Kind.SPLIT: _YELLOW,
    Kind.POOR_OUTLINE: _SKY,
    Kind.LOOSE_BOX: _ORANGE,
    Kind.BOTH: _GREY,
    Kind.FALSE: _VERMILLION,
    Kind.MISSED: _MAGENTA,
}


def hex_color(kind: Kind) -> str:
    """The colour of a kind as ``#rrggbb``."""
    return "#{:02x}{:02x}{:02x}".format(*COLORS[kind])
