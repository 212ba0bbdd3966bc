"""The process keeps freed memory and compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
import numpy as np
from meinst.cli.memory import keep_freed_memory

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has mallopt")
@pytest.mark.parametrize(("kept", "mapped"), [(False, 1), (True, 0)])
def test_large_arrays_reuse_freed_memory(kept: bool, mapped: int) -> None:
    script = SCRIPT.format(kept=kept)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert int(run.stdout) == mapped


CONVS = """
import torch
from meinst.cli.memory import keep_kernels

if {kept}:
    keep_kernels()
conv = torch.nn.Conv2d(8, 8, 3).requires_grad_(False)
for size in (8, *range(8, 1208), 8):
    print("size", size, flush=True)
    conv(torch.zeros(2, 8, 8, size))
"""


@pytest.mark.parametrize(("kept", "found"), [(False, "cache_miss"), (True, "cache_hit")])
def test_kernels_of_earlier_sizes_are_reused(kept: bool, found: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("ONEDNN", "DNNL"))}
    run = subprocess.run(
        [sys.executable, "-c", CONVS.format(kept=kept)],
        capture_output=True,
        check=True,
        text=True,
        env={**env, "ONEDNN_VERBOSE": "profile_create"},
    )
    last = run.stdout.rpartition("size 8\n")[2]
    assert f"create:{found}" in last, last
