import numpy as np
import pytest
from conftest import column_runs

from meinst.ops.label_runs import crop_counts, label_counts


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 61), (3, 200)])
@pytest.mark.parametrize("kinds", [1, 2, 30])
def test_equals_the_runs_of_each_mask(shape: tuple[int, int], kinds: int) -> None:
    rng = np.random.default_rng(sum(shape) + kinds)
    labels = rng.integers(0, kinds + 1, shape).astype(np.uint16) * 7
    labels[rng.random(shape) < 0.3] = 0
    numbers, counts = label_counts(labels)
    assert numbers.tolist() == sorted(set(labels.ravel().tolist()) - {0})
    for number, runs in zip(numbers, counts, strict=True):
        trimmed = runs if runs[-1] else runs[:-1]
        assert trimmed.tolist() == column_runs(labels == number)
        assert runs.sum() == labels.size


def test_nothing_but_background() -> None:
    numbers, counts = label_counts(np.zeros((4, 3), np.uint8))
    assert (len(numbers), counts) == (0, [])
    numbers, counts = label_counts(np.full((4, 3), 2, np.uint8))
    assert numbers.tolist() == [2]
    assert counts[0].tolist() == [0, 12, 0]


@pytest.mark.parametrize("corner", [(0, 0), (3, 5), (-2, -4), (14, 11), (-40, 2), (20, 90)])
@pytest.mark.parametrize("kind", ["random", "full", "empty"])
def test_runs_of_a_crop_are_those_of_the_whole_mask(corner: tuple[int, int], kind: str) -> None:
    crop = {
        "random": np.random.default_rng(1).random((13, 9)) < 0.5,
        "full": np.ones((30, 9), bool),
        "empty": np.zeros((4, 4), bool),
    }[kind]
    (x, y), (height, width) = corner, (17, 21)
    whole = np.zeros((height + 160, width + 160), bool)
    whole[y + 40 : y + 40 + crop.shape[0], x + 40 : x + 40 + crop.shape[1]] = crop
    mask = whole[40 : 40 + height, 40 : 40 + width]
    runs = crop_counts(crop, corner, (height, width))
    trimmed = runs if runs[-1] else runs[:-1]
    assert trimmed.tolist() == column_runs(mask)
