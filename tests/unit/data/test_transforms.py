from __future__ import annotations

import dataclasses
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from meinst.data.color import jitter_color
from meinst.data.shapes import Instances, bitmap_from_counts
from meinst.data.transforms import (
    AugmentOptions,
    Geometry,
    ResizeOptions,
    resample,
    resize_image,
    resized_size,
    sample_geometry,
    transform_instances,
)
from meinst.types import Target

NONE = np.zeros((0, 4))
STILL = AugmentOptions(horizontal_flip=0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(height: int, width: int, size: tuple[int, int] | None = None, **turns: bool) -> Geometry:
    return Geometry((0.0, 0.0, float(width), float(height)), size or (height, width), **turns)


def to_instance(mask: np.ndarray, box: tuple[float, ...], form: str) -> Instances:
    """One instance of a full-size mask: its bitmap, or the outlines of its columns."""
    if form == "bitmap":
        padded = np.concatenate(([0], mask.T.reshape(-1), [0])).astype(int)
        changes = np.flatnonzero(np.diff(padded))
        counts = np.diff(np.concatenate(([0], changes, [mask.size])))
        shape = bitmap_from_counts(counts, *mask.shape)
        assert shape is not None
    else:
        columns = [(x, np.flatnonzero(mask[:, x])) for x in range(mask.shape[1])]
        top = [(x + dx, ys[0]) for x, ys in columns if len(ys) for dx in (0, 1)]
        low = [(x + dx, ys[-1] + 1) for x, ys in columns if len(ys) for dx in (0, 1)]
        shape = (np.array(top + low[::-1], dtype=np.float64).reshape(-1),)
    return Instances(np.array([box]), np.array([1]), (shape,), np.zeros(1, bool))


def blob(height: int = 90, width: int = 120) -> tuple[np.ndarray, tuple[float, ...]]:
    """A lopsided blob without holes, each column in one piece."""
    y, x = np.mgrid[:height, :width] + 0.5
    mask = ((x - 50) / 35) ** 2 + ((y - 45) / 25) ** 2 < 1
    mask &= y > 40 - 0.5 * (x - 40)  # cut off the upper left
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask, (columns[0], rows[0], columns[-1] + 1.0, rows[-1] + 1.0)


def paste(target: Target, height: int, width: int) -> np.ndarray:
    """``(G, H, W)`` bool: target masks at pixel centres, by nearest neighbour."""
    size = target.masks.shape[-1]
    result = np.zeros((len(target.labels), height, width), dtype=bool)
    for g, (x1, y1, x2, y2) in enumerate(target.boxes.tolist()):
        for row, column in product(range(height), range(width)):
            u, v = (column + 0.5 - x1) / (x2 - x1), (row + 0.5 - y1) / (y2 - y1)
            if 0 <= u < 1 and 0 <= v < 1:
                result[g, row, column] = bool(target.masks[g, int(v * size), int(u * size)])
    return result


@pytest.mark.parametrize(
    ("height", "width", "shorter", "longer", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),  # 640 * 800 / 480 = 1066.67
        (640, 480, 800, 1333, (1067, 800)),
        (400, 1000, 800, 1333, (533, 1333)),  # 2000 > 1333, so 800 * 1333 / 2000 = 533.2
        (500, 500, 512, 1333, (512, 512)),
        (300, 400, 480, 480, (360, 480)),  # 640 > 480, so 480 * 480 / 640 = 360
        (1, 1000, 480, 480, (1, 480)),  # 0.48, but at least 1 pixel
        (427, 640, 800, 1333, (800, 1199)),  # 640 * 800 / 427 = 1199.06
        (3, 2, 5, 100, (8, 5)),  # 7.5 is rounded up
    ],
)
def test_resized_size(
    height: int, width: int, shorter: int, longer: int, expected: tuple[int, int]
) -> None:
    assert resized_size(height, width, ResizeOptions(shorter, longer)) == expected


def test_identity_is_an_exact_copy() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    before = image.copy()
    for result in (
        whole(30, 40).image(image),
        resize_image(image, ResizeOptions(30, 40)),
        resample(image, (30, 40)),
    ):
        np.testing.assert_array_equal(result, before)
        assert not np.shares_memory(result, image)
    window = Geometry((5.0, 3.0, 25.0, 13.0), (10, 20), True, True, False)
    expected = image[3:13, 5:25].swapaxes(0, 1)[:, ::-1]
    np.testing.assert_array_equal(window.image(image), expected)
    np.testing.assert_array_equal(image, before)


