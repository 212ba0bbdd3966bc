"""Compilation of kernels with numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_Kernel = TypeVar("_Kernel", bound=Callable[..., Any])


def compiled(kernel: _Kernel) -> _Kernel:
    """Compile ``kernel`` on its first call, cache the code on disk and run it without the GIL.

    Without a writable cache folder (a read-only installation without a home), every process
    compiles again.
    """
    return _compiled(kernel, nogil=True)


def compiled_sums(kernel: _Kernel, *, cache: bool = True) -> _Kernel:
    """Like :func:`compiled`, for kernels whose sums may be reordered.

    This lets the compiler vectorise the sums. Their order depends on the processor only: the same
    input gives the same bits.

    Args:
        kernel: function to compile.
        cache: whether to cache the code on disk. Must be False for kernels defined inside a
            function: they would share a file, and processes could load the wrong one.
    """
    return _compiled(kernel, cache, nogil=True, fastmath={"contract", "reassoc", "nsz"})


def _compiled(kernel: _Kernel, cache: bool = True, **options: Any) -> _Kernel:
    dispatcher: _Kernel
    try:
        dispatcher = numba.njit(kernel, cache=cache, **options)
    except RuntimeError:  # raised by numba if it finds no writable folder
        dispatcher = numba.njit(kernel, **options)
    return dispatcher
