"""Objects are found once and whole, wherever windows cut them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle import Oracle, draw_discs, random_discs

from meinst.data.images import ImageError, Picture
from meinst.data.regions import ArrayRegions
from meinst.detections import Detections
from meinst.detector.meinst import MEInst
from meinst.detector.passes import TileOptions
from meinst.detector.seams import concatenate
from meinst.detector.tiled import predict_windows

TILES = TileOptions(128)


def find(picture: np.ndarray, oracle: Oracle | None = None, **options: object) -> Detections:
    model = oracle or Oracle()
    return predict_windows(model, ArrayRegions(Picture(picture)), TILES, **options).detections


def ious(detections: Detections, masks: list[np.ndarray]) -> np.ndarray:
    found = detections.masks().numpy()
    return np.array([[(a & b).sum() / max((a | b).sum(), 1) for b in found] for a in masks])


def check_each_once(detections: Detections, masks: list[np.ndarray], least: float = 0.8) -> None:
    table = ious(detections, masks).reshape(len(masks), len(detections))
    assert len(detections) == len(masks)
    if masks:
        assert (table.max(axis=1) >= least).all()
        assert sorted(table.argmax(axis=1)) == list(range(len(masks)))


def test_picture_without_objects() -> None:
    assert len(find(np.zeros((300, 400, 3), np.uint8))) == 0


@pytest.mark.parametrize("seed", range(20))
def test_no_object_is_doubled_or_cut(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = int(rng.integers(200, 500)), int(rng.integers(200, 500))
    picture, masks = draw_discs(size, random_discs(rng, size, 60, 5, 26))
    check_each_once(find(picture), masks)


@pytest.mark.parametrize("seed", range(6))
def test_objects_of_all_sizes_are_found_once(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    size = (600, 700)
    large = random_discs(rng, size, 2, 90, 140)  # wider than a window
    small = [
        (x, y, r)
        for x, y, r in random_discs(rng, size, 60, 8, 40)
        if all((x - a) ** 2 + (y - b) ** 2 > (r + c + 2) ** 2 for a, b, c in large)
    ]
    picture, masks = draw_discs(size, [*large, *small])
    check_each_once(find(picture), masks, 0.75)


def test_object_larger_than_a_window_is_found_once() -> None:
    picture, masks = draw_discs((500, 500), [(250.0, 250.0, 200.0)])
    check_each_once(find(picture), masks, 0.9)


def test_parts_are_joined_where_no_pass_shows_the_object() -> None:
    # The coarser passes show it with 150 / 4 and 150 / 3.9 pixels, which this model misses.
    picture, masks = draw_discs((500, 500), [(250.0, 250.0, 75.0)])
    oracle = Oracle()
    detections = find(picture, oracle)
    check_each_once(detections, masks)

    class Blind(Oracle):
        def _find(self, image):  # type: ignore[no-untyped-def]
            found = super()._find(image)
            return found if image.resized.shape[:2] == image.original.shape[:2] else found[:0]

    joined = find(picture, Blind())
    check_each_once(joined, masks, 0.7)


def test_touching_objects_stay_apart() -> None:
    discs = [(60.0 + 25 * n, 64.0 + 3 * n, 12.4) for n in range(12)]
    picture, masks = draw_discs((200, 400), discs)
    check_each_once(find(picture), masks)


@pytest.mark.parametrize(("radius", "lumps"), [(12.4, 0), (7.0, 1)])
def test_large_detection_that_is_many_small_ones_is_dropped(radius: float, lumps: int) -> None:
    """Discs that are 26 pixels apart cover 71 % of their ground, smaller ones 23 %."""
    discs = [(26.0 * x + 20, 26.0 * y + 20, radius) for x in range(15) for y in range(15)]
    picture, masks = draw_discs((400, 400), discs)

    class Lumping(Oracle):
        def _find(self, image):  # type: ignore[no-untyped-def]
            found = super()._find(image)
            if image.original.shape[0] < 400:
                return found
            lump = replace(
                found,
                boxes=torch.tensor([[7.0, 7.0, 397.0, 397.0]]),
                scores=torch.tensor([0.6]),
                labels=torch.zeros(1, dtype=torch.int64),
                codes=found.codec.encode(torch.ones(1, 28, 28)),
            )
            return concatenate([found, lump])

    found = find(picture, Lumping())
    large = found.boxes[:, 2] - found.boxes[:, 0] > 100
    assert int(large.sum()) == lumps
    check_each_once(found[~large], masks, 0.75)


def test_limit_holds_for_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    picture, _ = draw_discs((400, 400), random_discs(rng, (400, 400), 60, 5, 20))
    best = predict_windows(
        Oracle(), ArrayRegions(Picture(picture)), TileOptions(128, max_detections=7)
    ).detections
    every = find(picture)
    assert len(best) == 7
    assert torch.equal(best.scores, every.scores[:7])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_are_counted_and_batched(batch_size: int) -> None:
    rng = np.random.default_rng(1)
    picture, masks = draw_discs((300, 500), random_discs(rng, (300, 500), 40, 5, 20))
    steps: list[tuple[int, int]] = []
    result = predict_windows(
        Oracle(),
        ArrayRegions(Picture(picture)),
        TILES,
        batch_size=batch_size,
        on_window=lambda done, total: steps.append((done, total)),
    )
    check_each_once(result.detections, masks)
    assert steps == [(n, len(steps)) for n in range(1, len(steps) + 1)]
    assert result.notes.windows == len(steps)


class Damaged(ArrayRegions):
    """An image of which one column of tiles is damaged."""

    def read(self, region, level=0, *, blank=False):  # type: ignore[no-untyped-def]
        if not blank and region[0] >= 300:
            raise ImageError(f"{self.name}: the tile at x = 300, y = {region[1]} is damaged")
        return super().read(region, level)


def test_damaged_windows_are_left_out_and_counted() -> None:
    discs = [(50.0, 50.0, 12.0), (480.0, 100.0, 12.0)]
    picture, masks = draw_discs((128, 500), discs)
    result = predict_windows(Oracle(), Damaged(Picture(picture), "slide.tif"), TILES)
    assert result.notes.lost_windows == 2
    assert "x = 300" in result.notes.damage
    check_each_once(result.detections, masks[:1])


def test_image_without_a_readable_window_fails() -> None:
    class Lost(Damaged):
        def read(self, region, level=0, *, blank=False):  # type: ignore[no-untyped-def]
            if not blank:
                raise ImageError("slide.tif: the tile at x = 0, y = 0 is damaged")
            return super().read(region, level, blank=blank)

    with pytest.raises(ImageError, match="x = 0, y = 0 is damaged"):
        predict_windows(Oracle(), Lost(Picture(np.zeros((300, 300, 3), np.uint8))), TILES)


def same(a: Detections, b: Detections) -> bool:
    fields = ("boxes", "scores", "labels", "codes")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in fields)


@pytest.mark.parametrize("tile", ["auto", "off", 96, 4096])
def test_image_that_fits_one_window_gives_the_same_bits(
    tiny_model: MEInst, tile: str | int
) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    before = tiny_model.predict_batch([picture])[0]
    assert len(before)
    assert same(tiny_model.predict(picture, tile=tile), before)


def test_images_of_a_list_are_predicted_by_their_size(tiny_model: MEInst) -> None:
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 255, (n, n, 3), dtype=np.uint8) for n in (64, 300))
    first, second = tiny_model.predict([small, large], tile=96)
    assert same(first, tiny_model.predict(small, tile="off"))
    assert same(second, tiny_model.predict(large, tile=96))
    assert second.image_size == (300, 300)
    assert len(second) > 2 * len(first)
