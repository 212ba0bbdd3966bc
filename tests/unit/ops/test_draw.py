from __future__ import annotations

import numpy as np
import pytest

from meinst.ops.draw import PALETTE, blend_masks, draw_boxes, draw_captions

ORANGE, SKY = PALETTE[:2]


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, dtype=np.uint8)


def test_nothing_to_draw():
    image, none = grey(5, 6), np.zeros((0, 4))
    blend_masks(image, [], np.zeros((0, 2), dtype=int), [], 0.5)
    assert (image == 100).all()
    assert (draw_boxes(image, none, []) == 100).all()
    assert (draw_captions(image, none, [], []) == 100).all()


def test_inside_is_blended_and_the_outline_is_full_colour():
    image = grey(10, 12)
    crop = np.ones((4, 5), dtype=bool)
    crop[0, 0] = False
    blend_masks(image, [crop], np.array([[3, 2]]), [ORANGE], 0.4)
    # 0.6 * 100 + 0.4 * (230, 159, 0) = (152, 123.6, 60)
    expected = grey(10, 12)
    expected[2:6, 3:8] = ORANGE
    expected[2, 3] = 100
    expected[3:5, 4:7] = (152, 124, 60)
    expected[3, 4] = (152, 124, 60)  # touches the missing pixel only diagonally
    np.testing.assert_array_equal(image, expected)


def test_small_masks_are_drawn_over_large_ones_in_any_order():
    crops, corners = [np.ones((2, 2), dtype=bool), np.ones((8, 8), dtype=bool)], [[3, 3], [0, 0]]
    image, other = grey(8, 8), grey(8, 8)
    blend_masks(image, crops, np.array(corners), [SKY, ORANGE], 1.0)
    blend_masks(other, crops[::-1], np.array(corners[::-1]), [ORANGE, SKY], 1.0)
    assert (image[3:5, 3:5] == SKY).all()
    assert (image == ORANGE).all(axis=-1).sum() == 60
    np.testing.assert_array_equal(image, other)


def test_masks_without_pixels_are_skipped():
    image = grey(4, 4)
    blend_masks(image, [np.zeros((0, 0), dtype=bool)], np.array([[0, 0]]), [SKY], 1.0)
    assert (image == 100).all()


def test_rectangle_colours_the_outermost_pixels_of_a_box():
    image = grey(8, 9)
    drawn = draw_boxes(image, np.array([[2.0, 1.0, 6.0, 5.0]]), [SKY])
    border = np.zeros((8, 9), dtype=bool)
    border[1:5, 2:6] = True
    border[2:4, 3:5] = False
    np.testing.assert_array_equal((drawn == SKY).all(axis=-1), border)
    assert (image == 100).all()


def test_tiny_and_outside_boxes_do_not_fail():
    boxes = np.array([[2.2, 2.2, 2.3, 2.3], [-5.0, -5.0, 50.0, 50.0]])
    assert (draw_boxes(grey(6, 6), boxes, [SKY, ORANGE])[2, 2] == SKY).all()


@pytest.mark.parametrize("shape", [(200, 300), (12, 8)])
def test_caption_is_inside_the_image_and_outside_the_box(shape):
    image = grey(*shape)
    box = np.array([[0.0, shape[0] / 2, 20.0, shape[0]]])
    drawn = draw_captions(image, box, ["nucleus 0.99"], [SKY])
    plate = (drawn == SKY).all(axis=-1)
    assert plate.any()
    assert (image == 100).all()
    if shape[0] == 200:
        assert not (drawn != 100).any(axis=-1)[100:].any()
        assert (drawn < 60).all(axis=-1).any()  # dark text on a bright plate


def test_captions_do_not_cover_each_other():
    boxes = np.tile([50.0, 50.0, 120.0, 90.0], (40, 1))
    colors = [(n, 255, 255) for n in range(40)]
    drawn = draw_captions(grey(150, 200), boxes, ["otter 0.50"] * 40, colors)
    shown = [n for n in range(40) if (drawn == colors[n]).all(axis=-1).any()]
    assert shown[:4] == [0, 1, 2, 3]  # above, below, and inside at top and bottom
    assert len(shown) < 40
    areas = {int((drawn == colors[n]).all(axis=-1).sum()) for n in shown}
    assert len(areas) == 1  # no plate is covered


def test_palette_is_distinct():
    assert len(set(PALETTE)) == len(PALETTE) == 8
