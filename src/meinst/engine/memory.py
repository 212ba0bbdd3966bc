"""What the process keeps for the next time; for programs, not for libraries."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_MOST = 2**31 - 1  # mallopt takes an int
_PAD = 64 * 2**20
_KERNELS = 16384  # sixteen times oneDNN's own


def keep_for_reuse() -> None:
    """Both of the following; to be called before the first network runs."""
    keep_freed_memory()
    keep_kernels()


def keep_kernels() -> None:
    """Let oneDNN keep what it compiles for convs of one size until that size comes again.

    Of its default of 1,024 a network needs hundreds for each size, and training on images of many
    sizes compiles all the time: a sixth of a step of `photos`. A number that the user's own
    ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` gives is left alone. Without effect after the first conv.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next array, instead of giving it back each time.

    A network makes and frees maps of many megabytes at every layer. By glibc's defaults each is
    mapped anew, and the system clears its pages first: a fifth of a training step. The process
    then keeps what it once needed at most.

    Returns:
        Whether that could be set: False where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _MOST), (_TRIM_THRESHOLD, _MOST), (_TOP_PAD, _PAD))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
