"""Original and decoded masks: the right instances, in the right pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from meinst.codec_tools.evaluate import CodecScores, evaluate_codec
from meinst.codec_tools.report.pairs import ADDED, BOTH, LOST, OUTSIDE, Pair, find_pairs, spread
from meinst.codecs import Codec, DCTCodec, PCACodec
from meinst.data.coco import CocoData, read_coco


@pytest.fixture
def data(synthetic_data) -> CocoData:
    return read_coco(synthetic_data.annotations)


def fit(data: CocoData, **options) -> Codec:
    masks = np.concatenate([image.masks(14) for image in data.instances])
    labels = np.concatenate([image.labels for image in data.instances])
    codec = PCACodec(3, 14, **options)
    return codec.fit(torch.from_numpy(masks), torch.from_numpy(labels))


def all_pairs(scores: CodecScores, codec: Codec, data) -> list[Pair]:
    return find_pairs(scores, codec, data, np.arange(len(scores.iou)))


def iou_of(pair: Pair) -> float:
    return (pair.original & pair.decoded).sum() / (pair.original | pair.decoded).sum()


def test_nothing_chosen_gives_nothing(data: CocoData) -> None:
    codec = DCTCodec(6, 14)
    assert find_pairs(evaluate_codec(codec, data), codec, data, np.arange(0)) == []
    assert spread(np.zeros(0, np.float32), 3).tolist() == []


def test_spread_goes_from_best_to_worst_in_even_steps() -> None:
    # Ranked: 0.9 (1), 0.7 (3), 0.5 (2), 0.3 (4), 0.1 (0).
    iou = np.array([0.1, 0.9, 0.5, 0.7, 0.3], dtype=np.float32)
    assert spread(iou, 3).tolist() == [1, 2, 0]
    assert spread(iou, 5).tolist() == spread(iou, 99).tolist() == [1, 3, 2, 4, 0]
    assert spread(iou, 1).tolist() == [1]
    with pytest.raises(ValueError, match=r"count .* 0"):
        spread(iou, 0)


def test_pairs_have_the_measured_iou(data: CocoData) -> None:
    """The IoU counted on the pixels of a pair is the one that run lengths gave."""
    codec = fit(data)
    scores = evaluate_codec(codec, data)
    pairs = all_pairs(scores, codec, data)
    assert len(pairs) == 9
    assert [iou_of(pair) for pair in pairs] == pytest.approx(scores.iou.tolist(), abs=1e-6)
    assert len({round(pair.iou, 4) for pair in pairs}) > 4  # or the order would not matter
    for pair, annotated in zip(pairs, annotated_masks(data, pairs), strict=True):
        assert pair.original.sum() == annotated.sum()  # cut to the mask, nothing is cut off
        for axis in (0, 1):  # a pixel on both sides, and what rounding to pixels adds
            extent = np.ptp(np.flatnonzero(annotated.any(1 - axis))) + 1
            assert extent <= pair.original.shape[axis] <= extent + 4


def annotated_masks(data: CocoData, pairs: list[Pair]) -> list[np.ndarray]:
    """The full-size masks of the annotations that the pairs name, as pycocotools draws them."""
    content = json.loads(data.annotations.read_bytes())
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    entries = {entry["id"]: entry for entry in content["annotations"]}
    masks = []
    for pair in pairs:
        entry = entries[pair.annotation_id]
        assert names[entry["category_id"]] == pair.class_name
        assert not entry["iscrowd"]
        runs = entry["segmentation"]
        if isinstance(runs, list) or isinstance(runs["counts"], list):
            runs = coco_mask.frPyObjects(runs, *sizes[entry["image_id"]])
        masks.append(coco_mask.decode(coco_mask.merge(runs) if isinstance(runs, list) else runs))
    return masks


def test_masks_beyond_box_and_image(synthetic_data, tmp_path: Path) -> None:
    content = synthetic_data.content()
    content["annotations"] = [
        {"id": 1, "image_id": 11, "category_id": 3, "iscrowd": 0, "bbox": [90, 60, 38, 36]}
        | {"segmentation": [[80.3, 50.2, 140.1, 55.0, 120.7, 110.0]]},
        {"id": 2, "image_id": 11, "category_id": 3, "iscrowd": 0, "bbox": [0, 0, 20.4, 15.6]}
        | {"segmentation": [[-8.2, -3.0, 30.5, 6.1, 12.0, 25.5]]},
    ]
    (tmp_path / "wide.json").write_text(json.dumps(content))
    data = read_coco(tmp_path / "wide.json")
    codec = DCTCodec(10, 14)
    scores = evaluate_codec(codec, data)
    pairs = all_pairs(scores, codec, data)
    assert [iou_of(pair) for pair in pairs] == pytest.approx(scores.iou.tolist(), abs=1e-6)
    for pair, annotated in zip(pairs, annotated_masks(data, pairs), strict=True):
        assert pair.original.sum() == annotated.sum()


def test_classes_are_matched_by_name_and_unknown_skipped(data: CocoData) -> None:
    """The codec knows "disc" alone, as its second class; the data has it as its first."""
    codec = PCACodec(3, 14, class_names=("moon", "disc"), shrinkage=0)
    masks = np.concatenate([image.masks(14) for image in data.instances])
    codec.fit(torch.from_numpy(masks), torch.arange(len(masks)) % 2)
    scores = evaluate_codec(codec, data)
    assert set(scores.unknown_categories) >= {"box"}
    pairs = all_pairs(scores, codec, data)
    assert {pair.class_name for pair in pairs} == {"disc"}
    assert [iou_of(pair) for pair in pairs] == pytest.approx(scores.iou.tolist(), abs=1e-6)


def test_several_files(data: CocoData, tmp_path: Path) -> None:
    content = json.loads(data.annotations.read_bytes())
    for entry in content["annotations"]:
        entry["id"] += 100
    content["annotations"].reverse()
    (tmp_path / "other.json").write_text(json.dumps(content))
    files = [data, read_coco(tmp_path / "other.json")]
    codec = fit(data)
    scores = evaluate_codec(codec, files)
    pairs = all_pairs(scores, codec, files)
    assert [iou_of(pair) for pair in pairs] == pytest.approx(scores.iou.tolist(), abs=1e-6)
    ids = [pair.annotation_id for pair in pairs]
    assert sorted(ids[9:]) == [100 + number for number in sorted(ids[:9])]


def test_rejects_scores_of_other_data(data: CocoData) -> None:
    codec = fit(data)
    scores = evaluate_codec(codec, data)
    without = tuple(image.select(np.arange(0)) for image in data.instances)
    with pytest.raises(ValueError, match="scores; use"):
        all_pairs(scores, codec, replace(data, instances=without))


def test_colours_of_common_lost_and_added_pixels() -> None:
    original, decoded = (
        np.array([[True, True, False, False]]),
        np.array([[True, False, True, False]]),
    )
    before, after = Pair(original, decoded, 1 / 3, 1, "x").pictures()
    assert [tuple(pixel) for pixel in before[0]] == [BOTH, BOTH, OUTSIDE, OUTSIDE]
    assert [tuple(pixel) for pixel in after[0]] == [BOTH, LOST, ADDED, OUTSIDE]
