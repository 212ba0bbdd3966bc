"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
import numpy as np
from meinst.engine.memory import keep_freed_memory

class MallInfo(ctypes.Structure):  # glibc's struct mallinfo2
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost")]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = MallInfo
if {kept}:
    assert keep_freed_memory()
before = mallinfo().hblks
array = np.ones(50_000_000)
print(mallinfo().hblks - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has mallopt")
@pytest.mark.parametrize(("kept", "mapped"), [(False, 1), (True, 0)])
def test_large_arrays_are_no_longer_mapped_anew(kept: bool, mapped: int) -> None:
    script = SCRIPT.format(kept=kept)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert int(run.stdout) == mapped
