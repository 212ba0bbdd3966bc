from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from meinst.data.annotations.instance_batch import BatchReader, InstanceBatch
from meinst.ops.rasterize import rasterize_polygons, sample_bitmaps

SIZES = {7: (30, 40), 5: (10, 20), 6: (25, 25)}  # height and width by image id
CATEGORIES = [2, 4, 9]
SQUARE = [2.0, 3.0, 8.0, 3.0, 8.0, 7.0, 2.0, 7.0]
NOT_NUMBERS = "polygon that is not a list of finite numbers"
NOT_FOUR = "box that is not four finite numbers"


def entry(number: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "id": number,
        "image_id": 5,
        "category_id": 9,
        "bbox": [2, 3, 6, 4],
        "segmentation": [SQUARE],
        "iscrowd": 0,
    }
    return plain | changes


def new_reader() -> BatchReader:
    return BatchReader(SIZES, CATEGORIES)


def rle(mask: np.ndarray, compressed: bool) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    if compressed:
        return {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    values = np.concatenate(([0], mask.flatten(order="F").astype(int)))
    ends = np.append(np.flatnonzero(np.diff(values)), mask.size)
    return {"size": list(mask.shape), "counts": np.diff(ends, prepend=0).tolist()}


def random_entries(count: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Instances of all shapes, some to be dropped and some to be repaired."""
    rng = np.random.default_rng(seed)
    entries = []
    for number in range(100, 100 + count):
        image = int(rng.choice(list(SIZES)))
        height, width = SIZES[image]
        x, y = rng.uniform(0, [width - 8, height - 8])
        w, h = rng.uniform(4, 8, 2)
        box = [x, y, w, h]
        shape: Any
        variant = rng.integers(6)
        if variant < 3:  # one to three parts
            parts = rng.uniform([x, y], [x + w, y + h], (variant + 1, int(rng.integers(3, 7)), 2))
            shape = [part.flatten().tolist() for part in parts]
        elif variant < 5:
            mask = np.zeros((height, width), dtype=bool)
            mask[int(y) : int(y + h), int(x) : int(x + w)] = True
            shape = rle(mask, bool(variant == 3))
        else:
            shape = [[round(value) for value in (x, y, x + w, y, x + w, y + h)]]  # integers
        changes: dict[str, Any] = {"image_id": image, "bbox": box, "segmentation": shape}
        changes["category_id"] = int(rng.choice(CATEGORIES))
        changes["iscrowd"] = int(rng.random() < 0.1)
        odd = rng.integers(12)
        if odd == 0:
            changes["bbox"] = None
        elif odd == 1:
            changes["bbox"] = [x, y, 0, h]
        elif odd == 2:
            changes["segmentation"] = [[x, y, x + w, y + h, x, y]]
        elif odd == 3:
            changes["segmentation"] = [[x, y, x + w, y, x + w, y + h], [x, y]]
        elif odd == 4:
            changes["bbox"] = [x, y, w + 90, h]
        entries.append(entry(number, **changes))
    found: list[dict[str, Any]] = json.loads(json.dumps(entries))  # numbers as in a file
    return found


def assert_same(left: InstanceBatch, right: InstanceBatch) -> None:
    for name in ("images", "labels", "boxes", "crowd", "coordinates", "part_starts"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
        assert getattr(left, name).dtype == getattr(right, name).dtype
    np.testing.assert_array_equal(left.instance_starts, right.instance_starts)
    assert list(left.bitmaps) == list(right.bitmaps)
    for actual, expected in zip(left.bitmaps.values(), right.bitmaps.values(), strict=True):
        assert (actual.box, actual.image_size, actual.area) == (
            expected.box,
            expected.image_size,
            expected.area,
        )
        np.testing.assert_array_equal(actual.counts, expected.counts)


def test_no_annotations() -> None:
    reader = new_reader()
    batch = reader.read([])
    assert len(batch) == 0
    assert batch.boxes.shape == (0, 4)
    assert batch.part_starts.tolist() == batch.instance_starts.tolist() == [0]
    assert batch.masks(7).shape == (0, 7, 7)
    assert len(batch.select(np.zeros(0, dtype=np.bool_))) == 0
    assert reader.dropped.ids == reader.repaired.ids == {}


def test_all_instances_dropped() -> None:
    reader = new_reader()
    batch = reader.read([entry(1, segmentation=[[2, 3] * 3]), entry(2, segmentation=None)])
    assert len(batch) == 0
    assert batch.masks(7).shape == (0, 7, 7)
    assert reader.dropped.ids == {"mask with zero area": [1], "no mask": [2]}


def test_arrays_by_hand() -> None:
    triangle = [0, 0, 4, 0, 4, 4]
    filled = np.zeros((25, 25), dtype=bool)
    filled[5:9, 10:16] = True
    batch = new_reader().read(
        [
            entry(1, segmentation=[SQUARE, triangle], category_id=4, bbox=[0, 0, 8, 7]),
            entry(2, image_id=6, segmentation=rle(filled, True), bbox=[10, 5, 6, 4], iscrowd=1),
            entry(3, image_id=7, segmentation=[triangle], bbox=None, category_id=2),
        ]
    )
    assert len(batch) == 3
    assert batch.images.tolist() == [1, 2, 0]  # positions in the file, not ids
    assert batch.labels.tolist() == [1, 2, 0]
    assert batch.boxes.tolist() == [[0, 0, 8, 7], [10, 5, 16, 9], [0, 0, 4, 4]]
    assert batch.crowd.tolist() == [False, True, False]
    assert batch.coordinates.tolist() == [*SQUARE, *triangle, *triangle]
    assert batch.part_starts.tolist() == [0, 8, 14, 20]
    assert batch.instance_starts.tolist() == [0, 2, 2, 3]
    assert list(batch.bitmaps) == [1]
    assert batch.bitmaps[1].box == (10, 5, 16, 9)
    # The bitmap fills its box.
    assert batch.masks(4)[1].tolist() == [[1] * 4] * 4


def test_masks_equal_those_of_single_instances() -> None:
    batch = new_reader().read(random_entries())
    masks = batch.masks(9)
    assert len(batch) > 40
    assert 5 < len(batch.bitmaps) < len(batch)
    for n in range(len(batch)):
        box = batch.boxes[n : n + 1]
        if n in batch.bitmaps:
            bitmap = batch.bitmaps[n]
            expected = sample_bitmaps(
                [bitmap.array()], np.array([bitmap.offset]), box, 9, np.array([bitmap.image_size])
            )
        else:
            parts = np.split(batch.coordinates, batch.part_starts[1:-1])
            own = parts[batch.instance_starts[n] : batch.instance_starts[n + 1]]
            expected = rasterize_polygons([own], box, 9)
        np.testing.assert_array_equal(masks[n], expected[0])
    assert masks.any(axis=(1, 2)).mean() > 0.9


def test_batch_equals_single_annotations() -> None:
    entries = random_entries()
    before = copy.deepcopy(entries)
    together, apart = new_reader(), new_reader()
    whole = together.read(entries)
    assert entries == before
    singles = [apart.read([single]) for single in entries]
    kept = [single for single in singles if len(single)]
    assert len(kept) == len(whole) < len(entries)
    for n, single in enumerate(kept):
        assert_same(whole.select(np.arange(len(whole)) == n), single)
    for actual, expected in (
        (together.dropped, apart.dropped),
        (together.repaired, apart.repaired),
    ):
        assert actual.ids == expected.ids
        assert actual.ids


@pytest.mark.parametrize("seed", range(3))
def test_selected_instances_equal_a_batch_of_their_own(seed: int) -> None:
    rng = np.random.default_rng(seed)
    entries = [e for e in random_entries() if len(new_reader().read([e]))]
    whole = new_reader().read(entries)
    assert len(whole) == len(entries)
    masks = whole.masks(6)
    for share in (0.0, 0.1, 0.5, 1.0):
        keep = rng.random(len(entries)) < share
        chosen = whole.select(keep)
        expected = new_reader().read([e for e, kept in zip(entries, keep, strict=True) if kept])
        assert_same(chosen, expected)
        np.testing.assert_array_equal(chosen.masks(6), masks[keep])


def square_with(value: object) -> list[object]:
    return [[*SQUARE[:5], value, *SQUARE[6:]]]


# Values that JSON may contain in place of a number.
NOT_A_NUMBER: dict[str, object] = {
    "a string": "seven",
    "a number in quotes": "7.0",
    "null": None,
    "a list": [7.0],
    "an empty list": [],
    "an object": {"x": 7.0},
    "NaN": float("nan"),
    "infinity": float("inf"),
    "minus infinity": float("-inf"),
    "an endless integer": 10**400,
}

# Faults of an annotation, and the reported reason.
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    **{
        f"{name} in a polygon": ({"segmentation": square_with(value)}, NOT_NUMBERS)
        for name, value in NOT_A_NUMBER.items()
    },
    **{
        f"{name} for a part": ({"segmentation": [SQUARE, value]}, NOT_NUMBERS)
        for name, value in NOT_A_NUMBER.items()
        if name not in ("a list", "an empty list")
    },
    "NaN first": ({"segmentation": [[float("nan"), *SQUARE[1:]]]}, NOT_NUMBERS),
    "NaN in a short part": ({"segmentation": [SQUARE, [1.0, float("nan")]]}, NOT_NUMBERS),
    "NaN alone": ({"segmentation": [[float("nan")] * 8]}, NOT_NUMBERS),
    "a point without y": ({"segmentation": [[[2, 3], [8, 3], [8]]]}, NOT_NUMBERS),
    "a point far away": (
        {"segmentation": [[*SQUARE, 2.0**33, 5.0]]},
        "polygon far outside the image",
    ),
    "a part far away": (
        {"segmentation": [[1e300, 2, 3, 4, 5, 6]]},
        "polygon far outside the image",
    ),
    "a mask elsewhere": ({"segmentation": [[21, 3, 25, 3, 25, 6]]}, "mask outside the image"),
    "text for iscrowd": ({"iscrowd": "0"}, "iscrowd that is not 0 or 1"),
    "null for a mask": ({"segmentation": None}, "no mask"),
    "no parts": ({"segmentation": []}, "no mask"),
    "text for a mask": ({"segmentation": "mask"}, "no mask"),
    "a number for a mask": ({"segmentation": 7}, "no mask"),
    "two points": ({"segmentation": [[1, 1, 5, 5]]}, "polygon with fewer than three points"),
    "an odd number": ({"segmentation": [SQUARE[:-1]]}, "polygon with an odd number of coordinates"),
    "points on a line": ({"segmentation": [[2, 3, 4, 5, 6, 7]]}, "mask with zero area"),
    "points on one point": ({"segmentation": [[2, 3] * 5]}, "mask with zero area"),
    "an RLE of another image": (
        {"segmentation": {"size": [20, 10], "counts": [50, 10, 140]}},
        "RLE whose size differs from its image",
    ),
    "an RLE of no size": ({"segmentation": {}}, "RLE whose size differs from its image"),
    "an empty RLE": ({"segmentation": {"size": [10, 20], "counts": [200]}}, "mask with zero area"),
    "an RLE that overruns": (
        {"segmentation": {"size": [10, 20], "counts": [50, 10, 141]}},
        "broken RLE: the counts do not fill the image",
    ),
    "an RLE that ends early": (
        {"segmentation": {"size": [10, 20], "counts": [50, 10]}},
        "broken RLE: the counts do not fill the image",
    ),
    "an RLE that goes back": (
        {"segmentation": {"size": [10, 20], "counts": [60, -10, 150]}},
        "broken RLE: the counts do not fill the image",
    ),
    "an RLE that wraps around": (
        {"segmentation": {"size": [10, 20], "counts": [2**62, 2**62, 2**62, 2**62 + 200]}},
        "broken RLE: the counts do not fill the image",
    ),
    "an RLE of endless runs": (
        {"segmentation": {"size": [10, 20], "counts": [10**400]}},
        "broken RLE: the counts are not integers",
    ),
    "an RLE of halves": (
        {"segmentation": {"size": [10, 20], "counts": [99.5, 100.5]}},
        "broken RLE: the counts are not integers",
    ),
    "an RLE without counts": (
        {"segmentation": {"size": [10, 20]}},
        "broken RLE: the counts are not integers",
    ),
    "a compressed RLE that overruns": (
        {"segmentation": {"size": [10, 20], "counts": "oo0"}},
        "broken RLE: the counts do not fill the image",
    ),
    "a compressed RLE that ends in a number": (
        {"segmentation": {"size": [10, 20], "counts": "oo"}},
        "broken RLE: the string is not valid",
    ),
    "a compressed RLE of no letters": (
        {"segmentation": {"size": [10, 20], "counts": ""}},
        "broken RLE: the string is not valid",
    ),
    "a compressed RLE in another script": (
        {"segmentation": {"size": [10, 20], "counts": "маска"}},
        "broken RLE: the string is not valid",
    ),
    "another image": ({"image_id": 77}, "unknown image id"),
    "another category": ({"category_id": 77}, "unknown category id"),
}


# Unusable boxes, and the reported reason.
BOX_FAULTS: dict[str, tuple[Any, str]] = {
    **{f"{name} in a box": ([2, value, 6, 4], NOT_FOUR) for name, value in NOT_A_NUMBER.items()},
    **{
        f"{name} for a box": (value, NOT_FOUR)
        for name, value in NOT_A_NUMBER.items()
        if name != "null"
    },
    "five numbers": ([2, 3, 6, 4, 1], NOT_FOUR),
    "three numbers": ([2, 3, 6], NOT_FOUR),
    "corners": ([[2, 3], [8, 7]], NOT_FOUR),
    "a box with keys": ({"x": 2, "y": 3, "w": 6, "h": 4}, NOT_FOUR),
    "a box from wall to wall": ([float("-inf"), 0, float("inf"), 4], NOT_FOUR),
    "a box without width": ([2, 3, 0, 4], "box with zero area"),
    "a box of negative height": ([2, 3, 6, -4], "box with zero area"),
    "a box beyond the image": ([21, 3, 6, 4], "box outside the image"),
    "a box before the image": ([-9, 3, 6, 4], "box outside the image"),
    "a box far away": ([1e308, 3, 1e308, 4], "box outside the image"),
    "a mask elsewhere": ([12, 3, 6, 4], "box that does not overlap its mask"),
}


@pytest.mark.parametrize("name", BOX_FAULTS)
def test_unusable_box_is_taken_from_the_mask(name: str) -> None:
    box, reason = BOX_FAULTS[name]
    for entries in ([], random_entries(30)):
        plain, reader = new_reader(), new_reader()
        expected = plain.read([*entries, entry(999)])
        actual = reader.read([*entries, entry(999, bbox=copy.deepcopy(box))])
        assert_same(actual, expected)
        assert np.isnan(actual.file_boxes[-1]).all()
        assert reader.dropped.ids == plain.dropped.ids
        found = [key for key, ids in reader.repaired.ids.items() if 999 in ids]
        assert found == [f"{reason}, taken from the mask"]


@pytest.mark.parametrize("name", FAULTS)
def test_faulty_annotation_does_not_affect_others(name: str) -> None:
    changes, reason = FAULTS[name]
    entries = random_entries(30)
    plain = new_reader()
    expected = plain.read(entries)
    assert "mask with zero area" in plain.dropped.ids
    assert "box with zero area, taken from the mask" in plain.repaired.ids
    for place in (0, 13, 30):
        reader = new_reader()
        faulty = entry(999, **copy.deepcopy(changes))
        batch = reader.read([*entries[:place], faulty, *entries[place:]])
        assert_same(batch, expected)
        assert reader.repaired.ids == plain.repaired.ids
        ids = {key: [i for i in found if i != 999] for key, found in reader.dropped.ids.items()}
        assert {key: found for key, found in ids.items() if found} == plain.dropped.ids
        assert [key for key, found in reader.dropped.ids.items() if 999 in found] == [reason]
    alone = new_reader()
    assert len(alone.read([faulty])) == 0
    assert alone.dropped.ids == {reason: [999]}


def test_many_faulty_annotations() -> None:
    reader = new_reader()
    entries = [entry(n, **changes) for n, (changes, _) in enumerate(FAULTS.values())]
    batch = reader.read([entry(500), *entries, entry(501)])
    assert len(batch) == 2
    found = {n: reason for reason, ids in reader.dropped.ids.items() for n in ids}
    assert found == {n: reason for n, (_, reason) in enumerate(FAULTS.values())}
    # Reasons are in the order of their first annotations, ids in the order of the file.
    firsts = [ids[0] for ids in reader.dropped.ids.values()]
    assert firsts == sorted(firsts)
    assert all(ids == sorted(ids) for ids in reader.dropped.ids.values())


def test_an_annotation_has_one_reason() -> None:
    reader = new_reader()
    wrong = {"image_id": 77, "iscrowd": "0", "segmentation": None}
    reader.read([entry(1, **wrong), entry(2, **{**wrong, "image_id": 5})])
    assert reader.dropped.ids == {"unknown image id": [1], "iscrowd that is not 0 or 1": [2]}


def test_repaired_instances_are_recorded() -> None:
    reader = new_reader()
    batch = reader.read(
        [
            entry(1, bbox=None),
            entry(2, bbox=[-3, 3, 11, 4]),
            entry(3, segmentation=[[1, 1], SQUARE, [1, 2, 3, 4, 5, 6, 7]]),
            entry(4, bbox=[1.5, 3, 19, 4]),  # half a pixel too long is rounding
            {key: value for key, value in entry(5).items() if key not in ("bbox", "iscrowd")},
            entry(6, bbox=None, segmentation=[SQUARE, [1.0]], image_id=77),  # dropped only
        ]
    )
    assert batch.boxes.tolist() == [
        [2, 3, 8, 7],
        [0, 3, 8, 7],
        [2, 3, 8, 7],
        [1.5, 3, 20, 7],
        [2, 3, 8, 7],
    ]
    assert np.diff(batch.instance_starts).tolist() == [1] * 5
    assert reader.repaired.ids == {
        "missing box, taken from the mask": [1, 5],
        "box clipped to the image": [2],
        "polygon part with fewer than three points, ignored": [3],
        "polygon part with an odd number of coordinates, ignored": [3],
    }
    assert reader.dropped.ids == {"unknown image id": [6]}


def test_records_accumulate_over_batches() -> None:
    reader = new_reader()
    for first in (10, 20):
        reader.read(
            [entry(first, segmentation=None), entry(first + 1), entry(first + 2, bbox=None)]
        )
    assert reader.dropped.ids == {"no mask": [10, 20]}
    assert reader.repaired.ids == {"missing box, taken from the mask": [12, 22]}


@pytest.mark.parametrize("far", [1020.5, -1000.5, 2.0**33, 1e300, -1.7e308])
def test_points_far_outside_the_image_are_not_used(far: float) -> None:
    # A spike that leaves the image (pytest fails on any warning).
    spiked = [*SQUARE[:4], far, 5.0, *SQUARE[4:]]
    reader = new_reader()
    batch = reader.read(
        [entry(1), entry(2, segmentation=[spiked]), entry(3, segmentation=[spiked, SQUARE])]
    )
    assert batch.ids.tolist() == [1, 3]
    assert batch.masks(12).all()
    assert reader.dropped.ids == {"polygon far outside the image": [2]}
    assert reader.repaired.ids == {"polygon part far outside the image, ignored": [3]}


@pytest.mark.parametrize("near", [1020.0, -1000.0])
def test_points_somewhat_outside_the_image_are_used(near: float) -> None:
    spiked = [*SQUARE[:4], near, 5.0, *SQUARE[4:]]
    reader = new_reader()
    batch = reader.read([entry(1), entry(2, segmentation=[spiked])])
    assert batch.ids.tolist() == [1, 2]
    assert batch.masks(12)[0].all()
    assert reader.dropped.ids == reader.repaired.ids == {}


def test_file_without_images_or_categories() -> None:
    reader = BatchReader({}, [])
    assert len(reader.read([entry(1), entry(2)])) == 0
    assert reader.dropped.ids == {"unknown image id": [1, 2]}