def test_resampling_equals_pillow() -> None:
    image = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    expected = Image.fromarray(image).resize((100, 75), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(resize_image(image, ResizeOptions(75, 100)), np.array(expected))
    # A fractional window equals a crop of the resized image, except near the borders.
    enlarged = np.array(Image.fromarray(image).resize((160, 120), Image.Resampling.BILINEAR))
    part = resample(image, (51, 61), (10 / 4, 20 / 4, 71 / 4, 71 / 4))
    difference = part.astype(int) - enlarged[20:71, 10:71]
    assert np.abs(difference[4:-4, 4:-4]).max() <= 1


def test_points_by_hand() -> None:
    # Window 10..30 by 20..30, doubled: (15, 22) -> (10, 4) in 40 x 20.
    window = (10.0, 20.0, 30.0, 30.0)
    point = np.array([[15.0, 22.0]])
    expected = {
        (False, False, False): (10, 4),
        (False, True, False): (30, 4),
        (False, False, True): (10, 16),
        (True, False, False): (4, 10),
        (True, True, False): (16, 10),
        (True, False, True): (4, 30),
        (True, True, True): (16, 30),
    }
    for turns, result in expected.items():
        np.testing.assert_array_equal(Geometry(window, (20, 40), *turns).points(point), [result])
    boxes = np.array([[15.0, 22.0, 20.0, 24.0]])  # (10, 4, 20, 8) doubled
    turned = Geometry(window, (20, 40), True, False, True).boxes(boxes)
    np.testing.assert_array_equal(turned, [[4, 20, 8, 30]])
    assert Geometry(window, (20, 40)).boxes(NONE).shape == (0, 4)


def test_no_instances() -> None:
    none = Instances(NONE, np.zeros(0, np.int64), (), np.zeros(0, bool))
    target = transform_instances(none, whole(10, 10), 14)
    assert target.boxes.shape == (0, 4)
    assert target.boxes.dtype == torch.float32
    assert target.labels.shape == (0,)
    assert target.labels.dtype == torch.int64
    assert target.masks.shape == (0, 14, 14)
    assert target.masks.dtype == torch.uint8


@pytest.mark.parametrize("form", ["bitmap", "polygon"])
@pytest.mark.parametrize("turns", list(product((False, True), repeat=3)))
@pytest.mark.parametrize(
    ("window", "size"),
    [
        ((0.0, 0.0, 120.0, 90.0), (60, 100)),
        ((40.25, 10.5, 110.0, 60.0), (45, 70)),  # cuts the left side
        ((30.0, 50.5, 60.75, 80.0), (60, 62)),
    ],
)
def test_masks_follow_the_image(
    form: str,
    turns: tuple[bool, bool, bool],
    window: tuple[float, float, float, float],
    size: tuple[int, int],
) -> None:
    mask, box = blob()
    instances = to_instance(mask, box, form)
    geometry = Geometry(window, size, *turns)
    image = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255
    visible = geometry.image(image)[..., 0] >= 128
    target = transform_instances(instances, geometry, 28)
    (pasted,) = paste(target, *visible.shape)
    iou = (pasted & visible).sum() / (pasted | visible).sum()
    assert iou > 0.93
    # The box is tight within a pixel.
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    tight = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    np.testing.assert_allclose(target.boxes[0].numpy(), tight, atol=1.5)
    assert target.labels.tolist() == [1]


def test_bitmaps_are_flipped_exactly() -> None:
    mask, box = blob()
    instances = to_instance(mask, box, "bitmap")
    plain = transform_instances(instances, whole(90, 120), 28).masks[0].numpy()
    assert plain.any()
    turned = whole(90, 120, None, transpose=True, vertical_flip=True)
    result = transform_instances(instances, turned, 28).masks[0].numpy()
    np.testing.assert_array_equal(result, plain.T[::-1])
    resized = transform_instances(instances, whole(90, 120, (200, 77)), 28).masks[0].numpy()
    np.testing.assert_array_equal(resized, plain)


def test_annotated_box_is_kept_unless_the_window_cuts_it() -> None:
    mask, _ = blob()
    loose = (1.0, 2.0, 119.0, 88.0)
    for form in ("bitmap", "polygon"):
        instances = to_instance(mask, loose, form)
        target = transform_instances(instances, whole(90, 120, (180, 240)), 28)
        np.testing.assert_array_equal(target.boxes.numpy(), [[2, 4, 238, 176]])
        cut = transform_instances(instances, Geometry((0.0, 0.0, 60.0, 90.0), (90, 60)), 28)
        x1, y1, x2, y2 = cut.boxes[0].tolist()
        assert x1 > 10
        assert y1 > 10
        assert x2 == 60
        assert y2 < 80


@pytest.mark.parametrize("form", ["bitmap", "polygon"])
def test_hardly_visible_instances_are_dropped(form: str) -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    instances = to_instance(mask, (10.0, 10.0, 30.0, 30.0), form)
    window = (0.0, 0.0, 15.0, 20.0)  # 5 * 10 of 20 * 20 pixels: an eighth
    for least, left in ((0.12, 1), (0.13, 0)):
        target = transform_instances(instances, Geometry(window, (20, 15)), 14, least)
        assert len(target.labels) == left
    outside = Geometry((0.0, 0.0, 10.0, 10.0), (10, 10))
    assert len(transform_instances(instances, outside, 14).labels) == 0
    for side, left in ((2, 1), (1, 0)):  # 20 pixels of 40: 1 pixel of 2, half a pixel of 1
        target = transform_instances(instances, whole(40, 40, (side, 40)), 14)
        assert len(target.labels) == left


def test_crowds_and_invisible_instances_are_dropped_in_order() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[[3, 3, 36], [3, 36, 36]] = True  # the window contains an empty part of its box
    corner = to_instance(mask, (3.0, 3.0, 37.0, 37.0), "bitmap")
    square = (np.array([1.0, 20, 9, 20, 9, 30, 1, 30]),)
    boxes = np.concatenate((corner.boxes, [[1.0, 20, 9, 30]] * 3))
    instances = Instances(
        boxes,
        np.array([0, 4, 5, 6]),
        (corner.shapes[0], square, square, square),
        np.array([False, False, True, False]),
    )
    before = [part.copy() for part in square], boxes.copy()
    target = transform_instances(instances, Geometry((0.0, 10.0, 30.0, 40.0), (30, 30)), 14)
    assert target.labels.tolist() == [4, 6]
    np.testing.assert_array_equal(target.boxes.numpy(), [[1, 10, 9, 20]] * 2)
    np.testing.assert_array_equal(square, before[0])
    np.testing.assert_array_equal(instances.boxes, before[1])


def test_geometry_without_randomness() -> None:
    options = ResizeOptions(60, 100)
    result = sample_geometry(30, 40, NONE, options, STILL, seeded(0))
    assert result == Geometry((0.0, 0.0, 40.0, 30.0), (60, 80))
    always = AugmentOptions(horizontal_flip=1.0, vertical_flip=1.0, transpose=1.0)
    result = sample_geometry(30, 40, NONE, options, always, seeded(0))
    assert result == Geometry((0.0, 0.0, 40.0, 30.0), (60, 80), True, True, True)


def test_shorter_sides_are_uniform_and_keep_the_limit() -> None:
    augment = dataclasses.replace(STILL, shorter_sides=(20, 40, 90))
    generator = seeded(1)
    sizes = [
        sample_geometry(30, 40, NONE, ResizeOptions(60, 80), augment, generator).size
        for _ in range(600)
    ]
    assert set(sizes) == {(20, 27), (40, 53), (60, 80)}  # 90 would make the longer side 120
    for size in set(sizes):
        assert 150 < sizes.count(size) < 250


def test_scale_jitter_is_uniform_in_the_logarithm() -> None:
    augment = dataclasses.replace(STILL, scale_jitter=(0.25, 4.0))
    generator = seeded(2)
    factors = np.array(
        [
            sample_geometry(500, 500, NONE, ResizeOptions(500, 500), augment, generator).size[0]
            / 500
            for _ in range(1000)
        ]
    )
    assert factors.min() >= 0.25
    assert factors.max() <= 4
    for low, high in ((0.25, 0.5), (0.5, 1), (1, 2), (2, 4)):  # four equal parts
        assert 0.2 < ((factors > low) & (factors <= high)).mean() < 0.3


def test_random_windows_are_inside_the_image_and_contain_instances() -> None:
    augment = AugmentOptions(scale_jitter=(0.5, 2.0), crop_size=64)
    boxes = np.array([[3.0, 5.0, 9.0, 11.0], [180.0, 90.0, 200.0, 120.0]])
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    generator = seeded(3)
    hits = np.zeros(2)
    for _ in range(400):
        geometry = sample_geometry(150, 200, boxes, ResizeOptions(150, 200), augment, generator)
        x1, y1, x2, y2 = geometry.window
        assert 0 <= x1 < x2 <= 200
        assert 0 <= y1 < y2 <= 150
        height, width = geometry.size
        assert max(height, width) <= 64
        # The window has the same scale in both directions.
        assert width / (x2 - x1) == pytest.approx(height / (y2 - y1), rel=0.01)
        mapped = geometry.points(centers)
        limits = geometry.points(np.array([[x1, y1], [x2, y2]]))
        shown = (mapped >= limits.min(0) - 1).all(1) & (mapped <= limits.max(0) + 1).all(1)
        hits += shown
        assert hits.sum() > 0 or _ < 10
    assert (hits > 0.4 * 400).all()  # each is chosen in 45 of 100 cases
    assert hits.sum() > 0.85 * 400


def test_samples_depend_only_on_the_generator() -> None:
    augment = AugmentOptions(scale_jitter=(0.5, 2.0), crop_size=64, vertical_flip=0.5)
    options = ResizeOptions(150, 200)
    torch.manual_seed(5)
    first = [sample_geometry(150, 200, NONE, options, augment, seeded(i)) for i in range(20)]
    torch.manual_seed(6)
    assert [
        sample_geometry(150, 200, NONE, options, augment, seeded(i)) for i in range(20)
    ] == first
    assert len(set(first)) == 20
    # Any options consume the same number of random values.
    one, other = seeded(7), seeded(7)
    sample_geometry(150, 200, NONE, options, augment, one)
    sample_geometry(150, 200, np.array([[0.0, 0, 9, 9]]), options, STILL, other)
    assert torch.equal(one.get_state(), other.get_state())


def test_no_jitter_returns_the_image() -> None:
    image = np.random.default_rng(4).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    assert jitter_color(image, AugmentOptions(), seeded(0)) is image


def test_color_jitter_by_hand() -> None:
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[0], image[1] = (200, 40, 40), (100, 100, 100)
    before = image.copy()
    # Contrast: the mean of 88 (red as grey) and 100 is 94, and 94 + 6 * (0.5 to 1.5) = 97 to 103.
    for name, low, high in (
        ("brightness", 50, 150),
        ("contrast", 97, 103),
        ("saturation", 100, 100),
    ):
        colors = set()
        for seed in range(40):
            result = jitter_color(image, AugmentOptions(**{name: 0.5}), seeded(seed))
            assert low <= result[1, 0, 0] <= high
            colors.add(tuple(result[0, 0].tolist()))
        assert len(colors) > 10, name
    for seed in range(20):  # red shifts by less than half a circle; grey stays
        result = jitter_color(image, AugmentOptions(hue=0.5), seeded(seed))
        np.testing.assert_array_equal(result[1], image[1])
        assert sorted(result[0, 0].tolist())[::2] == pytest.approx([40, 200], abs=2)
    turned = [jitter_color(image, AugmentOptions(hue=0.05), seeded(s))[0, 0] for s in range(40)]
    assert len({tuple(pixel.tolist()) for pixel in turned}) > 8
    # 0.05 of a circle is 0.3 of a sixth: the middle channel rises to 40 + 0.3 * 160 = 88 at most.
    assert 80 < max(sorted(pixel.tolist())[1] for pixel in turned) <= 92
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize(
    "change",
    [
        {"shorter_sides": (0,)},
        {"scale_jitter": (0.0, 1.0)},
        {"scale_jitter": (2.0, 1.0)},
        {"crop_size": 0},
        {"hue": 0.6},
        {"brightness": -0.1},
        {"horizontal_flip": 1.1},
    ],
)
def test_options_out_of_range_are_rejected(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        AugmentOptions(**change)  # type: ignore[arg-type]


def test_sides_out_of_range_are_rejected() -> None:
    for sides in ((0, 10), (20, 10)):
        with pytest.raises(ValueError, match="shorter_side <= longer_side"):
            ResizeOptions(*sides)
