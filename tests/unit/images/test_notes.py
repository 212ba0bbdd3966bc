"""Notes of many images become one line for each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from meinst.images.extent import Extent
from meinst.images.intensity import Stretch
from meinst.images.notes import NO_NOTES, ImageNotes, NoteSummary


def summary_of(*notes: ImageNotes) -> list[str]:
    summary = NoteSummary()
    for number, each in enumerate(notes, start=1):
        summary.add(Path(f"{number}.tif"), each)
    return summary.lines()


def test_ordinary_images_have_no_notes() -> None:
    assert summary_of() == []
    assert summary_of(NO_NOTES, ImageNotes(shrink=10, object_side=40.0)) == []
    assert NO_NOTES.warnings == []


def test_stretched_images() -> None:
    first = ImageNotes(Stretch(2000, 4133, "percentile", "uint16"))
    second = ImageNotes(Stretch(10, 60, "percentile", "uint16"))
    fixed = ImageNotes(Stretch(0, 4095, "0:4095", "float32"))
    same = ImageNotes(Stretch(0, 255, "percentile", "uint16"))
    lines = summary_of(first, second, fixed, same)
    assert len(lines) == 3
    assert lines[0].startswith("note: 1 image of type float32: 0 to 4095 scaled to 0 to 255")
    assert lines[1].startswith("note: 1 image of type uint16: 0 to 255 scaled to 0 to 255")
    assert "2 images of type uint16: percentiles 0.1 and 99.9 of each image scaled" in lines[2]
    assert "(for example 1.tif, 2000 to 4133)" in lines[2]
    assert first.warnings == []


def test_pages_left_out() -> None:
    notes = ImageNotes(extent=Extent(frames=20))
    (line,) = summary_of(notes, NO_NOTES, ImageNotes(extent=Extent(frames=3)))
    assert line.startswith("warning: 2 images with several pages")
    assert "21 were left out (for example 1.tif, 20 pages)" in line
    assert notes.warnings == ["only the first of 20 pages or frames is used."]


@pytest.mark.parametrize(
    ("shrink", "side", "expected"),
    [
        (16, 40.0, True),  # 8,000 pixels on 512
        (2, 9.5, True),  # objects at the limit
        (2, 16.0, False),
        (9.7, 60.0, False),  # a photograph of 12 megapixels
        (5, None, True),  # nothing found
        (3, None, False),
        (1, 5.0, False),  # tiles would not help
        (0.5, None, False),
    ],
)
def test_images_that_are_shrunk_too_much(shrink: float, side: float | None, expected: bool) -> None:
    notes = ImageNotes(shrink=shrink, object_side=side)
    assert notes.shrunk_too_much == expected
    lines = summary_of(notes, notes)
    assert len(lines) == len(notes.warnings) == expected
    if expected:
        assert lines[0].startswith("warning: 2 images shrunk so much")
        # Objects of 12 pixels in the network's input are found.
        assert f"smaller than about {12 * shrink:.0f} pixels" in lines[0]
        assert f"{12 * shrink:.0f} pixels" in notes.warnings[0]


def test_windows_and_damage() -> None:
    whole = ImageNotes(windows=1200)
    broken = ImageNotes(windows=300, lost_windows=4, damage="b.tif: the tile at x = 0 is damaged")
    lines = summary_of(whole, broken)
    assert lines[0] == "note: 2 images predicted in windows (for example 1.tif, 1,200 windows)"
    assert lines[1].startswith("warning: 1 image with damaged parts; 4 windows were left out")
    assert "b.tif: the tile at x = 0 is damaged" in lines[1]
    assert whole.warnings == []
    assert broken.warnings == [
        "4 of 300 windows were left out: b.tif: the tile at x = 0 is damaged"
    ]
    summary = NoteSummary()
    assert (summary.tiled, summary.damaged) == (0, 0)
    summary.add(Path("b.tif"), broken)
    assert (summary.tiled, summary.damaged) == (1, 1)
