"""Pickles of NumPy arrays, read without running anything that they hold."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.compat.errors import ForeignFileError


def read_pickle(path: Path) -> Any:
    """Read a pickle that holds NumPy arrays and plain containers and nothing else.

    Pickles are programs: reading one calls whatever functions it names. Here every name but a
    few is refused before it is even looked up, and those few stand for classes of this file,
    which note down what an array is made of; NumPy's own reconstruction never sees the file.
    Written by Python 2 or 3, any protocol.

    Args:
        path: the file.

    Returns:
        Dicts, lists, tuples, strings, numbers and NumPy arrays.

    Raises:
        ForeignFileError: if the file names anything else, or is damaged.
    """
    with path.open("rb") as file:
        try:
            return _resolve(_Reader(file, encoding="latin1").load(), {})
        except _ForbiddenNameError as error:
            raise ForeignFileError(
                f"{path}: a pickle that asks to run {error}; only NumPy arrays and plain "
                "containers are read, nothing was executed. Do not open it with other tools."
            ) from error
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ForeignFileError(
                f"{path}: a damaged pickle ({type(error).__name__}: {error}). Fetch it anew."
            ) from error


class _ForbiddenNameError(pickle.UnpicklingError):
    pass


class _Type:
    """A NumPy type: its code, for example ``f4``, and byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def resolve(self) -> np.dtype[Any]:
        """The type, if its values are plain numbers."""
        kind = np.dtype(str(self.code)) if len(self.code) <= 3 else None
        if kind is None or kind.kind not in "fiub" or self.order not in "<>=|":
            raise ValueError(f"arrays of type {self.code!r}, not of numbers")
        return kind.newbyteorder(self.order)


class _Array:
    """An array's parts, put together by :func:`_resolve`."""

    def __init__(self, *_: object) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.parts = (content, kind, shape, "F" if fortran else "C")

    def resolve(self) -> NDArray[Any]:
        """The array, of its own memory."""
        content, kind, shape, order = self.parts
        if isinstance(content, str):  # Python 2's bytes
            content = content.encode("latin1")
        values = np.frombuffer(content, kind.resolve())
        if len(values) != math.prod(shape):
            raise ValueError(f"{len(values)} values for an array of shape {shape}")
        return values.reshape(shape, order=order).copy()


class _ArrayMaker(_Array):
    """What protocol 5 calls: all parts at once."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class _Bytes:
    """What protocols 0 to 2 call for bytes: ``_codecs.encode(text, "latin1")``, or ``bytes()``."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        """Just the bytes."""
        return text.encode("latin1" if encoding == "latin1" else "ascii")

    def __setstate__(self, _: object) -> None:
        # Without this, a pickle could set the class's own attributes.
        raise TypeError("bytes have no state")


# What such files name, in NumPy 1 and 2, and what stands in for it.
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _Bytes,
    ("__builtin__", "bytes"): _Bytes,
    ("collections", "OrderedDict"): OrderedDict,
}
for _core in ("numpy.core", "numpy._core"):
    _NAMES[f"{_core}.multiarray", "_reconstruct"] = _Array
    _NAMES[f"{_core}.numeric", "_frombuffer"] = _ArrayMaker


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _ForbiddenNameError(f"{module}.{name}") from None


def _resolve(value: Any, known: dict[int, Any]) -> Any:
    """Stand-ins replaced by arrays; what occurs twice is made once, and stays one object.

    Otherwise a few hundred bytes, lists that hold the one before twice, would fill the memory.
    """
    if id(value) not in known:
        known[id(value)] = _resolved(value, known)
    return known[id(value)]


def _resolved(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        return value.resolve()
    if isinstance(value, dict):
        return {key: _resolve(inner, known) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(inner, known) for inner in value)
    return value
