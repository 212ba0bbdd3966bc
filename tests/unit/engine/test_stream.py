"""Reading ahead and batches change nothing but the time; a bad image stops no other."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from meinst.data.images import ImageError
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.engine.stream import find_in_each

SIZES = [(64, 96), (64, 96), (96, 64), (64, 96), (50, 60)]


def picture(number: int) -> np.ndarray:
    height, width = SIZES[number]
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(number: int) -> np.ndarray:
    if number < 0:
        raise ImageError(f"number {number} is broken")
    return picture(number)


def test_no_sources(tiny_model: MEInst) -> None:
    assert list(find_in_each(tiny_model, [], read)) == []


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_same_as_one_by_one(tiny_model: MEInst, batch_size: int) -> None:
    found = list(find_in_each(tiny_model, range(5), read, batch_size=batch_size, max_detections=7))
    assert [one.source for one in found] == [0, 1, 2, 3, 4]
    for number, one in enumerate(found):
        pixels, detections = one.result()
        expected = tiny_model.predict(picture(number), max_detections=7)
        np.testing.assert_array_equal(pixels, picture(number))
        assert detections.image_size == SIZES[number]
        torch.testing.assert_close(detections.boxes, expected.boxes, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_a_broken_image_stops_no_other(tiny_model: MEInst, batch_size: int) -> None:
    found = list(find_in_each(tiny_model, [0, -1, 2], read, batch_size=batch_size))
    assert [one.error is None for one in found] == [True, False, True]
    with pytest.raises(ImageError, match="number -1 is broken"):
        found[1].result()


def test_a_batch_that_fails_is_tried_one_by_one(
    tiny_model: MEInst, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tiny_model.predict

    def predict(images: list[object], **limits: object) -> list[Detections]:
        if len(images) > 1:
            raise MemoryError("too many")
        if images[0].original.shape[:2] == (96, 64):  # type: ignore[attr-defined]
            raise MemoryError("too large")
        return alone(images, **limits)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(tiny_model, "predict", predict)
    found = list(find_in_each(tiny_model, range(4), read, batch_size=4))
    assert [str(one.error) for one in found] == ["None", "None", "too large", "None"]


def test_the_next_image_is_read_during_a_prediction(tiny_model: MEInst) -> None:
    read_by_now = []
    second = threading.Event()

    def note(number: int) -> np.ndarray:
        read_by_now.append(number)
        if number == 1:
            second.set()
        return picture(number)

    stream = find_in_each(tiny_model, range(5), note)
    next(stream)
    assert second.wait(timeout=10)
    assert 3 not in read_by_now  # no further ahead than a batch
    stream.close()  # type: ignore[attr-defined]


def test_batch_size_below_one(tiny_model: MEInst) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(find_in_each(tiny_model, [0], read, batch_size=0))
