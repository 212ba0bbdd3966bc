"""Kinds of errors, on rectangles whose overlaps are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rectangles import Box, Detection, Object, assigned, read_objects, rle, to_results

from meinst.diagnosis.assignments import THRESHOLDS
from meinst.diagnosis.kinds import ERRORS, Kind

CAT: Box = (10, 10, 30, 30)  # 400 pixels
FAR: Box = (60, 60, 80, 80)

# Objects and detections in image 1, and the kinds of the detections and objects at IoU 0.5.
CASES: dict[str, tuple[list[Object], list[Detection], list[Kind], list[Kind]]] = {
    "no detections": ([(1, "cat", CAT)], [], [], [Kind.MISSED]),
    "no objects": ([], [(1, "cat", 0.9, CAT)], [Kind.FALSE], []),
    "correct": ([(1, "cat", CAT)], [(1, "cat", 0.9, CAT)], [Kind.CORRECT], [Kind.CORRECT]),
    "elsewhere": ([(1, "cat", CAT)], [(1, "cat", 0.9, FAR)], [Kind.FALSE], [Kind.MISSED]),
    "another image": (
        [(1, "cat", CAT)],
        [(2, "cat", 0.9, CAT)],
        [Kind.FALSE],
        [Kind.MISSED],
    ),
    # IoU 360 / 400 = 0.9: the better one finds the object.
    "double": (
        [(1, "cat", CAT)],
        [(1, "cat", 0.7, (10, 10, 30, 28)), (1, "cat", 0.9, CAT)],
        [Kind.CORRECT, Kind.DOUBLE],
        [Kind.CORRECT],
    ),
    "wrong class": (
        [(1, "cat", CAT)],
        [(1, "dog", 0.9, CAT)],
        [Kind.WRONG_CLASS],
        [Kind.WRONG_CLASS],
    ),
    # IoU 120 / 400 = 0.3 and box IoU 0.3.
    "loose box": (
        [(1, "cat", CAT)],
        [(1, "cat", 0.9, (10, 10, 16, 30))],
        [Kind.LOOSE_BOX],
        [Kind.LOOSE_BOX],
    ),
    "wrong class and loose": (
        [(1, "cat", CAT)],
        [(1, "dog", 0.9, (10, 10, 16, 30))],
        [Kind.BOTH],
        [Kind.MISSED],  # repairing the class alone would not find it
    ),
    # IoU 20 / 400 = 0.05, below 0.1.
    "hardly touching": (
        [(1, "cat", CAT)],
        [(1, "cat", 0.9, (10, 10, 11, 30))],
        [Kind.FALSE],
        [Kind.MISSED],
    ),
    # 30 x 20 pixels cover both objects of 10 x 20 whole; IoU 200 / 600 with each.
    "merged": (
        [(1, "cat", (10, 10, 20, 30)), (1, "cat", (30, 10, 40, 30))],
        [(1, "cat", 0.9, (10, 10, 40, 30))],
        [Kind.MERGED],
        [Kind.MERGED, Kind.MERGED],
    ),
    # IoU 400 / 700 with the large object, which it finds; the small one is covered.
    "merged with one found": (
        [(1, "cat", CAT), (1, "cat", (32, 10, 40, 30))],
        [(1, "cat", 0.9, (10, 10, 40, 30))],
        [Kind.CORRECT],
        [Kind.CORRECT, Kind.MERGED],
    ),
    # 18 x 20 pixels cover 4 of 10 columns of each: IoU 80 / 480.
    "less than half of each, not merged": (
        [(1, "cat", (10, 10, 20, 30)), (1, "cat", (30, 10, 40, 30))],
        [(1, "cat", 0.9, (16, 10, 34, 30))],
        [Kind.LOOSE_BOX],
        [Kind.LOOSE_BOX, Kind.MISSED],
    ),
    # In the second image, with a better score than the detection in the first.
    "merged in another image": (
        [(1, "cat", CAT), (2, "cat", (10, 10, 20, 30)), (2, "cat", (30, 10, 40, 30))],
        [(1, "cat", 0.3, CAT), (2, "cat", 0.9, (10, 10, 40, 30))],
        [Kind.MERGED, Kind.CORRECT],
        [Kind.MISSED, Kind.MERGED, Kind.MERGED],
    ),
    "of two classes, not merged": (
        [(1, "cat", (10, 10, 20, 30)), (1, "dog", (30, 10, 40, 30))],
        [(1, "cat", 0.9, (10, 10, 40, 30))],
        [Kind.LOOSE_BOX],
        [Kind.LOOSE_BOX, Kind.MISSED],
    ),
    # Two pieces of 160 pixels each, IoU 0.4.
    "split": (
        [(1, "cat", CAT)],
        [(1, "cat", 0.9, (10, 10, 30, 18)), (1, "cat", 0.8, (10, 20, 30, 28))],
        [Kind.SPLIT, Kind.SPLIT],
        [Kind.SPLIT],
    ),
    # 280 pixels find the object (IoU 0.7), and 80 others are a second piece of it (IoU 0.2).
    "split with one correct": (
        [(1, "cat", CAT)],
        [(1, "cat", 0.9, (10, 10, 30, 24)), (1, "cat", 0.8, (10, 26, 30, 30))],
        [Kind.CORRECT, Kind.SPLIT],
        [Kind.CORRECT],
    ),
    "the same piece twice is not split": (
        [(1, "cat", CAT)],
        [(1, "cat", 0.9, (10, 10, 30, 18)), (1, "cat", 0.8, (10, 10, 30, 17))],
        [Kind.LOOSE_BOX, Kind.LOOSE_BOX],
        [Kind.LOOSE_BOX],
    ),
    # A piece with a score below the working score does not make the other one a piece.
    "split by a detection of low score": (
        [(1, "cat", CAT)],
        [(1, "cat", 0.9, (10, 10, 30, 18)), (1, "cat", 0.4, (10, 20, 30, 28))],
        [Kind.LOOSE_BOX, Kind.SPLIT],
        [Kind.LOOSE_BOX],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kind_of_each_detection_and_object(name: str, tmp_path: Path) -> None:
    objects, detections, kinds, object_kinds = CASES[name]
    table = assigned(read_objects(tmp_path, objects), to_results(detections))
    assert [Kind(k) for k in table.kinds[0]] == kinds  # best score first
    assert [Kind(k) for k in table.object_kinds()] == object_kinds


def test_right_box_with_another_mask_is_a_poor_outline(tmp_path: Path) -> None:
    results = to_results([(1, "cat", 0.9, CAT)])
    # A frame of 2 pixels: 400 - 256 = 144 pixels, so IoU 0.36 in the same box.
    frame = [(10, 10, 30, 12), (10, 28, 30, 30), (10, 12, 12, 28), (28, 12, 30, 28)]
    results[0]["segmentation"] = rle(*frame)
    table = assigned(read_objects(tmp_path, [(1, "cat", CAT)]), results)
    assert [Kind(k) for k in table.kinds[0]] == [Kind.POOR_OUTLINE]
    assert [Kind(k) for k in table.object_kinds()] == [Kind.POOR_OUTLINE]
    assert table.iou[0] == pytest.approx(144 / 400)
    assert table.box_iou[0] == 1


def test_right_box_with_a_mask_beside_the_object_is_a_poor_outline(tmp_path: Path) -> None:
    results = to_results([(1, "cat", 0.9, CAT)])
    results[0]["segmentation"] = rle((10, 10, 30, 11))  # 20 of 400 pixels: IoU 0.05
    table = assigned(read_objects(tmp_path, [(1, "cat", CAT)]), results)
    assert Kind(table.kinds[0, 0]) == Kind.POOR_OUTLINE


def test_right_box_with_a_mask_elsewhere_is_a_poor_outline(tmp_path: Path) -> None:
    results = to_results([(1, "cat", 0.9, CAT)])
    results[0]["segmentation"] = rle((40, 40, 50, 50))  # of no object: all mask IoUs are 0
    data = read_objects(tmp_path, [(1, "cat", FAR), (1, "cat", CAT)])
    table = assigned(data, results)
    assert Kind(table.kinds[0, 0]) == Kind.POOR_OUTLINE
    assert table.targets[0, 0] == 1


def test_part_of_a_detection_in_a_crowd_is_not_a_loose_box(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", FAR)], crowds=[(1, "cat", (0, 0, 100, 16))])
    table = assigned(data, to_results([(1, "cat", 0.9, CAT)]))  # 6 of 20 rows are inside
    assert Kind(table.kinds[0, 0]) == Kind.FALSE


def test_more_detections_than_fit_a_byte(tmp_path: Path) -> None:
    """pycocotools 2.0.11 cannot compute the areas of more than 255 masks on NumPy 2."""
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    table = assigned(data, to_results([(1, "cat", 0.9 - n / 1000, CAT) for n in range(300)]))
    assert np.bincount(table.kinds[0]).tolist() == [1, 0, 299]  # one correct, the others double


def test_kinds_depend_on_the_iou_threshold(tmp_path: Path) -> None:
    # Box and mask IoU 360 / 400 = 0.9: correct up to 0.9, a loose box at 0.95.
    table = assigned(
        read_objects(tmp_path, [(1, "cat", CAT)]), to_results([(1, "cat", 0.9, (10, 10, 30, 28))])
    )
    expected = [Kind.CORRECT if t < 0.91 else Kind.LOOSE_BOX for t in THRESHOLDS]
    assert [Kind(k) for k in table.kinds[:, 0]] == expected


def test_detection_in_a_crowd_is_ignored_unless_it_finds_an_object(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)], crowds=[(1, "cat", (5, 5, 95, 95))])
    detections = [(1, "cat", 0.9, CAT), (1, "cat", 0.8, FAR), (1, "dog", 0.7, FAR)]
    table = assigned(data, to_results(detections))
    assert [Kind(k) for k in table.kinds[0]] == [Kind.CORRECT, Kind.IGNORED, Kind.FALSE]
    assert [Kind(k) for k in table.object_kinds()] == [Kind.CORRECT, Kind.IGNORED]


def test_objects_found_with_low_scores_only_are_missed(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    results = to_results([(1, "cat", 0.3, CAT)])
    for working_score, kind in ((0.31, Kind.MISSED), (0.3, Kind.CORRECT)):
        table = assigned(data, results, working_score)
        assert [Kind(k) for k in table.object_kinds()] == [kind]
        assert Kind(table.kinds[0, 0]) == Kind.CORRECT


def test_object_has_the_kind_of_its_best_detection(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    detections = [(1, "cat", 0.6, (10, 10, 16, 30)), (1, "dog", 0.9, CAT)]
    table = assigned(data, to_results(detections))
    assert [Kind(k) for k in table.kinds[0]] == [Kind.WRONG_CLASS, Kind.LOOSE_BOX]
    assert [Kind(k) for k in table.object_kinds()] == [Kind.WRONG_CLASS]


def test_boundary_iou_is_that_of_the_bands(tmp_path: Path) -> None:
    # The diagonal is 141 pixels, so bands are 3 pixels wide.
    object_, found = (10, 10, 70, 70), (10, 10, 70, 67)
    table = assigned(
        read_objects(tmp_path, [(1, "cat", object_)]), to_results([(1, "cat", 0.9, found)])
    )
    bands = 3600 - 54**2, 60 * 57 - 54 * 51
    shared = 3 * 54 + 2 * 3 * 54 + 3 * 6  # top, sides below it without the last 3 rows
    mask = np.zeros((2, 60, 60), dtype=bool)
    mask[0], mask[1, :57] = True, True
    mask[0, 3:57, 3:57], mask[1, 3:54, 3:57] = False, False
    assert [mask[0].sum(), mask[1].sum()] == list(bands)
    shared = int((mask[0] & mask[1]).sum())
    assert table.iou[0] == pytest.approx(57 / 60)
    assert table.boundary_iou[0] == pytest.approx(shared / (sum(bands) - shared))


def test_every_kind_has_a_title() -> None:
    assert [kind.title for kind in ERRORS] == [
        "double",
        "wrong class",
        "merged",
        "split",
        "poor outline",
        "loose box",
        "both",
        "false",
        "missed",
    ]
