"""Errors of foreign files."""

from __future__ import annotations

from meinst.options import FileError


class ForeignFileError(FileError):
    """A foreign file that cannot be converted, or a model without a foreign counterpart."""
