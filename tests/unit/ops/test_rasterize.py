"""Rasterisation compared with pycocotools and torchvision's RoIAlign."""

from collections.abc import Callable

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from numpy.typing import NDArray

from meinst.ops.rasterize import rasterize_polygons, sample_bitmaps

# pycocotools 2.0.11 uses a deprecated interface of NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Floats = NDArray[np.float64]


def by_pycocotools(parts: list[Floats], box: Floats, size: int) -> NDArray[np.uint8]:
    scaled = []
    for part in parts:
        points = part.copy()
        points[0::2] = (points[0::2] - box[0]) * (size / max(box[2] - box[0], 0.1))
        points[1::2] = (points[1::2] - box[1]) * (size / max(box[3] - box[1], 0.1))
        scaled.append(points.tolist())
    runs = coco_mask.frPyObjects(scaled, size, size)
    return coco_mask.decode(coco_mask.merge(runs))


BOW_TIE = [[0.0, 0], [5, 5], [5, 0], [0, 5]]
# Polygons (n, 2) as in annotation files, and some that should not occur in them.
GENERATORS: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "self-intersecting": lambda rng, n: rng.random((n, 2)) * 100,
    "tiny": lambda rng, n: rng.random((n, 2)) * 0.5 + 50,
    "whole numbers": lambda rng, n: rng.integers(0, 100, (n, 2)).astype(float),
    "halves": lambda rng, n: np.round(rng.random((n, 2)) * 200) / 2,
    "far outside": lambda rng, n: rng.normal(0, 500, (n, 2)),
    "huge": lambda rng, n: rng.normal(0, 4e4, (n // 6 + 3, 2)),
    "collinear": lambda rng, n: np.outer(rng.random(n), [80, 40]) + 3.0,
    "vertical line": lambda rng, n: np.stack([np.full(n, 7.3), rng.random(n) * 90], axis=1),
    "repeated points": lambda rng, n: np.repeat(rng.random((n, 2)) * 100, 3, axis=0),
    "one point": lambda rng, n: np.tile(rng.random((1, 2)) * 100, (n, 1)),
    "rectangle": lambda rng, n: rng.random(2) * 60 + [[0, 0], [n, 0], [n, 9], [0, 9]],
    "diagonals": lambda rng, n: rng.integers(-2, 3, (4, 2)) + n * np.array(BOW_TIE),
    "star": lambda rng, n: (
        50
        + (rng.random((n, 1)) * 20 + 20)
        * np.stack([np.cos(np.arange(n) * 6.283 / n), np.sin(np.arange(n) * 6.283 / n)], axis=1)
    ),
}


def boxes_for(points: Floats, rng: np.random.Generator) -> list[Floats]:
    low, high = points.min(axis=0), points.max(axis=0)
    corners = np.sort(rng.random((2, 2)) * 100, axis=0)
    boxes = [
        np.array([*low, *high]),
        np.array([*np.floor(low), *np.ceil(high)]),
        np.array([0.0, 0.0, 28.0, 28.0]),
    ]
    if (high - low).max() > 500:
        return boxes  # pycocotools would take minutes
    return [
        *boxes,
        corners.ravel(),
        np.array([*low, low[0], high[1]]),  # no width: treated as 0.1
    ]


def test_no_polygons() -> None:
    masks = rasterize_polygons([], np.zeros((0, 4)), 28)
    assert masks.shape == (0, 28, 28)
    assert masks.dtype == np.uint8


def test_instance_without_parts_gives_an_empty_mask() -> None:
    assert rasterize_polygons([[]], np.array([[0.0, 0, 1, 1]]), 4).sum() == 0


def test_left_half_of_the_box() -> None:
    # The box is 10 wide and 20 high; x from 3 to 8 covers the first half of 4 columns.
    polygon = np.array([3.0, 5, 8, 5, 8, 25, 3, 25])
    mask = rasterize_polygons([[polygon]], np.array([[3.0, 5, 13, 25]]), 4)[0]
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0]] * 4)


@pytest.mark.parametrize("size", [28, 14, 7, 1, 57])
@pytest.mark.parametrize("name", GENERATORS)
def test_equals_pycocotools(name: str, size: int) -> None:
    # 13 generators x 5 sizes x 20 polygons x 5 boxes (3 for large ones): 6,100 masks.
    rng = np.random.default_rng([list(GENERATORS).index(name), size])
    polygons, boxes = [], []
    for _ in range(20):
        points = GENERATORS[name](rng, int(rng.integers(3, 25)))
        for box in boxes_for(points, rng):
            polygons.append([points.ravel()])
            boxes.append(box)
    masks = rasterize_polygons(polygons, np.array(boxes), size)
    expected = np.array([by_pycocotools(p, b, size) for p, b in zip(polygons, boxes, strict=True)])
    assert int((masks != expected).sum()) == 0


