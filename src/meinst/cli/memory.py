"""Settings that let the process keep memory and kernels for reuse; for programs, not libraries."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
_MAX = 2**31 - 1  # mallopt takes an int
_PAD = 64 * 2**20
_KERNELS = 16384  # sixteen times oneDNN's default


def keep_for_reuse() -> None:
    """Apply both settings; call this before the first network runs."""
    keep_freed_memory()
    keep_kernels()


def keep_kernels() -> None:
    """Enlarge oneDNN's cache of compiled kernels.

    A network needs hundreds of kernels for each input size. With the default limit of 1,024,
    training on images of many sizes keeps compiling: a sixth of each step with the recipe photos.
    The user's own ``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` takes precedence. No effect after the first
    conv has run.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next array instead of returning it to the system.

    A network allocates and frees arrays of many megabytes in every layer. By default, glibc maps
    each of them anew and the system clears the pages: a fifth of a training step. In exchange, the
    process stays at its peak memory.

    Returns:
        Whether the setting was applied; False without glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, _MAX), (_TRIM_THRESHOLD, _MAX), (_TOP_PAD, _PAD))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
