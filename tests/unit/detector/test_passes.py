from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from oracle import Oracle

from meinst.detector.passes import MIN_TILE, TileOptions, needs_windows, plan_passes
from meinst.images.notes import ImageNotes
from meinst.models.load import load


def test_image_that_fits_a_window_has_one_pass_without_windows() -> None:
    (only,) = plan_passes(Oracle(), (128, 100), TileOptions(128))
    assert only.scale is None
    assert only.windows.tolist() == [[0, 0, 100, 128]]


def test_passes_leave_larger_objects_to_the_next() -> None:
    fine, coarse, whole = plan_passes(Oracle(), (600, 600), TileOptions(128))
    assert (fine.scale, coarse.scale, whole.scale) == (1.0, 0.25, None)
    assert (fine.overlap, coarse.overlap) == (64, 256)
    assert fine.smallest == 0
    # Objects of up to 64 - 2 * 4 pixels lie completely in a window.
    assert fine.complete == 56
    assert coarse.smallest == pytest.approx(0.8 * 56)
    assert len(whole.windows) == 1
    assert np.ptp(coarse.windows[:, 2] - coarse.windows[:, 0]) == 0


def test_default_windows_show_the_image_as_it_is() -> None:
    model = Oracle(side=416, stride=8)
    fine, *_ = plan_passes(model, (5000, 5000), TileOptions())
    assert fine.scale == 1.0
    assert fine.windows[0].tolist() == [0, 0, 416, 416]
    assert fine.overlap == 208  # half a window, since 32 strides are more


def test_pixel_size_sets_the_scale() -> None:
    tiles = TileOptions(pixel_size=0.5)
    fine, *_ = plan_passes(Oracle(), (5000, 5000), tiles, 0.25)
    assert fine.scale == 0.5
    assert fine.windows[0].tolist() == [0, 0, 256, 256]
    (only,) = plan_passes(Oracle(), (200, 250), tiles, 0.25)
    assert only.scale == 0.5
    assert only.input_size(only.windows[0]) == (100, 125)


PARTS = {"recipe": SimpleNamespace(augment=SimpleNamespace(crop_size=96))}
WHOLE = {"recipe": SimpleNamespace(augment=SimpleNamespace(crop_size=128))}


@pytest.mark.parametrize(
    ("shrink", "side", "metadata", "expected"),
    [
        (9.7, 60.0, WHOLE, False),  # a photograph of 12 megapixels
        (9.7, None, WHOLE, False),  # ... of a landscape
        (9.7, None, {}, False),
        (9.7, 9.0, WHOLE, True),  # ... of a crowd
        (9.7, None, PARTS, True),
        (3.0, None, PARTS, False),
        (2.0, 9.0, PARTS, True),  # small nuclei
        (2.0, 40.0, PARTS, False),  # large ones
        (20.0, None, WHOLE, True),
    ],
)
def test_auto_depends_on_objects_and_training(
    shrink: float, side: float | None, metadata: dict[str, Any], expected: bool
) -> None:
    model = Oracle()
    model.metadata = metadata
    notes = ImageNotes(shrink=shrink, object_side=side)
    assert needs_windows(model, TileOptions(), notes) == expected
    assert not needs_windows(model, TileOptions("off"), notes)


def test_shipped_models_were_trained_on_parts_and_on_whole_images() -> None:
    blank = ImageNotes(shrink=9.0)
    assert needs_windows(load("nuclei"), TileOptions(), blank)
    assert not needs_windows(load("photos"), TileOptions(), blank)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tile": "big"}, "tile must be auto, off or a number of pixels, got 'big'"),
        ({"tile": MIN_TILE - 1}, f"tile must be at least {MIN_TILE}"),
        ({"pixel_size": 0.0}, "pixel_size must be above 0"),
        ({"tile": "off", "pixel_size": 0.5}, "pixel_size needs windows"),
        ({"max_detections": 0}, "max_detections must be at least 1"),
    ],
)
def test_other_values_are_rejected(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TileOptions(**values)  # type: ignore[arg-type]


def test_command_lines_give_numbers_as_text() -> None:
    assert TileOptions.from_text("512") == TileOptions(512)
    assert TileOptions.from_text("off").tile == "off"
    with pytest.raises(ValueError, match="tile must be auto"):
        TileOptions.from_text("5e2")
