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
    dispatcher: _Kernel
    try:
        dispatcher = numba.njit(kernel, cache=True, nogil=True)
    except RuntimeError:  # numba's answer when it finds no writable folder
        dispatcher = numba.njit(kernel, nogil=True)
    return dispatcher