def test_parts_are_merged_by_union() -> None:
    rng = np.random.default_rng(5)
    polygons = [[rng.random(10) * 40 for _ in range(rng.integers(1, 5))] for _ in range(200)]
    boxes = np.tile([2.0, 3, 37, 39], (200, 1))
    expected = np.array([by_pycocotools(p, b, 28) for p, b in zip(polygons, boxes, strict=True)])
    masks = rasterize_polygons(polygons, boxes, 28)
    np.testing.assert_array_equal(masks, expected)
    # Overlaps stay filled: repeating a part does not change the mask.
    twice = rasterize_polygons([[p[0], p[0]] for p in polygons], boxes, 28)
    np.testing.assert_array_equal(twice, rasterize_polygons([[p[0]] for p in polygons], boxes, 28))
    assert twice.any()


def test_parts_of_fewer_than_three_points_are_empty() -> None:
    square = np.array([1.0, 1, 9, 1, 9, 9, 1, 9])
    short = [np.array([]), np.array([5.0, 5]), np.array([0.0, 0, 10, 10])]
    box = np.array([[0.0, 0, 10, 10]])
    assert rasterize_polygons([short], box, 28).sum() == 0
    np.testing.assert_array_equal(
        rasterize_polygons([[*short, square]], box, 28), rasterize_polygons([[square]], box, 28)
    )


def test_polygon_beyond_32_bits_covers_the_grid() -> None:
    # 32-bit coordinates would overflow in pycocotools.
    square = np.array([-1e30, -1e30, 1e30, -1e30, 1e30, 1e30, -1e30, 1e30])
    assert rasterize_polygons([[square]], np.array([[0.0, 0, 10, 10]]), 28).min() == 1


def test_arguments_are_not_changed_and_instances_are_independent() -> None:
    rng = np.random.default_rng(2)
    polygons = [[rng.random(12) * 50] for _ in range(30)]
    boxes = np.tile([5.0, 5, 40, 45], (30, 1))
    before = [polygon[0].copy() for polygon in polygons], boxes.copy()
    together = rasterize_polygons(polygons, boxes, 28)
    for polygon, copy in zip(polygons, before[0], strict=True):
        np.testing.assert_array_equal(polygon[0], copy)
    np.testing.assert_array_equal(boxes, before[1])
    alone = [rasterize_polygons([p], b[None], 28)[0] for p, b in zip(polygons, boxes, strict=True)]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("polygon", "boxes", "message"),
    [
        ([0.0, 0, 1, 1, 2], [[0.0, 0, 1, 1]], "part 1 has 5"),
        ([0.0, 0, 1, np.nan, 2, 3], [[0.0, 0, 1, 1]], "part 1 contains NaN"),
        ([0.0, 0, 1, 1, 2, 3], [[0.0, 0, np.inf, 1]], "box 0 is"),
        ([0.0, 0, 1, 1, 2, 3], np.zeros((2, 4)), r"\(1, 4\).*got \(2, 4\)"),
    ],
)
def test_faulty_polygons_are_rejected(
    polygon: list[float], boxes: list[list[float]], message: str
) -> None:
    parts = [np.array([0.0, 0, 1, 0, 1, 1]), np.array(polygon)]
    with pytest.raises(ValueError, match=message):
        rasterize_polygons([parts], np.array(boxes), 28)


def by_roi_align(bitmap: NDArray[np.bool_], box: Floats, size: int) -> NDArray[np.bool_]:
    from torchvision.ops import roi_align

    image = torch.from_numpy(bitmap[None, None].astype(np.float32))
    boxes = [torch.from_numpy(box[None].astype(np.float32))]
    return (roi_align(image, boxes, (size, size), 1.0, 0, True)[0, 0] >= 0.5).numpy()


def random_bitmap(rng: np.random.Generator, variant: int) -> NDArray[np.bool_]:
    height, width = rng.integers(1, 110, 2)
    if variant == 0:
        return rng.random((height, width)) < 0.5
    bitmap = np.zeros((height, width), dtype=bool)
    if variant == 1:
        bitmap[rng.integers(0, height) :, rng.integers(0, width) :] = True
    else:
        y, x = np.mgrid[:height, :width]
        bitmap |= (y / height - rng.random()) ** 2 + (x / width - rng.random()) ** 2 < 0.2
    return bitmap


