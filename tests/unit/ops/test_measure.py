from __future__ import annotations

import numpy as np
import pytest
import shapely
from drawn import drawn, shapes
from skimage.measure import regionprops

from meinst.ops.measure import channel_statistics, measure_shapes
from meinst.ops.paste import crop_masks


def test_no_masks() -> None:
    found = measure_shapes([], np.zeros((0, 2), np.int64))
    assert found.area.shape == (0,)
    assert found.centroid.shape == (0, 2)
    means, deviations = channel_statistics([], np.zeros((0, 2), np.int64), np.zeros((4, 5, 2)))
    assert means.shape == deviations.shape == (0, 2)


def test_one_pixel_and_none() -> None:
    """A pixel is a unit square: its second moments are 1 / 12, and 4 * sqrt(1 / 12) = 1.1547."""
    crops = [np.ones((1, 1), bool), np.zeros((2, 3), bool), np.zeros((0, 0), bool)]
    found = measure_shapes(crops, np.array([[7, 9], [1, 1], [0, 0]]))
    assert found.area.tolist() == [1, 0, 0]
    assert found.centroid[0].tolist() == [7.5, 9.5]
    assert found.major_axis[0] == found.minor_axis[0] == pytest.approx(1.1547, abs=1e-4)
    assert found.solidity[0] == 1
    for values in (found.perimeter, found.major_axis, found.orientation, found.solidity):
        assert np.isnan(values[1:]).all()
    assert np.isnan(found.centroid[1:]).all()


def test_bar_of_two_by_eight() -> None:
    """4 * sqrt(8 * 8 / 12) = 9.2376 and 4 * sqrt(2 * 2 / 12) = 2.3094; the bar is upright."""
    found = measure_shapes([np.ones((8, 2), bool)], np.array([[10, 20]]))
    assert found.area.tolist() == [16]
    assert found.centroid.tolist() == [[11, 24]]
    assert found.major_axis[0] == pytest.approx(9.2376, abs=1e-4)
    assert found.minor_axis[0] == pytest.approx(2.3094, abs=1e-4)
    assert found.orientation.tolist() == [90]
    assert found.solidity.tolist() == [1]
    assert found.perimeter[0] == pytest.approx(16)  # through the centres of the pixels


def test_orientation_is_anticlockwise_as_shown() -> None:
    rising = np.eye(9, dtype=bool)[::-1]  # from the lower left to the upper right
    found = measure_shapes([rising, rising[::-1]], np.zeros((2, 2), np.int64))
    assert found.orientation == pytest.approx([45, 135])


def test_equal_to_scikit_image_and_shapely() -> None:
    detections = drawn()
    crops, corners = crop_masks(detections.soft_masks(), detections.boxes, detections.image_size)
    crops += shapes()
    corners = np.concatenate((corners, np.zeros((len(shapes()), 2), np.int64)))
    found = measure_shapes(crops, corners)
    checked = 0
    for n, crop in enumerate(crops):
        if not crop.any():
            continue
        (region,) = regionprops(crop.astype(np.uint8))
        assert found.area[n] == region.area
        y, x = region.centroid
        assert found.centroid[n] == pytest.approx(
            [x + 0.5 + corners[n, 0], y + 0.5 + corners[n, 1]]
        )
        assert found.perimeter[n] == pytest.approx(region.perimeter)
        # scikit-image takes pixels for points, which leaves out 16 / 12.
        assert found.major_axis[n] ** 2 == pytest.approx(region.axis_major_length**2 + 16 / 12)
        assert found.minor_axis[n] ** 2 == pytest.approx(region.axis_minor_length**2 + 16 / 12)
        if region.axis_major_length > region.axis_minor_length + 1e-9:
            # Its angle is from the y axis to the major axis.
            assert found.orientation[n] == pytest.approx(
                (np.degrees(region.orientation) + 90) % 180
            )
        rows, columns = np.nonzero(crop)
        squares = shapely.box(columns, rows, columns + 1, rows + 1)
        hull = shapely.convex_hull(shapely.union_all(squares))
        assert found.solidity[n] == pytest.approx(crop.sum() / hull.area)
        checked += 1
    assert checked >= 17


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "int32", "float16", "float32", "bool"])
def test_channel_statistics(dtype: str) -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 200, (60, 70, 3)).astype(dtype)
    crops = [random.random((20, 30)) < 0.4, np.zeros((3, 3), bool), np.ones((1, 1), bool)]
    corners = np.array([[40, 33], [0, 0], [69, 59]])
    means, deviations = channel_statistics(crops, corners, values)
    inside = values[33:53, 40:70][crops[0]].astype(np.float64)
    assert means[0] == pytest.approx(inside.mean(0))
    assert deviations[0] == pytest.approx(inside.std(0))
    assert np.isnan(means[1]).all()
    assert means[2] == pytest.approx(values[59, 69].astype(np.float64))
    assert deviations[2].tolist() == [0, 0, 0]
