"""COCO's matching and interpolated precision, against values found by hand."""

from __future__ import annotations

import numpy as np

from meinst.ops.match_kernels import interpolate_precision, match_greedily

NO_CROWD = np.zeros(2, dtype=bool)


def matches(
    iou: list[list[float]], crowd: np.ndarray = NO_CROWD, thresholds: tuple[float, ...] = (0.5,)
) -> list[list[int]]:
    found = match_greedily(np.array(iou, dtype=np.float64), crowd, np.array(thresholds))
    return found.tolist()


def test_no_detections() -> None:
    found = match_greedily(np.zeros((0, 2)), NO_CROWD, np.array([0.5]))
    assert found.shape == (1, 0)


def test_no_objects() -> None:
    found = match_greedily(np.zeros((3, 0)), np.zeros(0, dtype=bool), np.array([0.5, 0.9]))
    assert found.tolist() == [[-1, -1, -1]] * 2


def test_best_detection_takes_the_object_of_largest_iou() -> None:
    assert matches([[0.6, 0.8], [0.7, 0.9]]) == [[1, 0]]


def test_threshold_is_reached_exactly() -> None:
    assert matches([[0.5, 0.0]]) == [[0]]
    assert matches([[0.49, 0.0]]) == [[-1]]
    assert matches([[1.0, 0.0]], thresholds=(0.5, 1.0)) == [[0], [0]]


def test_last_of_equal_objects_is_taken() -> None:
    assert matches([[0.7, 0.7]]) == [[1]]


def test_crowds_come_last_and_stay_free() -> None:
    crowd = np.array([True, False])
    assert matches([[0.9, 0.6], [0.9, 0.6], [0.9, 0.6]], crowd) == [[1, 0, 0]]


def test_precision_is_the_best_from_each_recall_on() -> None:
    # Precisions 1, 1/2, 2/3 at recalls 1/2, 1/2, 1: 1 up to 0.5, then 2/3.
    correct = np.array([True, False, True])
    (table,) = interpolate_precision(correct, np.array([0, 3]), np.array([2]))
    np.testing.assert_allclose(table, [1.0] * 51 + [2 / 3] * 50)


def test_precision_of_several_classes() -> None:
    correct = np.array([True, False])
    starts, objects = np.array([0, 1, 1, 2]), np.array([4, 3, 0])
    table = interpolate_precision(correct, starts, objects)
    np.testing.assert_allclose(table[0], [1.0] * 26 + [0.0] * 75)  # recalls 0 to 0.25
    assert not table[1:].any()
