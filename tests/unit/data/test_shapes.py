from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from meinst.data.shapes import (
    Bitmap,
    Instances,
    bitmap_from_counts,
    clip_polygons,
    polygon_area,
    read_counts,
    shape_bounds,
)


def counts_of(mask: np.ndarray) -> list[int]:
    """Uncompressed RLE in plain Python: runs down the columns, 0 first."""
    runs, value = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def some_masks() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    masks = [np.ones((4, 3)), np.eye(5), np.ones((1, 1)), np.zeros((70, 900))]
    masks[3][:, 450:] = 1  # run lengths of several characters
    for _ in range(60):
        height, width = rng.integers(1, 40, 2)
        masks.append(rng.random((height, width)) < rng.choice([0.02, 0.5, 0.95]))
    return [mask.astype(np.uint8) for mask in masks]


def inside(points: np.ndarray, polygon: np.ndarray) -> np.ndarray:
    """Even-odd rule by counting crossings of a ray to the right."""
    x, y = points[:, 0], points[:, 1]
    result = np.zeros(len(points), dtype=bool)
    corners = polygon.reshape(-1, 2)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            crosses = ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        result ^= crosses
    return result


def test_no_instances() -> None:
    none = Instances(np.zeros((0, 4)), np.zeros(0, np.int64), (), np.zeros(0, bool))
    assert len(none) == 0
    assert none.masks(28).shape == (0, 28, 28)
    assert len(none.select(np.zeros(0, np.int64))) == 0
    assert clip_polygons([], (0, 0, 1, 1)) == []


@pytest.mark.parametrize("mask", some_masks(), ids=lambda mask: f"{mask.shape}")
def test_rle_equals_pycocotools(mask: np.ndarray) -> None:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    counts = read_counts(encoded["counts"].decode())
    assert counts.tolist() == counts_of(mask)
    before = counts.copy()
    bitmap = bitmap_from_counts(counts, *mask.shape)
    np.testing.assert_array_equal(counts, before)
    if not mask.any():
        assert bitmap is None
        return
    x, y, width, height = coco_mask.toBbox(encoded)
    assert bitmap.box == (x, y, x + width, y + height)
    assert bitmap.offset == (x, y)
    assert bitmap.area == mask.sum()
    x1, y1, x2, y2 = bitmap.box
    np.testing.assert_array_equal(bitmap.array(), mask[y1:y2, x1:x2])
    assert shape_bounds(bitmap) == bitmap.box


def test_rle_with_empty_runs() -> None:
    # 2 x 2 pixels: 1 zero, 1 one, 0 zeros, 1 one, 1 zero, 0 ones.
    bitmap = bitmap_from_counts(np.array([1, 1, 0, 1, 1, 0]), 2, 2)
    assert bitmap.box == (0, 0, 2, 2)
    np.testing.assert_array_equal(bitmap.array(), [[0, 1], [1, 0]])


@pytest.mark.parametrize(
    "counts", [[], [3], [2, 1], [5], [2, 3], [6, -2], [-1, 5], [2**62, 2**62, 2**62, 2**62, 4]]
)
def test_counts_must_fill_the_image(counts: list[int]) -> None:
    with pytest.raises(ValueError, match="do not fill"):
        bitmap_from_counts(np.array(counts, dtype=np.int64), 2, 2)


@pytest.mark.parametrize("text", ["", "o", "1p", " 1", "é", "oooooooooo0", "1\n"])
def test_broken_strings_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not valid"):
        read_counts(text)


def test_area_by_hand() -> None:
    square = np.array([10.0, 10, 14, 10, 14, 13, 10, 13])  # 4 * 3
    triangle = np.array([0.0, 0, 2, 0, 0, 2])  # 2 * 2 / 2
    assert polygon_area(()) == 0
    assert polygon_area((square,)) == 12
    assert polygon_area((square[::-1].reshape(-1, 2)[:, ::-1].reshape(-1), triangle)) == 14
    bow_tie = np.array([0.0, 0, 2, 2, 2, 0, 0, 2])  # its halves cancel out
    assert polygon_area((bow_tie,)) == 0


def test_clip_polygons_by_hand() -> None:
    square = np.array([0.0, 0, 4, 0, 4, 4, 0, 4])
    far = np.array([20.0, 20, 30, 20, 30, 30])
    instances = [(square, far), (), (far,), (square,)]
    before = square.copy()
    result = clip_polygons(instances, (1, 2, 10, 10))
    np.testing.assert_array_equal(square, before)
    assert [len(parts) for parts in result] == [1, 0, 0, 1]
    for piece in (result[0][0], result[3][0]):
        assert polygon_area((piece,)) == 6  # 1..4 by 2..4
        assert shape_bounds((piece,)) == (1, 2, 4, 4)


