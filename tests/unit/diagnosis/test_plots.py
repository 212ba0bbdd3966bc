"""What the plots show of many classes."""

from __future__ import annotations

import numpy as np

from meinst.diagnosis.plots import most_confused


def test_all_of_a_few_classes_are_shown() -> None:
    assert most_confused(np.eye(3, dtype=np.int64)) == [0, 1, 2]


def test_classes_with_most_errors_are_shown_in_their_order() -> None:
    confusion = np.diag(np.arange(201))  # the last is background
    confusion[150, 7] = 3  # 150 is taken for 7
    confusion[120, 200] = 1  # 120 is missed
    shown = most_confused(confusion)
    assert len(shown) == 81
    assert {7, 120, 150} < set(shown)
    assert shown == sorted(shown)
    assert shown[-1] == 200
