"""Average precision before and after repairs, and its agreement with hotcoco."""

from __future__ import annotations

from pathlib import Path

import hotcoco
import numpy as np
import pytest
from rectangles import NAMES, assigned, random_case, read_objects, to_results

from meinst.data.ground_truth import ground_truth
from meinst.data.metrics import coco_metrics
from meinst.diagnosis.kinds import ERRORS, Kind
from meinst.diagnosis.repairs import (
    average_precision,
    outline_precision,
    without_false_negatives,
    without_false_positives,
)

SEEDS = (0, 1, 2, 3)
CAT, DOG = (10, 10, 30, 30), (60, 60, 80, 80)


@pytest.mark.parametrize("seed", SEEDS)
def test_average_precision_equals_coco(seed: int, tmp_path: Path) -> None:
    data, results = random_case(tmp_path, seed)
    expected = coco_metrics(ground_truth(data), results, 100).segm
    found = average_precision(assigned(data, results))
    assert expected.ap is not None
    assert 0.1 < expected.ap < 0.9
    assert np.nanmean(found) == pytest.approx(expected.ap, abs=1e-12)
    assert np.nanmean(found[0]) == pytest.approx(expected.ap50, abs=1e-12)
    for label, name in enumerate(NAMES):
        assert found[:, label].mean() == pytest.approx(expected.per_class[name].ap, abs=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_average_precision_is_1_after_all_repairs(seed: int, tmp_path: Path) -> None:
    table = assigned(*random_case(tmp_path, seed))
    kinds = {Kind(kind) for kind in np.unique(table.kinds)}
    assert kinds >= {Kind.DOUBLE, Kind.WRONG_CLASS, Kind.LOOSE_BOX, Kind.FALSE, Kind.MERGED}
    np.testing.assert_allclose(average_precision(table, ERRORS), 1, rtol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_false_positives_and_negatives_equal_tide(seed: int, tmp_path: Path) -> None:
    data, results = random_case(tmp_path, seed)
    truth = hotcoco.COCO({key: value for key, value in ground_truth(data).items() if key != "info"})
    evaluation = hotcoco.COCOeval(truth, truth.load_res(results), "segm")
    evaluation.params.max_dets = [100]
    evaluation.evaluate()
    expected = evaluation.tide_errors(pos_thr=0.5, bg_thr=0.1)
    table = assigned(data, results)
    base = np.nanmean(average_precision(table)[0])
    assert base == pytest.approx(expected["ap_base"], abs=1e-9)
    for name, repaired in (
        ("FP", without_false_positives(table)),
        ("FN", without_false_negatives(table)),
    ):
        gain = np.nanmean(repaired[0]) - base
        assert gain == pytest.approx(expected["delta_ap"][name], abs=1e-9), name
    assert (table.kinds[0] == Kind.DOUBLE).sum() > 0


def test_gains_of_single_repairs(tmp_path: Path) -> None:
    # One class, two objects; in order: false, correct, nothing for the second object.
    data = read_objects(tmp_path, [(1, "cat", CAT), (1, "cat", DOG)])
    far = (10, 60, 20, 70)
    table = assigned(data, to_results([(1, "cat", 0.9, far), (1, "cat", 0.8, CAT)]))
    # Precision 1/2 up to recall 1/2: 51 of 101 recall levels.
    assert average_precision(table)[0, 0] == pytest.approx(51 / 101 / 2)
    # Without the false one, precision 1 up to recall 1/2.
    assert average_precision(table, [Kind.FALSE])[0, 0] == pytest.approx(51 / 101)
    # Without the missed object, precision 1/2 up to recall 1.
    assert average_precision(table, [Kind.MISSED])[0, 0] == pytest.approx(1 / 2)
    assert average_precision(table, [Kind.DOUBLE])[0, 0] == pytest.approx(51 / 101 / 2)
    assert average_precision(table, [Kind.FALSE, Kind.MISSED])[0, 0] == pytest.approx(1)


def test_repaired_class_counts_for_the_class_of_the_object(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT), (1, "dog", DOG)])
    table = assigned(data, to_results([(1, "dog", 0.9, CAT), (1, "dog", 0.8, DOG)]))
    before = average_precision(table)[0]
    np.testing.assert_allclose(before, [0, 1 / 2, np.nan])  # owls have no objects
    np.testing.assert_allclose(average_precision(table, [Kind.WRONG_CLASS])[0], [1, 1, np.nan])


