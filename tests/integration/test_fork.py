"""Models work in forked processes, as in web servers that load a model before they fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
import numpy as np
import torch
import meinst

torch.set_num_threads(2)
model = meinst.load(sys.argv[1]).fuse()
picture = np.random.default_rng(0).integers(0, 256, (200, 220, 3), dtype=np.uint8)
expected = model.predict(picture).rle()  # starts the threads of OpenMP
child = os.fork()
if child == 0:
    os._exit(0 if model.predict(picture).rle() == expected else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_forked_process_predicts_the_same(tiny_model_file: Path) -> None:
    program = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tiny_model_file)]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the forked process
            pytest.fail("the forked process hangs")
    assert output.strip() == "0"
