"""Values of more than 8 bits become 0 to 255 without losing objects to offsets and outliers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from meinst.data.images import ImageError, read_image, to_rgb
from meinst.images.intensity import InputOptions, Stretch, to_eight_bits

# Grey 40 with three bright squares, as in a microscope image; (90, 110) uint8.
SCENE = np.full((90, 110), 40, np.uint8)
SCENE[10:40, 10:40], SCENE[50:80, 20:50], SCENE[30:60, 70:100] = 90, 200, 250


def stretched(values: Any, rule: str = "percentile") -> tuple[np.ndarray, Stretch]:
    pixels, stretch = to_eight_bits(np.asarray(values), InputOptions(rule))
    assert pixels.dtype == np.uint8
    assert stretch is not None
    return pixels, stretch


def test_eight_bits_are_unchanged_by_every_rule() -> None:
    for rule in ("percentile", "full", "0:9"):
        pixels, stretch = to_eight_bits(SCENE, InputOptions(rule))
        assert pixels is SCENE
        assert stretch is None
        np.testing.assert_array_equal(to_rgb(SCENE, intensity=rule)[..., 1], SCENE)
    assert to_eight_bits(np.zeros((0, 3), np.uint8))[0].shape == (0, 3)
    pixels, stretch = to_eight_bits(SCENE > 100)
    assert stretch is None
    np.testing.assert_array_equal(pixels, np.where(SCENE > 100, 255, 0))


@pytest.mark.parametrize(
    "values",
    [
        SCENE.astype(np.uint16),
        SCENE.astype(np.uint16) * 257,
        SCENE.astype(np.int64),
        SCENE.astype(np.float32),
        SCENE / 255,
        SCENE.astype(np.float64) * 257,
    ],
    ids=["uint16", "x257", "int64", "float32", "float0to1", "float0to65535"],
)
def test_well_exposed_images_equal_eight_bits(values: np.ndarray) -> None:
    np.testing.assert_array_equal(stretched(values)[0], SCENE)


@pytest.mark.parametrize("offset", [2000, 30_000])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int32, np.float32])
def test_offsets_are_removed(offset: int, dtype: type) -> None:
    # Percentiles 0.1 and 99.9 are 40 and 250: (v - 40) * 255 / 210.
    pixels, stretch = stretched((SCENE.astype(np.int64) + offset).astype(dtype))
    expected = np.floor((SCENE - 40.0) * 255 / 210 + 0.5)
    np.testing.assert_array_equal(pixels, expected)
    assert (stretch.low, stretch.high) == (40 + offset, 250 + offset)
    assert stretch.to_dict() == {
        "low": 40.0 + offset,
        "high": 250.0 + offset,
        "rule": "percentile",
        "dtype": np.dtype(dtype).name,
    }


def test_negative_values() -> None:
    pixels, stretch = stretched(SCENE.astype(np.int16) * 16 - 1000)
    assert (stretch.low, stretch.high) == (-360, 3000)
    np.testing.assert_array_equal(pixels, np.floor((SCENE - 40.0) * 255 / 210 + 0.5))
    np.testing.assert_array_equal(stretched(SCENE / 255 - 0.5)[0], pixels)


def test_scale_of_floats_does_not_matter() -> None:
    first = stretched(SCENE / 65535)[0]
    assert first.max() == 255
    for factor in (1e-30, 1e-3, 0.7, 1e30):
        difference = stretched(SCENE / 65535 * factor)[0].astype(int) - first
        assert np.abs(difference).max() <= 1  # rounding


@pytest.mark.parametrize("bad", [0, 65535])
def test_few_hot_or_dead_pixels_change_nothing_else(bad: int) -> None:
    values = SCENE.astype(np.uint16) * 16 + 2000
    expected = stretched(values)[0]
    values[5, 7], values[88, 100] = bad, bad
    pixels = stretched(values)[0]
    changed = pixels != expected
    assert changed.sum() <= 2
    assert (pixels[changed] == (255 if bad else 0)).all()


def test_values_that_are_not_finite_become_black() -> None:
    values = SCENE / 255
    expected = stretched(values)[0]
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = stretched(values)[0]
    assert (pixels[0, :3] == 0).all()
    np.testing.assert_array_equal(pixels[1:], expected[1:])
    for rule in ("percentile", "full"):
        assert (stretched(np.full((4, 5), np.nan), rule)[0] == 0).all()


@pytest.mark.parametrize("value", [0, 7, 255, 400, 65535, -3, 0.0, 0.5, 1.0, 7.5, -1e9])
@pytest.mark.parametrize("rule", ["percentile", "full", "0:4095"])
def test_constant_images_are_uniform(value: float, rule: str) -> None:
    pixels = stretched(np.full((64, 64), value, np.int32 if isinstance(value, int) else None), rule)
    assert len(np.unique(pixels[0])) == 1


@pytest.mark.parametrize(
    ("mean", "deviation", "dtype"),
    [(100, 3, np.uint16), (30_000, 1000, np.uint16), (0.01, 0.002, np.float32)],
)
def test_noise_alone_is_not_blown_up(mean: float, deviation: float, dtype: type) -> None:
    noise = np.random.default_rng(0).normal(mean, deviation, (256, 256)).astype(dtype)
    # Percentiles alone would give a range of 6.2 standard deviations, so 255 / 6.2 = 41 of noise.
    assert stretched(noise)[0].std() < 12


def test_sparse_objects_are_not_clipped_away() -> None:
    # 25 of 160,000 pixels: 0.016 %, so the percentiles lie in the noise of the ground.
    noise = np.random.default_rng(0).normal(500, 5, (400, 400))
    noise[200:205, 200:205] = 3000
    pixels = stretched(noise.astype(np.uint16))[0]
    assert (pixels[200:205, 200:205] == 255).all()
    assert pixels[:190].max() < 100


def test_channels_are_stretched_together() -> None:
    rgb = np.stack((SCENE * 16.0, SCENE * 8.0, SCENE * 2.0), axis=-1).astype(np.uint16) + 300
    pixels, stretch = stretched(rgb)
    assert stretch.low == 300 + 80
    np.testing.assert_allclose(
        pixels[..., 0] / 255.0, (rgb[..., 0] - 380) / (4300 - 380), atol=0.01
    )
    np.testing.assert_allclose(
        pixels[..., 2] / 255.0, (rgb[..., 2] - 380) / (4300 - 380), atol=0.01
    )


def test_opacity_is_not_part_of_the_range() -> None:
    rgba = np.full((20, 30, 4), 65535, np.uint16)
    rgba[..., :3] = np.linspace(1000, 1900, 30).astype(np.uint16)[:, None]
    np.testing.assert_array_equal(to_rgb(rgba), to_rgb(rgba[..., :3]))
    rgba[0, :, 3] = 0
    assert (to_rgb(rgba)[0] == 255).all()


def test_other_rules() -> None:
    values = SCENE.astype(np.uint16) + 2000
    values[0, 0] = 65535
    pixels, stretch = stretched(values, "full")
    assert (stretch.low, stretch.high) == (2040, 65535)
    assert pixels[0, 1] == 0
    # (2090 - 2000) * 255 / 1000 = 22.95 and (2250 - 2000) * 255 / 1000 = 63.75
    pixels, stretch = stretched(values, "2000:3000")
    assert (stretch.low, stretch.high, stretch.rule) == (2000, 3000, "2000:3000")
    assert pixels[20, 20] == 23
    assert pixels[40, 80] == 64
    assert pixels[0, 0] == 255
    assert InputOptions("-1e3:.5").limits() == (-1000, 0.5)


@pytest.mark.parametrize("rule", ["", "best", "1", "1:", ":2", "2:1", "3:3", "nan:1", "0:1e999", 5])
def test_unknown_rules_are_rejected(rule: Any) -> None:
    with pytest.raises(ValueError, match=r"intensity must be percentile, full or LOW:HIGH.*got"):
        InputOptions(rule)


def test_sampled_rows_of_large_images_give_the_range() -> None:
    rows = np.arange(3000, dtype=np.uint16)[:, None] * 10 + 500
    _, stretch = stretched(np.repeat(rows, 3000, axis=1))  # 9 million values: every third row
    assert math.isclose(stretch.low, 500 + 30, abs_tol=60)
    assert math.isclose(stretch.high, 500 + 29_970, abs_tol=60)


def test_arrays_that_are_no_images_are_named() -> None:
    with pytest.raises(ImageError, match="complex128"):
        read_image(np.zeros((2, 2), dtype=complex))
    with pytest.raises(ValueError, match="object"):
        to_eight_bits(np.array([["a"]], dtype=object))