def test_clip_polygons_outside_the_window() -> None:
    square = np.array([0.0, 0, 4, 0, 4, 4, 0, 4])
    for window in ((5, 0, 9, 9), (-9, 0, -1, 9), (0, 5, 9, 9), (0, -9, 9, -1)):
        assert clip_polygons([(square,), (square, square)], window) == [(), ()]


def test_clip_polygons_keeps_the_points_inside() -> None:
    rng = np.random.default_rng(3)
    polygons = []
    for _ in range(40):  # stars: concave, so that a window may cut them into several pieces
        n = int(rng.integers(3, 16))
        angles = np.sort(rng.random(n)) * 2 * np.pi
        radii = rng.uniform(2, 30, n)
        center = rng.uniform(0, 40, 2)
        corners = center + radii[:, None] * np.stack((np.cos(angles), np.sin(angles)), 1)
        polygons.append((corners.reshape(-1),))
    x1, y1, x2, y2 = window = (7.5, 3.25, 33.0, 41.0)
    clipped = clip_polygons(polygons, window)
    points = rng.uniform(-20, 60, (4000, 2))
    in_window = (points > (x1, y1)).all(1) & (points < (x2, y2)).all(1)
    found = 0
    for whole, pieces in zip(polygons, clipped, strict=True):
        expected = inside(points, whole[0]) & in_window
        actual = inside(points, pieces[0]) if pieces else np.zeros(len(points), dtype=bool)
        np.testing.assert_array_equal(actual, expected)
        if pieces:
            low_x, low_y, high_x, high_y = shape_bounds(pieces)
            assert low_x >= x1
            assert low_y >= y1
            assert high_x <= x2
            assert high_y <= y2
        found += expected.sum()
    assert found > 1000


@pytest.mark.parametrize("turn", range(8))
def test_bounds_of_polygons_around_a_corner_of_the_window(turn: int) -> None:
    def turned(points: np.ndarray) -> np.ndarray:  # about the centre of the window
        points = points - 200.0
        points = points[:, ::-1] if turn & 1 else points
        return 200 + points * (-1 if turn & 2 else 1, -1 if turn & 4 else 1)

    # An L shape; the window 100..300 contains only the end of one arm: 100..140 by 200..220.
    angle = [(60, 60), (260, 60), (260, 90), (90, 90), (90, 200), (140, 200), (140, 220), (60, 220)]
    expected = turned(np.array([(100.0, 200), (140, 220)]))
    (pieces,) = clip_polygons([(turned(np.array(angle)).reshape(-1),)], (100, 100, 300, 300))
    assert shape_bounds(pieces) == (*expected.min(0), *expected.max(0))
    assert polygon_area(pieces) == 40 * 20
    around = turned(np.array([(90.0, 90), (310, 90), (310, 310), (90, 310)]))
    (pieces,) = clip_polygons([(around.reshape(-1),)], (100, 100, 300, 300))
    assert shape_bounds(pieces) == (100, 100, 300, 300)
    assert polygon_area(pieces) == 200 * 200


def test_masks_of_polygons_and_bitmaps_keep_their_order() -> None:
    mask = np.zeros((20, 20), dtype=np.uint8)
    mask[5:15, 2:12] = 1
    mask[5:10, 2:7] = 0  # the upper left quarter of the box is missing
    bitmap = bitmap_from_counts(np.array(counts_of(mask)), 20, 20)
    assert isinstance(bitmap, Bitmap)
    outline = np.array([7.0, 5, 12, 5, 12, 15, 2, 15, 2, 10, 7, 10])
    boxes = np.array([[2.0, 5, 12, 15]] * 3)
    shapes = ((outline,), bitmap, (outline,))
    instances = Instances(boxes, np.arange(3), shapes, np.zeros(3, bool))
    expected = np.ones((10, 10), dtype=np.uint8)
    expected[:5, :5] = 0
    result = instances.masks(10)
    np.testing.assert_array_equal(result[1], expected)
    np.testing.assert_array_equal(result[0], result[2])
    assert (result[0] != expected).mean() < 0.1  # COCO's rasteriser shifts outlines a little
    np.testing.assert_array_equal(instances.select(np.array([2, 1])).masks(10), result[[2, 1]])
