from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from meinst.ops.outlines import mask_to_polygons, mask_to_rings

# pycocotools 2.0 does not support the copy argument of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def rasterised(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    if not polygons:
        return np.zeros((height, width), dtype=bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))) > 0


def count_parts(mask: np.ndarray) -> int:
    """Number of 4-connected parts, by flooding."""
    left, parts = mask.copy(), 0
    while left.any():
        parts += 1
        stack = [tuple(np.argwhere(left)[0])]
        while stack:
            y, x = stack.pop()
            if 0 <= y < left.shape[0] and 0 <= x < left.shape[1] and left[y, x]:
                left[y, x] = False
                stack += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
    return parts


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (3, 4)])
def test_empty_mask_has_no_polygons(shape):
    assert mask_to_polygons(np.zeros(shape, dtype=bool)) == []


def test_one_pixel():
    # Pixel (2, 5) covers 5..6 by 2..3.
    assert mask_to_polygons(np.ones((1, 1), dtype=bool), (5, 2)) == [[5, 2, 6, 2, 6, 3, 5, 3]]


def test_hole_is_connected_by_a_slit():
    mask = np.ones((3, 3), dtype=bool)
    mask[1, 1] = False
    # A slit from the top left corner of the hole (1, 1) up to (1, 0) on the outline and back.
    assert mask_to_polygons(mask) == [[0, 0, 1, 0, 1, 2, 2, 2, 2, 1, 1, 1, 1, 0, 3, 0, 3, 3, 0, 3]]


def test_diagonal_pixels_are_separate_parts():
    mask = np.array([[1, 0], [0, 1]], dtype=bool)
    assert mask_to_polygons(mask) == [[0, 0, 1, 0, 1, 1, 0, 1], [1, 1, 2, 1, 2, 2, 1, 2]]


@pytest.mark.parametrize("pattern", ["noise", "blobs", "few holes"])
def test_pycocotools_restores_the_same_pixels(pattern):
    random = np.random.default_rng(len(pattern))
    holes = 0
    for _ in range(700):
        height, width = random.integers(1, 20, 2)
        noise = random.random((height + 2, width + 2))
        if pattern == "blobs":
            windows = np.lib.stride_tricks.sliding_window_view(noise, (3, 3))
            mask = windows.mean((2, 3)) < 0.5
        else:
            mask = noise[1:-1, 1:-1] < (random.random() if pattern == "noise" else 0.93)
        before = mask.copy()
        left, top, right, bottom = (int(number) for number in random.integers(0, 4, 4))
        whole = np.pad(mask, ((top, bottom), (left, right)))
        polygons = mask_to_polygons(mask, (left, top))
        np.testing.assert_array_equal(rasterised(polygons, *whole.shape), whole)
        np.testing.assert_array_equal(mask, before)
        assert len(polygons) == count_parts(mask)
        assert all(count_parts(rasterised([one], *whole.shape)) == 1 for one in polygons)
        holes += count_parts(np.pad(~mask, 1, constant_values=True)) > 1
    assert holes > 50


def ring_mask(ring: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels whose centres are inside a ring, by the even-odd rule."""
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.zeros((height, width), dtype=bool)
    for (x1, y1), (x2, y2) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if x1 == x2:  # edges are horizontal or vertical
            inside ^= (min(y1, y2) < y) & (y < max(y1, y2)) & (x < x1)
    return inside


def test_no_mask_has_no_rings():
    assert mask_to_rings(np.zeros((3, 4), dtype=bool)) == []


def test_hole_is_a_ring_of_its_own():
    mask = np.ones((3, 3), dtype=bool)
    mask[1, 1] = False
    ((outer, (hole,)),) = mask_to_rings(mask, (10, 20))
    assert outer.tolist() == [[10, 20], [13, 20], [13, 23], [10, 23]]
    assert sorted(hole.tolist()) == [[11, 21], [11, 22], [12, 21], [12, 22]]


def test_part_that_touches_itself_has_a_hole_instead():
    # The background in the middle is connected to the outside by a corner only.
    mask = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=bool)
    ((outer, (hole,)),) = mask_to_rings(mask)
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert len(outer) == 6


@pytest.mark.parametrize("pattern", ["noise", "blobs", "nested"])
def test_rings_are_valid_and_give_the_same_pixels(pattern):
    shapely = pytest.importorskip("shapely", reason="shapely is in the extra 'dev'")
    random = np.random.default_rng(len(pattern))
    holes = 0
    for _ in range(300):
        height, width = random.integers(1, 20, 2)
        mask = random.random((height, width)) < random.uniform(0.2, 0.95)
        if pattern == "blobs":
            mask = np.kron(mask, np.ones((3, 3), dtype=bool))[:height, :width]
        elif pattern == "nested":
            y, x = np.mgrid[:height, :width]
            mask |= np.maximum(abs(y - height // 2), abs(x - width // 2)) % 4 == 1
        restored = np.zeros_like(mask)
        parts = mask_to_rings(mask)
        assert len(parts) == count_parts(mask)
        for outer, inner in parts:
            for ring in (outer, *inner):
                restored ^= ring_mask(ring, *mask.shape)
            holes += len(inner)
            assert shapely.Polygon(outer, inner).is_valid
        np.testing.assert_array_equal(restored, mask)
        area = sum(shapely.Polygon(outer, inner).area for outer, inner in parts)
        assert area == mask.sum()
        assert shapely.MultiPolygon(parts).is_valid
    assert holes > 20
