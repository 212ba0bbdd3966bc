"""Reading ahead and batching do not change results; an unreadable image affects no other."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from meinst.data.images import ImageError
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.inference.prefetch import predict_iter

SIZES = [(64, 96), (64, 96), (96, 64), (64, 96), (50, 60)]


def picture(number: int) -> np.ndarray:
    height, width = SIZES[number]
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(number: int) -> np.ndarray:
    if number < 0:
        raise ImageError(f"number {number} is broken")
    return picture(number)


def test_no_sources(tiny_model: MEInst) -> None:
    assert list(predict_iter(tiny_model, [], read)) == []


@pytest.mark.parametrize("batch_size", [1, 2, 4, 9])
def test_batches_equal_single_images(tiny_model: MEInst, batch_size: int) -> None:
    selection = tiny_model.selection.override(max_detections=7)
    results = list(
        predict_iter(tiny_model, range(5), read, batch_size=batch_size, selection=selection)
    )
    assert [result.source for result in results] == [0, 1, 2, 3, 4]
    for number, result in enumerate(results):
        pixels, detections = result.result()
        expected = tiny_model.predict(picture(number), max_detections=7)
        np.testing.assert_array_equal(pixels, picture(number))
        assert detections.image_size == SIZES[number]
        torch.testing.assert_close(detections.boxes, expected.boxes, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_unreadable_image_affects_no_other(tiny_model: MEInst, batch_size: int) -> None:
    results = list(predict_iter(tiny_model, [0, -1, 2], read, batch_size=batch_size))
    assert [result.error is None for result in results] == [True, False, True]
    with pytest.raises(ImageError, match="number -1"):
        results[1].result()


def test_images_of_a_failed_batch_are_retried_one_by_one(
    tiny_model: MEInst, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = tiny_model.predict_batch

    def predict_batch(images: list[object], selection: object) -> list[Detections]:
        if len(images) > 1:
            raise MemoryError("too many")
        if images[0].original.shape[:2] == (96, 64):  # type: ignore[attr-defined]
            raise MemoryError("too large")
        return alone(images, selection)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_model, "predict_batch", predict_batch)
    results = list(predict_iter(tiny_model, range(4), read, batch_size=4))
    assert [str(result.error) for result in results] == ["None", "None", "too large", "None"]


def test_next_image_is_read_during_prediction(tiny_model: MEInst) -> None:
    read_so_far = []
    second = threading.Event()

    def note(number: int) -> np.ndarray:
        read_so_far.append(number)
        if number == 1:
            second.set()
        return picture(number)

    stream = predict_iter(tiny_model, range(5), note)
    next(stream)
    assert second.wait(timeout=10)
    assert 3 not in read_so_far  # at most one batch ahead
    stream.close()  # type: ignore[attr-defined]


def test_rejects_batch_size_below_one(tiny_model: MEInst) -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        next(predict_iter(tiny_model, [0], read, batch_size=0))
