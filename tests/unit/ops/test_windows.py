from __future__ import annotations

import numpy as np
import pytest

from meinst.ops.windows import cut_sides, shortest_side, window_grid, window_starts

CASES = [(10, 10, 3), (11, 10, 3), (100, 32, 8), (101, 32, 16), (65, 32, 31), (7, 32, 8)]


@pytest.mark.parametrize(("length", "side", "overlap"), CASES)
def test_windows_cover_every_pixel_and_share_the_overlap(
    length: int, side: int, overlap: int
) -> None:
    starts = window_starts(length, side, overlap)
    covered = np.zeros(length, dtype=np.int64)
    for start in starts:
        covered[start : start + side] += 1
    assert covered.min() >= 1
    assert starts[0] == 0
    if length > side:
        assert starts[-1] + side == length
    assert (np.diff(starts) <= side - overlap).all()


@pytest.mark.parametrize(("length", "side", "overlap"), CASES)
def test_objects_up_to_the_overlap_lie_in_one_window(length: int, side: int, overlap: int) -> None:
    starts = window_starts(length, side, overlap)
    size = min(overlap, length)
    for first in range(length - size + 1):
        assert ((starts <= first) & (first + size <= starts + side)).any()


def test_there_are_no_more_windows_than_needed() -> None:
    # Two windows of 32 with 8 shared cover 56 pixels.
    assert len(window_starts(56, 32, 8)) == 2
    assert len(window_starts(57, 32, 8)) == 3


def test_grid_is_row_by_row_and_clipped_to_small_images() -> None:
    grid = window_grid((20, 50), 32, 8)
    assert grid.tolist() == [[0, 0, 29, 20], [21, 0, 50, 20]]
    rows = window_grid((60, 60), 32, 8)
    assert (np.diff(rows[:, 1]) >= 0).all()


def test_windows_are_no_larger_than_needed() -> None:
    # Three windows of 1024 cover 2048 pixels, and so do three of (2048 + 2 * 128) / 3 = 768.
    assert shortest_side(2048, 1024, 128) == 768
    assert len(window_starts(2048, 768, 128)) == len(window_starts(2048, 1024, 128)) == 3
    assert shortest_side(2047, 1024, 128, 32) == 768
    assert shortest_side(1024, 1024, 128) == 1024
    assert shortest_side(2 * 1024 - 128, 1024, 128, 100) == 1024  # not above the side


@pytest.mark.parametrize(("length", "side", "overlap"), CASES)
@pytest.mark.parametrize("multiple", [1, 8])
def test_shorter_windows_are_as_few(length: int, side: int, overlap: int, multiple: int) -> None:
    shorter = shortest_side(length, side, overlap, multiple)
    assert shorter <= side
    count = len(window_starts(length, side, overlap))
    assert len(window_starts(length, shorter, overlap)) == count


def test_only_borders_inside_the_image_cut() -> None:
    boxes = np.array([[0, 4, 6, 9], [20, 4, 32, 9], [4, 12, 9, 20], [5, 5, 9, 9]], np.float32)
    cut = cut_sides(boxes, np.array([0, 0, 32, 20]), (20, 50), 1.0)
    assert cut.tolist() == [[False, False], [True, False], [False, False], [False, False]]
    assert cut_sides(boxes[:0], np.array([0, 0, 32, 20]), (20, 50), 1.0).shape == (0, 2)
