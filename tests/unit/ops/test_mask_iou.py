"""Overlaps and boundaries from run lengths: by hand, and compared with loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import column_runs, draw_mask

from meinst.ops.mask_iou import (
    Runs,
    boundary_distance,
    boundary_runs,
    mask_runs,
    pixel_count,
    runs_iou,
)

EMPTY = np.zeros((0, 2), dtype=np.int32)


def to_runs(mask: np.ndarray) -> Runs:
    return mask_runs(np.array(column_runs(mask)))


def to_mask(runs: Runs, shape: tuple[int, ...]) -> np.ndarray:
    flat = np.zeros(shape[0] * shape[1], dtype=bool)
    for start, stop in runs.tolist():
        assert start < stop
        assert not flat[start:stop].any()
        flat[start:stop] = True
    return flat.reshape(shape[::-1]).T


def slow_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """For each pixel: does the square around it contain background or leave the image?"""
    padded = np.pad(mask, distance)
    found = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        found[y, x] = not padded[y : y + 2 * distance + 1, x : x + 2 * distance + 1].all()
    return found


def test_empty_masks() -> None:
    assert mask_runs(np.array([12])).shape == mask_runs(np.zeros(0, dtype=np.int64)).shape == (0, 2)
    assert pixel_count(EMPTY) == 0
    assert boundary_runs(EMPTY, 5, 2).shape == (0, 2)
    assert runs_iou(EMPTY, EMPTY) == 1
    assert runs_iou(EMPTY, np.array([[3, 5]], dtype=np.int32)) == 0


def test_runs_by_hand() -> None:
    assert mask_runs(np.array([2, 3, 1, 4, 2])).tolist() == [[2, 5], [6, 10]]
    assert mask_runs(np.array([0, 12])).tolist() == [[0, 12]]
    # Empty runs: of zeros between two runs of ones, of ones, and both in a row.
    assert mask_runs(np.array([1, 2, 0, 3, 4])).tolist() == [[1, 6]]
    assert mask_runs(np.array([1, 0, 2, 3, 0, 0, 4])).tolist() == [[3, 6]]
    assert mask_runs(np.array([1, 2, 0, 0, 0, 3])).tolist() == [[1, 6]]


def test_runs_beyond_32_bits() -> None:
    assert mask_runs(np.array([5, 6])).dtype == np.int32
    runs = mask_runs(np.array([2**33, 5]))
    assert runs.tolist() == [[2**33, 2**33 + 5]]
    assert runs_iou(runs, runs) == 1


def test_overlap_by_hand() -> None:
    # 10 and 6 pixels, 3 of them shared (2, 3 and 15): 3 / (10 + 6 - 3).
    first = np.array([[0, 4], [10, 16]], dtype=np.int32)
    second = np.array([[2, 6], [9, 10], [15, 16]], dtype=np.int32)
    assert runs_iou(first, second) == runs_iou(second, first) == 3 / 13
    assert (pixel_count(first), pixel_count(second)) == (10, 6)
    assert runs_iou(first, first) == 1


@pytest.mark.parametrize(
    ("size", "expected"), [((3, 4), 1), ((480, 640), 16), ((30, 40), 1), ((90, 120), 3)]
)
def test_distance(size: tuple[int, int], expected: int) -> None:
    # 2% of the diagonal: 0.1 -> 1, 16.0, 1.0, 3.0.
    assert boundary_distance(*size) == expected
    assert 0.02 * math.hypot(90, 120) == 3


def test_boundary_by_hand() -> None:
    # A 5 x 6 box: its boundary of width 1 leaves 3 x 4 pixels, of width 2 leaves 1 x 2.
    mask = draw_mask("box", (2, 1, 8, 6), 9, 11)
    for distance, inside in ((1, 3 * 4), (2, 1 * 2), (3, 0)):
        assert pixel_count(boundary_runs(to_runs(mask), 9, distance)) == 30 - inside
    # A full image has a boundary along its border.
    full = np.array([[0, 6 * 7]], dtype=np.int32)
    assert pixel_count(boundary_runs(full, 6, 1)) == 6 * 7 - 4 * 5


def test_boundary_iou_by_hand() -> None:
    # Boxes of 10 x 10 shifted by one column have boundaries of 36 pixels, which share 9 columns of
    # the top and bottom rows: 18 / (36 + 36 - 18).
    first, second = (draw_mask("box", (x, 3, x + 10, 13), 20, 20) for x in (3, 4))
    edges = [boundary_runs(to_runs(mask), 20, 1) for mask in (first, second)]
    assert runs_iou(*edges) == 18 / 54
    assert runs_iou(to_runs(first), to_runs(second)) == 90 / 110


def random_masks(count: int, seed: int) -> list[np.ndarray]:
    """Discs, boxes, holes, noise, full columns and touching borders on small images."""
    rng = np.random.default_rng(seed)
    masks = []
    for n in range(count):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = np.zeros((height, width), dtype=bool)
        for _ in range(rng.integers(1, 4)):
            x, y = rng.uniform(-5, width + 5), rng.uniform(-5, height + 5)
            mask |= draw_mask("disc", (x, y, rng.uniform(1, 25)), height, width)
        if n % 3 == 1:
            mask &= rng.random((height, width)) > rng.choice([0.01, 0.1, 0.5])
        if n % 3 == 2:
            mask[:, rng.integers(0, width) :] = True
            mask[rng.integers(0, height), rng.integers(0, width)] = False
        masks.append(mask)
    return masks


def test_boundary_equals_plain_loops() -> None:
    checked = 0
    for mask in random_masks(150, seed=0):
        runs = to_runs(mask)
        assert np.array_equal(to_mask(runs, mask.shape), mask)
        for distance in (1, 2, 3, 7):
            expected = slow_boundary(mask, distance)
            found = boundary_runs(runs, mask.shape[0], distance)
            assert np.array_equal(to_mask(found, mask.shape), expected), (mask.shape, distance)
            checked += bool((mask & ~expected).any())
    assert checked > 100  # there was something to erode


def test_iou_equals_pixels() -> None:
    rng = np.random.default_rng(1)
    for mask in random_masks(60, seed=1):
        other = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
        union = (mask | other).sum()
        expected = (mask & other).sum() / union if union else 1.0
        assert runs_iou(to_runs(mask), to_runs(other)) == expected


def test_int32_and_int64_runs_can_be_mixed() -> None:
    mask = random_masks(1, seed=2)[0]
    runs = to_runs(mask)
    wide = runs.astype(np.int64)
    assert runs_iou(runs, wide) == 1
    assert np.array_equal(boundary_runs(wide, len(mask), 2), boundary_runs(runs, len(mask), 2))


def test_time_does_not_grow_with_the_number_of_pixels() -> None:
    # Processing 10^10 pixels would take minutes and gigabytes.
    height, width = 5_000_000, 2_000
    runs = np.array([[0, height], [3 * height, 3 * height + 100]])
    found = boundary_runs(runs, height, 20)
    assert pixel_count(found) == height + 100
    wide = np.array([[0, height * width]])
    kept = pixel_count(wide) - pixel_count(boundary_runs(wide, height, 20))
    assert kept == (height - 40) * (width - 40)
