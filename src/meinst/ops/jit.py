"""Compilation of kernels, in one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(kernel: _Kernel) -> _Kernel:
    """Compile ``kernel`` at its first call, keep the code on disk and run it without the GIL.

    Where no folder for the code can be written (a read-only installation without a home),
    every process compiles anew.
    """
    return _compiled(kernel, nogil=True)


def compiled_sums(kernel: _Kernel, *, cache: bool = True) -> _Kernel:
    """As :func:`compiled`, for kernels whose sums may be taken in any order.

    Only then does the compiler take vector instructions for them. The order depends on the
    processor, never on the call: the same input gives the same bits.

    Args:
        kernel: to be compiled.
        cache: whether the code is kept on disk. Not for several kernels made by one function: they
            would share a file, and two processes could mistake one for the other.
    """
    return _compiled(kernel, cache, nogil=True, fastmath={"contract", "reassoc", "nsz"})


def _compiled(kernel: _Kernel, cache: bool = True, **options: Any) -> _Kernel:
    dispatcher: _Kernel
    try:
        dispatcher = numba.njit(kernel, cache=cache, **options)
    except RuntimeError:  # numba's answer when it finds no writable folder
        dispatcher = numba.njit(kernel, **options)
    return dispatcher
