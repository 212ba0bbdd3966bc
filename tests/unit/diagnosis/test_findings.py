"""Figures of errors, sizes, classes and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rectangles import assigned, random_case, read_objects, to_results

from meinst.data.ground_truth import ground_truth
from meinst.data.metrics import coco_metrics
from meinst.diagnosis.diagnose import rank_pictures, sample_images
from meinst.diagnosis.findings import (
    count_found_below,
    summarise_classes,
    summarise_errors,
    summarise_sizes,
)
from meinst.diagnosis.kinds import ERRORS

CAT, DOG, FAR = (10, 10, 30, 30), (60, 60, 80, 80), (10, 60, 30, 80)


@pytest.mark.parametrize("seed", [0, 1])
def test_shares_of_lost_ap_and_of_errors_add_up_to_1(seed: int, tmp_path: Path) -> None:
    errors, before = summarise_errors(assigned(*random_case(tmp_path, seed)))
    assert [error.kind for error in errors] == [kind.title for kind in ERRORS]
    assert 0 < before < 1
    assert sum(error.lost or 0 for error in errors) == pytest.approx(1)
    assert sum(error.share or 0 for error in errors) == pytest.approx(1)
    for error in errors:
        assert np.mean(error.dap_by_iou) == pytest.approx(error.dap)
        assert error.dap_by_iou[0] == pytest.approx(error.dap50)
        assert np.mean(list(error.dap_per_class.values())) == pytest.approx(error.dap)


def test_false_positives_and_unfound_objects_are_counted_once(tmp_path: Path) -> None:
    data, results = random_case(tmp_path, 0)
    table = assigned(data, results)
    errors, _ = summarise_errors(table)
    pictures = rank_pictures(data, table)
    assert sum(error.detections for error in errors) == sum(p.false for p in pictures)
    assert sum(error.objects for error in errors) == sum(p.objects - p.found for p in pictures)
    assert sum(p.objects for p in pictures) == 40


def test_no_errors_have_no_shares(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT)])
    errors, before = summarise_errors(assigned(data, to_results([(1, "cat", 0.9, CAT)])))
    assert before == pytest.approx(1)
    assert {error.share for error in errors} == {None}
    assert all(error.dap == pytest.approx(0) for error in errors)


def test_low_scores_are_missed_and_not_loose(tmp_path: Path) -> None:
    # The only detection near the second object is below the working score: repairing loose boxes
    # does not find it, and without it all is found.
    data = read_objects(tmp_path, [(1, "cat", CAT), (1, "cat", DOG)])
    detections = [(1, "cat", 0.9, CAT), (1, "cat", 0.1, (60, 60, 66, 80))]
    errors, before = summarise_errors(assigned(data, to_results(detections)))
    gains = {error.kind: error.dap for error in errors}
    assert before == pytest.approx(51 / 101)
    assert gains["loose box"] == pytest.approx(0)
    assert gains["missed"] == pytest.approx(50 / 101)


def test_objects_found_below_the_working_score(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT), (1, "cat", DOG), (1, "cat", FAR)])
    detections = [(1, "cat", 0.9, CAT), (1, "cat", 0.1, DOG)]
    assert count_found_below(assigned(data, to_results(detections))) == 1


def test_figures_of_classes_and_sizes(tmp_path: Path) -> None:
    large = (0, 0, 100, 97)  # 9,700 pixels: large; the others have 400: small
    objects = [(1, "cat", CAT), (1, "cat", DOG), (2, "dog", large)]
    detections = [(1, "cat", 0.9, CAT), (1, "cat", 0.8, FAR), (2, "dog", 0.7, large)]
    data, results = read_objects(tmp_path, objects), to_results(detections)
    table = assigned(data, results)
    metrics = coco_metrics(ground_truth(data), results, 100)
    errors, _ = summarise_errors(table)
    cat, dog, owl = summarise_classes(table, metrics.segm.per_class, errors)
    assert (cat.name, cat.objects, cat.found, cat.detections) == ("cat", 2, 1, 2)
    assert (cat.recall, cat.precision, cat.main_loss) == (0.5, 0.5, "missed")
    assert (dog.recall, dog.precision, dog.main_loss) == (1, 1, None)
    assert (owl.objects, owl.recall, owl.precision, owl.ap) == (0, None, None, None)
    sizes = summarise_sizes(table, metrics.bbox, metrics.segm, metrics.segm)
    assert [(s.name, s.objects, s.found) for s in sizes] == [
        ("small", 2, 1),
        ("medium", 0, 0),
        ("large", 1, 1),
    ]
    assert sizes[0].hidden == {"missed": 1}
    assert (sizes[1].recall, sizes[1].mean_iou) == (None, None)
    assert (sizes[2].mean_iou, sizes[2].mean_boundary_iou) == (1, 1)
    assert sizes[2].mask_ap == pytest.approx(1)


def test_pictures_with_most_errors_come_first(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(1, "cat", CAT), (2, "cat", CAT), (2, "cat", DOG)], images=3)
    detections = [(2, "cat", 0.9, CAT), (3, "cat", 0.8, CAT), (3, "cat", 0.7, DOG)]
    pictures = rank_pictures(data, assigned(data, to_results(detections)))
    assert [(p.image_id, p.errors, p.found, p.false) for p in pictures] == [
        (3, 2, 0, 2),
        (1, 1, 0, 0),  # the earlier one of equal numbers
        (2, 1, 1, 0),
    ]


def test_sample_is_chosen_by_the_seed(tmp_path: Path) -> None:
    data = read_objects(tmp_path, [(n, "cat", CAT) for n in range(1, 21)], images=20)
    chosen = [tuple(r.id for r in sample_images(data, 8, seed).images) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == 8
    assert list(chosen[0]) == sorted(chosen[0])
    sample = sample_images(data, 8, 0)
    assert [len(each) for each in sample.instances] == [1] * 8
    assert [int(each.ids[0]) for each in sample.fields] == [99 + n for n in chosen[0]]
    assert sample_images(data, 20, 0) is data
