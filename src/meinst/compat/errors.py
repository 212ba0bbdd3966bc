"""Errors of foreign files."""

from __future__ import annotations


class ForeignFileError(ValueError):
    """A foreign file that cannot be converted, or a model without a foreign counterpart."""