def test_no_bitmaps() -> None:
    masks = sample_bitmaps([], np.zeros((0, 2), dtype=np.int64), np.zeros((0, 4)), 28)
    assert masks.shape == (0, 28, 28)


def test_box_of_the_size_of_the_grid_copies_the_pixels() -> None:
    bitmap = np.random.default_rng(0).random((6, 6)) < 0.5
    box = np.array([[1.0, 2, 5, 6]])
    mask = sample_bitmaps([bitmap], np.zeros((1, 2), dtype=np.int64), box, 4)[0]
    np.testing.assert_array_equal(mask, bitmap[2:6, 1:5])


@pytest.mark.parametrize("size", [28, 14, 5])
def test_equals_roi_align(size: int) -> None:
    rng = np.random.default_rng(size)
    filled = 0
    for k in range(400):
        bitmap = random_bitmap(rng, k % 3)
        sides = np.array(bitmap.shape[::-1])
        box = (np.sort(rng.random((2, 2)) * 1.3 - 0.15, axis=0) * sides).ravel()
        if k % 2:
            box = np.round(box)  # sometimes of no width
        if k % 5 == 0:
            box = np.array([0.0, 0, *sides])
        mask = sample_bitmaps(
            [bitmap], np.zeros((1, 2), dtype=np.int64), box[None], size, np.array([bitmap.shape])
        )[0]
        np.testing.assert_array_equal(mask, by_roi_align(bitmap, box, size))
        filled += int(mask.sum())
    assert filled > 1000


def test_crop_gives_the_same_mask_as_the_whole_image() -> None:
    rng = np.random.default_rng(8)
    for _ in range(100):
        image = np.zeros((90, 120), dtype=bool)
        x1, x2 = np.sort(rng.choice(121, 2, replace=False))
        y1, y2 = np.sort(rng.choice(91, 2, replace=False))
        image[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.8
        box = np.array([x1, y1, x2, y2]) + rng.normal(0, 1, 4)
        offsets, sizes = np.array([[x1, y1]]), np.array([[90, 120]])
        mask = sample_bitmaps([image[y1:y2, x1:x2]], offsets, box[None], 28, sizes)[0]
        np.testing.assert_array_equal(mask, by_roi_align(image, box, 28))


def test_without_image_sizes_the_outside_is_background() -> None:
    rng = np.random.default_rng(9)
    for k in range(100):
        bitmap = random_bitmap(rng, k % 3)
        box = np.array([0.0, 0, *bitmap.shape[::-1]]) + rng.normal(0, 2, 4)
        mask = sample_bitmaps([bitmap], np.array([[40, 40]]), box[None] + 40, 28)[0]
        np.testing.assert_array_equal(mask, by_roi_align(np.pad(bitmap, 40), box + 40, 28))


def test_any_memory_layout_is_accepted_and_bitmaps_are_not_changed() -> None:
    rng = np.random.default_rng(3)
    bitmap = (rng.random((40, 30)) < 0.5).astype(np.uint8)
    copy = bitmap.copy()
    offsets, box = np.zeros((1, 2), dtype=np.int64), np.array([[2.0, 3, 25, 37]])
    expected = sample_bitmaps([bitmap], offsets, box, 28)
    for other in (bitmap.astype(bool), np.asfortranarray(bitmap), bitmap * 255):
        np.testing.assert_array_equal(sample_bitmaps([other], offsets, box, 28), expected)
    np.testing.assert_array_equal(bitmap, copy)


def test_faulty_bitmaps_are_rejected() -> None:
    offsets, box = np.zeros((1, 2), dtype=np.int64), np.array([[0.0, 0, 4, 4]])
    with pytest.raises(ValueError, match="bitmap 0 is float64"):
        sample_bitmaps([np.zeros((4, 4))], offsets, box, 28)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"bitmap 0 is bool of shape \(4,\)"):
        sample_bitmaps([np.zeros(4, dtype=bool)], offsets, box, 28)
    with pytest.raises(ValueError, match=r"offsets must be \(1, 2\).*got \(2, 2\)"):
        sample_bitmaps([np.zeros((4, 4), dtype=bool)], np.zeros((2, 2), dtype=np.int64), box, 28)
    with pytest.raises(ValueError, match="Boxes must be finite"):
        sample_bitmaps([np.zeros((4, 4), dtype=bool)], offsets, box * np.nan, 28)
