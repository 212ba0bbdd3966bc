from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from meinst.data import mask_stream
from meinst.data.annotations.coco_file import load_document
from meinst.data.annotations.instance_batch import InstanceBatch
from meinst.data.coco import read_coco
from meinst.data.mask_stream import MaskFilter, MaskStream

if TYPE_CHECKING:
    from conftest import SyntheticData

ALL = MaskFilter(exclude_crowd=False)


@pytest.fixture
def shuffled(synthetic_data: SyntheticData, tmp_path: Path) -> Path:
    """The synthetic data set with shuffled annotations and two faulty ones."""
    content = synthetic_data.content()
    annotations = content["annotations"]
    annotations.append({**annotations[0], "id": 101, "segmentation": []})
    annotations.append({**annotations[1], "id": 102, "bbox": None})
    order = np.random.default_rng(0).permutation(len(annotations))
    content["annotations"] = [annotations[k] for k in order]
    content["categories"].reverse()
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(content))
    return path


def stream_of(
    path: Path, chosen: MaskFilter | None = None, share: tuple[int, int] = (0, 1)
) -> MaskStream:
    return MaskStream(load_document(path, None), chosen, share)


def squares(*boxes: list[float]) -> dict[str, Any]:
    """A document of filled boxes in an image of 100 x 100 pixels."""
    annotations = [
        {
            "id": n,
            "image_id": 1,
            "category_id": 1,
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for n, (x, y, w, h) in enumerate(boxes)
    ]
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "box"}],
        "annotations": annotations,
    }


def test_no_annotations() -> None:
    stream = MaskStream(squares())
    assert list(stream) == []
    assert stream.class_names == ("box",)
    assert str(stream.report) == ""


@pytest.mark.parametrize("size", [1, 2, 5, 4096])
def test_masks_equal_those_of_read_coco(
    size: int, shuffled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", size)
    data = read_coco(shuffled)
    stream = stream_of(shuffled, ALL)
    batches = list(stream)
    assert len(batches) == -(-12 // size)  # of ten synthetic instances and the two added
    assert stream.class_names == data.class_names == ("disc", "box", "star")
    images = np.concatenate([batch.images for batch in batches])
    masks = np.concatenate([batch.masks(9) for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    crowd = np.concatenate([batch.crowd for batch in batches])
    assert len(images) == 11
    for place, instances in enumerate(data.instances):
        rows = images == place
        np.testing.assert_array_equal(masks[rows], instances.masks(9))
        np.testing.assert_array_equal(labels[rows], instances.labels)
        np.testing.assert_array_equal(crowd[rows], instances.crowd)
    assert stream.report.dropped == data.report.dropped
    assert stream.report.repaired == data.report.repaired
    assert [finding.examples for finding in stream.report.dropped] == [(101,)]
    assert stream.report.repaired[0].examples == (102,)


def test_report_grows_with_the_batches(shuffled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 3)
    stream = stream_of(shuffled)
    assert str(stream.report) == ""
    counts = [len(str(stream.report).splitlines()) for _ in stream]
    assert counts == sorted(counts)
    assert (len(counts), counts[-1]) == (4, 3)
    assert counts[0] < 3


def test_document_is_not_changed(synthetic_data: SyntheticData) -> None:
    document = synthetic_data.content()
    before = copy.deepcopy(document)
    for batch in MaskStream(document, MaskFilter(min_size=20)):
        batch.masks(7)
    assert document == before


# Filters


def test_crowds_are_excluded_by_default(synthetic_data: SyntheticData) -> None:
    document = synthetic_data.content()
    (plain,) = MaskStream(document)
    (whole,) = MaskStream(document, ALL)
    assert (len(plain), len(whole)) == (9, 10)
    assert not plain.crowd.any()
    np.testing.assert_array_equal(plain.masks(8), whole.masks(8)[~whole.crowd])


def test_min_size_limits_the_shorter_side() -> None:
    document = squares([0, 0, 9, 9], [0, 0, 9, 4.9], [0, 0, 5, 5], [0, 0, 4.9, 60], [96, 0, 9, 9])
    # The last box exceeds the image: 4 pixels of it remain.
    (batch,) = MaskStream(document, MaskFilter(min_size=5))
    np.testing.assert_array_equal(batch.boxes, [[0, 0, 9, 9], [0, 0, 5, 5]])
    stream = MaskStream(document, MaskFilter(min_size=60))
    (batch,) = stream
    assert len(batch) == 0
    assert batch.masks(6).shape == (0, 6, 6)
    # Filtered instances are not reported.
    assert stream.report.dropped == ()


# Shares


def left_sides(batches: list[InstanceBatch]) -> list[float]:
    """Left sides of the boxes of :func:`squares`."""
    return [x for batch in batches for x in batch.boxes[:, 0].tolist()]


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 20])
def test_shares_cover_the_file_once(shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 4)
    document = squares(*([x, 0, 9, 9] for x in range(30)))
    parts = [list(MaskStream(document, share=(k, shares))) for k in range(shares)]
    # Every n-th batch of 4, from the k-th on; the last batch has 2.
    for k, part in enumerate(parts):
        assert [len(batch) for batch in part] == [4, 4, 4, 4, 4, 4, 4, 2][k::shares]
    assert sorted(x for part in parts for x in left_sides(part)) == list(range(30))


def test_each_share_reports_its_own_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 2)
    document = squares(*([x, 0, x % 3, 9] for x in range(12)))
    reports = []
    for k in range(2):
        stream = MaskStream(document, share=(k, 2))
        for _ in stream:
            pass
        reports.append({i for each in stream.report.dropped for i in each.examples})
    assert reports == [{0, 9}, {3, 6}]
