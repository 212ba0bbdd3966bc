from __future__ import annotations

import numpy as np
import pytest
import torch

from meinst.ops.paste import paste_masks
from meinst.ops.seam_kernels import connect, find_pairs, keep_best, pair_areas

WINDOWS = np.array([[0, 0, 20, 20], [10, 0, 30, 20], [0, 10, 20, 30], [0, 0, 30, 30]], np.float32)
LEVELS = np.array([0, 0, 0, 1])


def pairs_of(
    boxes: list[list[float]], windows: list[int], labels: list[int] | None = None
) -> list[list[int]]:
    starts = np.searchsorted(np.array(windows), np.arange(len(WINDOWS) + 1))
    pairs, regions = np.empty((20, 2), np.int64), np.empty((20, 4), np.float32)
    values = np.array(boxes, np.float32).reshape(-1, 4)
    kinds = np.array(labels or [0] * len(boxes), np.int64)
    count = find_pairs(values, kinds, starts, WINDOWS, LEVELS, 0.2, pairs, regions)
    return pairs[:count].tolist()


def test_no_detections() -> None:
    assert pairs_of([], []) == []


def test_only_boxes_that_overlap_in_other_windows_are_pairs() -> None:
    box, near, far = [12, 2, 18, 8], [13, 2, 19, 8], [2, 2, 8, 8]
    assert pairs_of([box, near], [0, 1]) == [[0, 1]]
    assert pairs_of([box, near], [0, 0]) == []  # the same window
    assert pairs_of([box, near], [0, 1], [0, 1]) == []  # another class
    assert pairs_of([far, near], [0, 1]) == []
    assert pairs_of([box, near], [0, 2]) == []  # above what the windows share
    assert pairs_of([box, box, box], [0, 1, 3]) == [[0, 1], [0, 2], [1, 2]]


def test_boxes_of_other_levels_need_not_be_alike() -> None:
    small, large = [12, 2, 14, 4], [0, 0, 30, 30]
    assert pairs_of([small, large], [0, 3]) == [[0, 1]]
    assert pairs_of([small, [10, 0, 30, 20]], [0, 1]) == []


def test_pairs_are_counted_beyond_the_space() -> None:
    boxes = np.tile(np.array([[12, 2, 18, 8]], np.float32), (8, 1))
    starts = np.array([0, 4, 8, 8, 8])
    pairs, regions = np.empty((3, 2), np.int64), np.empty((3, 4), np.float32)
    labels = np.zeros(8, np.int64)
    assert find_pairs(boxes, labels, starts, WINDOWS, LEVELS, 0.2, pairs, regions) == 16


def test_areas_are_those_inside_the_region() -> None:
    soft = np.pad(np.ones((2, 28, 28), np.float32), ((0, 0), (1, 1), (1, 1)))
    boxes = np.array([[0, 0, 16, 16], [8, 0, 24, 16]], np.float32)
    pairs = np.array([[0, 1], [0, 1]])
    regions = np.array([[0, 0, 30, 30], [8, 0, 30, 8]], np.float32)
    areas = np.zeros((2, 3))
    pair_areas(soft, boxes, pairs, regions, areas)
    # Of full masks, half a value on each side is below one half.
    assert areas[0] == pytest.approx([8 * 16, 16 * 16, 16 * 16], rel=0.1)
    assert areas[1] == pytest.approx([8 * 8, 8 * 8, 16 * 8], rel=0.1)


def test_areas_are_those_of_pasted_masks() -> None:
    rng = np.random.default_rng(0)
    soft = rng.random((6, 7, 7)).astype(np.float32)
    corners = rng.integers(0, 12, (6, 2))
    boxes = np.concatenate((corners, corners + rng.integers(5, 18, (6, 2))), axis=1)
    masks = paste_masks(torch.from_numpy(soft), torch.from_numpy(boxes).float(), (32, 32)).numpy()
    pairs = np.array([[i, j] for i in range(6) for j in range(i)])
    region = (3, 5, 25, 27)
    regions = np.tile(np.array(region, np.float32), (len(pairs), 1))
    areas = np.zeros((len(pairs), 3))
    padded = np.pad(soft, ((0, 0), (1, 1), (1, 1)))
    pair_areas(padded, boxes.astype(np.float32), pairs, regions, areas)
    x1, y1, x2, y2 = region
    seen = masks[:, y1:y2, x1:x2]  # at most 32 pixels, so there is a sample in each
    for (i, j), found in zip(pairs, areas, strict=True):
        expected = [(seen[i] & seen[j]).sum(), seen[i].sum(), seen[j].sum()]
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_best_of_related_detections_is_kept() -> None:
    # 0 - 1 - 2 and 3: 1 is the best of its relations, so 0 and 2 go.
    starts, related = np.array([0, 1, 3, 4, 4]), np.array([1, 0, 2, 1])
    keep = np.zeros(4, np.bool_)
    keep_best(np.array([1, 0, 3, 2]), starts, related, keep)
    assert keep.tolist() == [False, True, False, True]
    # If 0 is better, 1 goes, and 2 stays.
    keep[:] = False
    keep_best(np.array([0, 1, 2, 3]), starts, related, keep)
    assert keep.tolist() == [True, False, True, True]


def test_connected_parts_have_the_smallest_index() -> None:
    roots = np.arange(7)
    connect(np.array([[5, 6], [2, 4], [4, 6], [1, 3]]), roots)
    assert roots.tolist() == [0, 1, 2, 1, 2, 2, 2]
