import pytest
import torch
from torch import nn

from meinst.ops.dice import dice_loss


def test_dice_by_hand() -> None:
    # All values 0.5, 2 of 4 pixels in the mask: 1 - (2 * 1 + 1) / (1 + 2 + 1).
    logits, masks = torch.zeros(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    assert dice_loss(logits, masks).item() == pytest.approx(0.25)
    assert dice_loss(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)
    perfect = nn.functional.one_hot(torch.tensor([2]), 4).float()
    assert dice_loss((perfect * 2 - 1) * 50, perfect).item() == pytest.approx(0, abs=1e-6)
