import pytest
import torch
from torch import Tensor

from meinst.ops.nms import batched_nms


def draw(count: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 200, (count, 2), generator=generator)
    sizes = torch.randint(0, 60, (count, 2), generator=generator)  # some without area
    boxes = torch.cat((corners, corners + sizes), dim=1).float()
    scores = torch.rand(count, generator=generator)
    return boxes, scores, torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("count", [0, 1, 40, 900, 3000])
@pytest.mark.parametrize("classes", [1, 7])
def test_equals_torchvision(count: int, classes: int) -> None:
    from torchvision.ops import batched_nms as torchvision_nms

    boxes, scores, labels = draw(count, classes, seed=count)
    boxes -= 50  # classes shifted apart still overlap where coordinates are negative
    for threshold in (0.0, 0.5, 1.0):
        found = batched_nms(boxes, scores, labels, threshold)
        assert torch.equal(found, torchvision_nms(boxes, scores, labels, threshold))


def test_equal_scores_keep_the_first() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]).repeat(5, 1)
    boxes[3:] += 10
    kept = batched_nms(boxes, torch.ones(5), torch.zeros(5, dtype=torch.int64), 0.5)
    assert kept.tolist() == [0, 3]
