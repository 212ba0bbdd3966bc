import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

pytest.importorskip("lightning")

from meinst.engine.callbacks import make_ema


def test_the_average_forgets_its_beginning_first_and_reaches_its_decay() -> None:
    average = make_ema(0.5)._kwargs["multi_avg_fn"]
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=False)
    expected = 0.0
    for count, value in enumerate([8.0, 4.0, 2.0]):
        nn.init.constant_(model.weight, value)
        averaged.update_parameters(model)
        # the first update copies; then min(0.5, (1 + n) / (10 + n)): 2/11, 3/12
        kept = (1 + count) / (10 + count)
        expected = value if count == 0 else kept * expected + (1 - kept) * value
        assert averaged.module.weight.item() == pytest.approx(expected)
    late = [torch.tensor([1.0])]
    average(late, [torch.tensor([3.0])], torch.tensor(1000))
    assert late[0].item() == 2.0  # 0.5 * 1 + 0.5 * 3
