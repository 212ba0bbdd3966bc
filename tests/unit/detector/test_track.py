"""Objects keep their number from frame to frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from meinst import Detections
from meinst.codecs import GridCodec
from meinst.detector.meinst import MEInst
from meinst.detector.track import NO_TRACK, Tracker

pytest.importorskip("trackers")

CODEC = GridCodec(4, 8)
RATE = 25.0


def found(*objects: tuple[float, float, float, int]) -> Detections:
    """Detections of 20 x 20 pixels: left, top, score, class."""
    boxes = torch.tensor([[x, y, x + 20, y + 20] for x, y, _, _ in objects]).reshape(-1, 4)
    return Detections(
        boxes.float(),
        torch.tensor([score for *_, score, _ in objects]),
        torch.tensor([label for *_, label in objects], dtype=torch.int64),
        torch.ones(len(objects), 4),
        (200, 400),
        CODEC,
        ("cat", "dog"),
    )


def ids(detections: Detections) -> list[int]:
    assert detections.track_ids is not None
    return [int(number) for number in detections.track_ids]


def test_no_detections() -> None:
    tracker = Tracker(RATE, ("cat", "dog"))
    assert ids(tracker.update(found())) == []
    assert ids(tracker.update(found())) == []


def test_objects_keep_their_numbers_whatever_their_order() -> None:
    tracker = Tracker(RATE, ("cat", "dog"))
    seen = []
    for number in range(10):
        pair = [(10.0 + 3 * number, 50.0, 0.9, 0), (300.0 - 3 * number, 100.0, 0.8, 0)]
        turned = bool(number % 2)
        numbers = ids(tracker.update(found(*(pair[::-1] if turned else pair))))
        seen.append(numbers[::-1] if turned else numbers)
    assert seen[2:] == [[1, 2]] * 8


def test_classes_have_tracks_of_their_own() -> None:
    tracker = Tracker(RATE, ("cat", "dog"))
    for _ in range(4):
        result = tracker.update(found((50, 50, 0.9, 0), (51, 50, 0.85, 1)))
    assert sorted(ids(result)) == [1, 2]
    for _ in range(3):  # the cat is a dog now: another track
        result = tracker.update(found((50, 120, 0.9, 1)))
    assert ids(result) == [3]


def test_low_scores_continue_a_track_but_begin_none() -> None:
    tracker = Tracker(RATE, ("cat", "dog"), 0.5)
    for _ in range(3):
        tracker.update(found((50, 50, 0.9, 0)))
    weak = tracker.update(found((51, 50, 0.3, 0), (200, 50, 0.3, 0)))
    assert ids(weak) == [1]
    assert weak.boxes[0, 0] == 51
    for _ in range(5):
        assert ids(tracker.update(found((200, 50, 0.3, 0)))) == []


def test_hidden_object_is_found_again_for_a_second() -> None:
    tracker = Tracker(RATE, ("cat", "dog"))
    for _ in range(5):
        tracker.update(found((50, 50, 0.9, 0)))
    for _ in range(20):  # 0.8 s
        tracker.update(found())
    assert ids(tracker.update(found((50, 50, 0.9, 0)))) == [1]
    for _ in range(40):  # 1.6 s
        tracker.update(found())
    for _ in range(3):
        again = tracker.update(found((50, 50, 0.9, 0)))
    assert ids(again) == [2]


def test_track_ids_follow_selection_and_appear_in_results() -> None:
    detections = replace(found((0, 0, 0.9, 0), (50, 0, 0.8, 1)), track_ids=torch.tensor([7, -1]))
    assert ids(detections[[1, 0]]) == [-1, 7]
    assert [result["track_id"] for result in detections.to_coco(1)] == [7, -1]
    assert "track_id" not in found((0, 0, 0.9, 0)).to_coco(1)[0]
    assert ids(detections.to("cpu")) == [7, -1]
    with pytest.raises(ValueError, match="track_ids must have the shape"):
        replace(detections, track_ids=torch.tensor([1]))
    with pytest.raises(ValueError, match="track_ids must be int64"):
        replace(detections, track_ids=torch.tensor([1.0, 2.0]))


def test_drawing_colours_by_track() -> None:
    canvas = np.zeros((200, 400, 3), np.uint8)
    one = replace(found((50, 50, 0.9, 0)), track_ids=torch.tensor([1]))
    other = replace(one, track_ids=torch.tensor([2]))
    same = replace(one, track_ids=torch.tensor([9]))  # the palette has eight colours
    drawn = [each.draw(canvas, boxes=True, captions=False) for each in (one, other, same)]
    assert not np.array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert not np.array_equal(one.draw(canvas, captions=True), same.draw(canvas, captions=True))


def test_model_tracks_images(tiny_model: MEInst) -> None:
    images = [np.full((64, 64, 3), 40 * number, np.uint8) for number in range(3)]
    tracked = list(tiny_model.track(images, rate=10, score_threshold=0.5, max_detections=5))
    plain = [tiny_model.predict(i, score_threshold=0.5, max_detections=5) for i in images]
    assert len(tracked) == 3
    for each, expected in zip(tracked, plain, strict=True):
        strong = each[each.scores >= 0.5]
        torch.testing.assert_close(strong.boxes, expected.boxes, rtol=0, atol=0)
        assert len(ids(each)) == len(each)
    assert NO_TRACK == -1


def test_images_are_read_one_ahead(tiny_model: MEInst) -> None:
    read: list[int] = []

    def images():  # type: ignore[no-untyped-def]
        for number in range(50):
            read.append(number)
            yield np.zeros((32, 32, 3), np.uint8)

    tracked = tiny_model.track(images())
    next(tracked)
    assert len(read) <= 3
    assert len(list(tracked)) == 49