def test_repaired_detection_of_a_found_object_is_removed(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    loose = (10, 10, 16, 30)  # IoU 0.3
    table = assigned(data, to_results([(1, "cat", 0.9, loose), (1, "cat", 0.8, CAT)]))
    assert average_precision(table)[0, 0] == pytest.approx(1 / 2)
    assert average_precision(table, [Kind.LOOSE_BOX])[0, 0] == pytest.approx(1)


def test_found_object_keeps_its_detection(tmp_path: Path) -> None:
    # The loose box is removed; it does not take the place of the correct one behind a false one.
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    detections = [
        (1, "cat", 0.9, (10, 10, 16, 30)),
        (1, "cat", 0.85, (60, 10, 70, 20)),
        (1, "cat", 0.8, CAT),
    ]
    table = assigned(data, to_results(detections))
    assert average_precision(table)[0, 0] == pytest.approx(1 / 3)
    assert average_precision(table, [Kind.LOOSE_BOX])[0, 0] == pytest.approx(1 / 2)


def test_repair_replaces_a_correct_detection_of_low_score(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT), (1, "cat", DOG)])
    detections = [(1, "cat", 0.9, (10, 10, 16, 30)), (1, "cat", 0.3, CAT)]
    table = assigned(data, to_results(detections))
    assert average_precision(table)[0, 0] == pytest.approx(51 / 101 / 2)
    # One of two objects is found, once.
    assert average_precision(table, [Kind.LOOSE_BOX])[0, 0] == pytest.approx(51 / 101)


def test_repaired_merger_finds_all_its_objects(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", (10, 10, 20, 30)), (1, "cat", (30, 10, 40, 30))])
    table = assigned(data, to_results([(1, "cat", 0.9, (10, 10, 40, 30))]))
    assert average_precision(table)[0, 0] == 0
    assert average_precision(table, [Kind.MERGED])[0, 0] == pytest.approx(1)
    assert average_precision(table, [Kind.LOOSE_BOX, Kind.MISSED])[0, 0] == 0


def test_repaired_pieces_become_one_detection(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    pieces = [(1, "cat", 0.9, (10, 10, 30, 18)), (1, "cat", 0.8, (10, 20, 30, 28))]
    table = assigned(data, to_results(pieces))
    assert average_precision(table, [Kind.SPLIT])[0, 0] == pytest.approx(1)


def test_class_of_which_all_objects_are_missed(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT), (1, "dog", DOG)])
    table = assigned(data, to_results([(1, "cat", 0.9, (60, 10, 70, 20))]))
    np.testing.assert_allclose(average_precision(table)[0], [0, 0, np.nan])
    # Nothing is left to find: dogs have no detections either, cats have a false one.
    np.testing.assert_allclose(average_precision(table, [Kind.MISSED])[0], [0, 1, np.nan])


def test_no_detections_at_all(tmp_path: Path) -> None:
    table = assigned(read_objects(tmp_path, [(1, "cat", CAT)]), [])
    assert average_precision(table)[0, 0] == 0
    assert average_precision(table, ERRORS)[0, 0] == pytest.approx(1)
    assert outline_precision(table)[0, 0] == 0


def test_outlines_count_in_boundary_ap(tmp_path: Path) -> None:
    # Mask IoU 57/60 = 0.95; the bands of 3 pixels agree in 498 of 840 pixels: 0.59.
    data = read_objects(tmp_path, [(1, "cat", (10, 10, 70, 70))])
    table = assigned(data, to_results([(1, "cat", 0.9, (10, 10, 70, 67))]))
    assert average_precision(table)[:, 0].sum() == pytest.approx(10)
    levels = np.linspace(0.5, 0.95, 10)
    expected = (levels <= table.boundary_iou[0]).sum()
    assert 0 < expected < 10
    assert outline_precision(table)[:, 0].sum() == pytest.approx(expected)
