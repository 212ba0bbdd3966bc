"""Reading pickled NumPy arrays without executing any code in the file."""

from __future__ import annotations

import math
import mmap
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from meinst.compat.errors import ForeignFileError


def read_pickle(path: Path) -> Any:
    """Read a pickle that contains only NumPy arrays and plain containers.

    A pickle is a program: loading it calls whatever functions it names. Here only the names that an
    array needs are allowed, and they resolve to classes of this module, which record the parts of
    the array; NumPy's own unpickling is never called.

    Args:
        path: a file written by Python 2 or 3, in any protocol.

    Returns:
        Dicts, lists, tuples, strings, numbers and NumPy arrays.

    Raises:
        ForeignFileError: if the file contains anything else, or is damaged.
    """
    with path.open("rb") as file:
        try:
            # Mapped: reads beyond the end take no memory.
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _resolve(_Reader(content, encoding="latin1").load(), {})
        except _ForbiddenNameError as error:
            raise ForeignFileError(
                f"{path}: a pickle that would run {error}; nothing was executed. Only NumPy arrays "
                "and plain containers can be read. Do not open the file with other tools."
            ) from error
        except Exception as error:  # a damaged pickle raises nearly anything
            raise ForeignFileError(
                f"{path}: a damaged pickle ({type(error).__name__}: {error}). Download it again."
            ) from error


class _ForbiddenNameError(pickle.UnpicklingError):
    pass


class _Type:
    """Stands in for a NumPy dtype: its code, such as ``f4``, and its byte order."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code
        self.order: Any = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def resolve(self) -> np.dtype[Any]:
        """The dtype; raises ValueError unless it is a plain number type."""
        dtype = np.dtype(str(self.code)) if len(self.code) <= 3 else None
        if dtype is None or dtype.kind not in "fiub" or self.order not in "<>=|":
            raise ValueError(f"an array of type {self.code!r}, which is not a number type")
        return dtype.newbyteorder(self.order)


class _Array:
    """Stands in for an array: collects its parts, which :func:`_resolve` puts together."""

    def __init__(self, *_: object) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        self.parts = (content, dtype, shape, "F" if fortran else "C")

    def resolve(self) -> NDArray[Any]:
        """The array, a copy that owns its memory."""
        content, dtype, shape, order = self.parts
        if isinstance(content, str):  # Python 2's bytes
            content = content.encode("latin1")
        values = np.frombuffer(content, dtype.resolve())
        if len(values) != math.prod(shape):
            raise ValueError(f"{len(values)} values for an array of shape {shape}")
        return values.reshape(shape, order=order).copy()


class _ArrayMaker(_Array):
    """Stands in for the function that protocol 5 calls with all parts at once."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


class _Bytes:
    """Stands in for ``_codecs.encode(text, "latin1")`` and ``bytes()`` of protocols 0 to 2."""

    def __new__(cls, text: str = "", encoding: str = "latin1") -> Any:
        """Return ordinary bytes."""
        return text.encode("latin1" if encoding == "latin1" else "ascii")

    def __setstate__(self, _: object) -> None:
        # Without this, a pickle could set the class's own attributes.
        raise TypeError("bytes have no state")


# The names in such files, as written by NumPy 1 and 2, and their stand-ins.
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


def _load_bytearray(reader: Any) -> None:
    """Read a bytearray; Python's own function allocates the declared size first."""
    (size,) = struct.unpack("<Q", reader.read(8))
    reader.append(bytearray(reader.read(size)))


class _Reader(pickle._Unpickler):
    """Python's reader in Python; the one in C takes memory for any index that a file names."""

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise _ForbiddenNameError(f"{module}.{name}") from None


def _resolve(value: Any, known: dict[int, Any]) -> Any:
    """Replace stand-ins by arrays, converting objects that occur several times only once.

    Otherwise a file of a few hundred bytes (lists that each contain the previous list twice) would
    fill the memory.
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
