import numpy as np
import pytest
from conftest import column_runs

from meinst.ops.label_runs import label_counts


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
