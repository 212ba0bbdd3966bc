"""Calibration and confusion matrix, against values found by hand."""

from __future__ import annotations

from pathlib import Path

import hotcoco
import numpy as np
import pytest
from rectangles import NAMES, assigned, random_case, read_objects, to_results

from meinst.data.ground_truth import ground_truth
from meinst.diagnosis.scores import calibrate, confusion_matrix, expected_error, score_bins

CAT, DOG, FAR = (10, 10, 30, 30), (60, 60, 80, 80), (10, 60, 30, 80)


def test_no_detections_have_no_calibration_error(tmp_path: Path) -> None:
    calibration = calibrate(assigned(read_objects(tmp_path, [(1, "cat", CAT)]), []))
    assert (calibration.error, calibration.working_error) == (None, None)
    assert {each.detections for each in calibration.bins} == {0}


def test_calibration_error_is_the_mean_gap() -> None:
    # Scores 0.8 and 0.9 (bins 8 and 9): precision 1/2 and 1.
    bins = score_bins(np.array([0.9, 0.8, 0.8]), np.array([True, True, False]))
    assert [(b.detections, b.precision) for b in bins[8:]] == [(2, 0.5), (1, 1.0)]
    assert bins[8].mean_score == pytest.approx(0.8)
    assert expected_error(bins) == pytest.approx((2 * 0.3 + 1 * 0.1) / 3)


def test_score_of_1_is_in_the_last_bin() -> None:
    assert score_bins(np.array([1.0]), np.array([True]))[-1].detections == 1


def test_working_error_leaves_out_lower_scores(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    table = assigned(data, to_results([(1, "cat", 0.75, CAT), (1, "cat", 0.45, FAR)]))
    calibration = calibrate(table)
    assert calibration.error == pytest.approx((0.25 + 0.45) / 2)
    assert calibration.working_error == pytest.approx(0.25)


def test_detections_in_crowds_do_not_count(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)], crowds=[(1, "cat", FAR)])
    calibration = calibrate(assigned(data, to_results([(1, "cat", 0.9, FAR)])))
    assert calibration.error is None


def test_confusion_matrix(tmp_path: Path) -> None:
    objects = [(1, "cat", CAT), (1, "dog", DOG), (2, "owl", CAT), (2, "owl", DOG)]
    detections = [
        (1, "cat", 0.9, CAT),  # cat as cat
        (1, "dog", 0.8, CAT),  # on the cat that is found: false
        (1, "cat", 0.7, DOG),  # dog as cat
        (1, "owl", 0.6, DOG),  # the dog is taken already: false
        (2, "owl", 0.9, FAR),  # false
        (2, "owl", 0.4, CAT),  # below the working score
    ]
    table = assigned(read_objects(tmp_path, objects), to_results(detections))
    assert confusion_matrix(table).tolist() == [
        [1, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 2],
        [0, 1, 2, 0],
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_confusion_matrix_has_the_margins_of_hotcoco(seed: int, tmp_path: Path) -> None:
    data, results = random_case(tmp_path, seed)
    matrix = confusion_matrix(assigned(data, results))
    truth = hotcoco.COCO(ground_truth(data))
    evaluation = hotcoco.COCOeval(truth, truth.load_res(results), "segm")
    expected = evaluation.confusion_matrix(iou_thr=0.5, max_det=100, min_score=0.5)["matrix"]
    assert matrix[:-1].sum(1).tolist() == expected[:-1].sum(1).tolist()  # all objects
    confident = [r for r in results if r["score"] >= 0.5]
    counts = np.bincount([r["category_id"] - 1 for r in confident], minlength=len(NAMES))
    in_crowds = counts - matrix[:, :-1].sum(0)
    assert (in_crowds >= 0).all()
    assert not in_crowds[1:].any()  # the crowd is one of cats
