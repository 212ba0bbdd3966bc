import subprocess
import sys

import torch
from torch import nn

from meinst.ops.shapes_only import shapes_only


def test_takes_no_memory_and_no_random_numbers() -> None:
    state = torch.get_rng_state()
    with shapes_only():
        conv = nn.Conv2d(3, 8, 3)
        nn.init.normal_(conv.weight)
    assert conv.weight.is_meta
    assert conv.weight.shape == (8, 3, 3, 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert not nn.Conv2d(3, 8, 3).weight.is_meta


def test_loading_a_shipped_model_imports_neither_timm_nor_the_compiler() -> None:
    code = (
        "import sys, meinst; meinst.load('photos')\n"
        "print([m for m in ('timm', 'torchvision', 'torch._dynamo', 'sympy') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
