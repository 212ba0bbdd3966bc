from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from meinst.data import mask_stream
from meinst.data.coco import read_coco
from meinst.data.coco_file import load_document
from meinst.data.instance_batch import InstanceBatch
from meinst.data.mask_stream import MaskFilter, MaskStream

if TYPE_CHECKING:
    from conftest import DrawnData

ALL = MaskFilter(exclude_crowd=False)


@pytest.fixture
def mixed_up(drawn_data: DrawnData, tmp_path: Path) -> Path:
    """The drawn data set with its annotations in no order, and two of them at fault."""
    content = drawn_data.content()
    annotations = content["annotations"]
    annotations.append({**annotations[0], "id": 101, "bbox": [3, 3, 0, 9]})
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
    """A document of full boxes in an image of 100 x 100 pixels."""
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
def test_the_masks_that_read_coco_gives(
    size: int, mixed_up: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", size)
    data = read_coco(mixed_up)
    stream = stream_of(mixed_up, ALL)
    batches = list(stream)
    assert len(batches) == -(-12 // size)  # of ten drawn instances and the two added
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
    report, wanted = stream.report, data.report
    assert report == wanted
    assert report.dropped_ids == {101}
    assert report.repaired[0].examples == (102,)


def test_the_report_grows_with_the_batches(mixed_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 3)
    stream = stream_of(mixed_up)
    assert str(stream.report) == ""
    counts = [len(str(stream.report).splitlines()) for _ in stream]
    assert counts == sorted(counts)
    assert (len(counts), counts[-1]) == (4, 2)
    assert counts[0] < 2


def test_the_document_stays(drawn_data: DrawnData) -> None:
    document = drawn_data.content()
    before = copy.deepcopy(document)
    for batch in MaskStream(document, MaskFilter(min_size=20)):
        batch.masks(7)
    assert document == before


# What counts


def test_crowds_are_left_out_unless_wanted(drawn_data: DrawnData) -> None:
    document = drawn_data.content()
    (plain,) = MaskStream(document)
    (whole,) = MaskStream(document, ALL)
    assert (len(plain), len(whole)) == (9, 10)
    assert not plain.crowd.any()
    np.testing.assert_array_equal(plain.masks(8), whole.masks(8)[~whole.crowd])


def test_small_ones_by_their_shorter_side() -> None:
    document = squares([0, 0, 9, 9], [0, 0, 9, 4.9], [0, 0, 5, 5], [0, 0, 4.9, 60], [96, 0, 9, 9])
    # The last one reaches out of the image: 4 pixels of it are left.
    (batch,) = MaskStream(document, MaskFilter(min_size=5))
    np.testing.assert_array_equal(batch.boxes, [[0, 0, 9, 9], [0, 0, 5, 5]])
    stream = MaskStream(document, MaskFilter(min_size=60))
    (batch,) = stream
    assert len(batch) == 0
    assert batch.masks(6).shape == (0, 6, 6)
    # The filter's choice is no fault of the file.
    assert stream.report.dropped == ()


# Shares


def numbers(batches: list[InstanceBatch]) -> list[float]:
    """The instances of :func:`squares` by their left sides."""
    return [x for batch in batches for x in batch.boxes[:, 0].tolist()]


@pytest.mark.parametrize("shares", [1, 2, 3, 7, 20])
def test_shares_are_the_whole_once(shares: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 4)
    document = squares(*([x, 0, 9, 9] for x in range(30)))
    parts = [list(MaskStream(document, share=(k, shares))) for k in range(shares)]
    # Every n-th batch of 4, from the k-th on; the last batch has 2.
    for k, part in enumerate(parts):
        assert [len(batch) for batch in part] == [4, 4, 4, 4, 4, 4, 4, 2][k::shares]
    assert sorted(x for part in parts for x in numbers(part)) == list(range(30))


def test_a_share_of_its_own_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_stream, "_BATCH", 2)
    document = squares(*([x, 0, x % 3, 9] for x in range(12)))
    reports = []
    for k in range(2):
        stream = MaskStream(document, share=(k, 2))
        for _ in stream:
            pass
        reports.append(stream.report.dropped_ids)
    assert reports == [{0, 9}, {3, 6}]
