"""Large files give the same as files that are parsed as a whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SyntheticData

from meinst.data.annotations import coco_file, large_file
from meinst.data.annotations.coco_file import AnnotationError
from meinst.data.annotations.large_file import Entries, read_large
from meinst.data.coco import read_coco
from meinst.data.mask_stream import MaskStream


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse 50 characters at once, and treat every file as large."""
    monkeypatch.setattr(large_file, "_WINDOW", 50)
    monkeypatch.setattr(coco_file, "_LARGE", 0)


def entries(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "image_id": 2**40 + i,
            "category_id": -i,
            "note": "ä€😀, ]}" * (i % 4),
            "x": [i / 3],
        }
        for i in range(count)
    ]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("count", [0, 1, 57])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("escaped", [True, False])
def test_equals_the_whole_file(
    count: int, indent: int | None, escaped: bool, tmp_path: Path
) -> None:
    expected = {
        "info": {"a": [1, None]},
        "annotations": entries(count),
        "z": 1.5,
        "y": [[]],
        "x": 7,
    }
    path = tmp_path / "file.json"
    text = json.dumps(expected, indent=indent, ensure_ascii=escaped) + "\n"
    path.write_text(text, encoding="utf-8")
    document = read_large(path)
    assert document is not None
    found = document["annotations"]
    assert isinstance(found, Entries)
    assert len(found) == count
    assert list(found) == expected["annotations"]
    assert {**document, "annotations": list(found)} == expected
    for index in (slice(None), slice(3, 9), slice(0, None, 5), slice(9, 2, -2), slice(100, 200)):
        assert found[index] == expected["annotations"][index]
    assert found.column("image_id") == [entry["image_id"] for entry in expected["annotations"]]
    chosen = found.sample(20)
    assert [entry["id"] for entry in chosen] == sorted({entry["id"] for entry in chosen})
    assert min(count, 20) <= len(chosen) <= count
    if count:
        assert found[-1] == expected["annotations"][-1]
        with pytest.raises(IndexError):
            found[count]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"annotations": [}',
        '{"annotations": [{"id": 1, "image_id": 1, "category_id": 1},]}',
        '{"annotations": [{"id": 1, "image_id": 1, "category_id": 1}] ,}',
        '{"annotations": [{"id": 1.0, "image_id": 1, "category_id": 1}]}',
        '{"annotations": [{"id": true, "image_id": 1, "category_id": 1}]}',
        '{"annotations": [{"id": 1, "image_id": 1}]}',
        '{"annotations": [7]}',
        '{"annotations": {}}',
        '{"annotations": [], "annotations": []}',
        '{"annotations": []} x',
        '{"a": "\\ud800", 3: 4}',
        '{"annotations": [{"id": 9223372036854775808, "image_id": 1, "category_id": 1}]}',
        '{"a": ' + "[" * 100_000,
    ],
)
def test_unusual_files_are_left_to_the_parser_of_whole_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    assert read_large(path) is None
    path.write_bytes(b'{"a": "\xff"}')
    assert read_large(path) is None


@pytest.mark.usefixtures("small_windows")
def test_a_large_coco_file_gives_the_same_data(
    synthetic_data: SyntheticData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meinst.data.coco._BATCH", 2)
    content = json.loads(synthetic_data.annotations.read_text())
    content["annotations"][0]["segmentation"] = [[0, 0, 1, 1]]  # faulty
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    large = read_coco(path, synthetic_data.images)
    streamed = [batch.ids.tolist() for batch in MaskStream(read_large(path))]  # type: ignore[arg-type]
    monkeypatch.undo()
    whole = read_coco(path, synthetic_data.images)
    assert sum(map(len, large.instances)) > 4
    assert str(large.report) == str(whole.report) != ""
    assert large.images == whole.images
    for one, other in zip(large.instances, whole.instances, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
        assert np.array_equal(one.labels, other.labels)
        assert np.array_equal(one.masks(28), other.masks(28))
    for field, expected in zip(large.fields, whole.fields, strict=True):
        assert np.array_equal(field.ids, expected.ids)
        assert np.array_equal(field.areas, expected.areas, equal_nan=True)
    plain = [batch.ids.tolist() for batch in MaskStream(content)]
    assert streamed == plain


@pytest.mark.usefixtures("small_windows")
def test_faults_of_large_files_are_the_same(
    synthetic_data: SyntheticData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads(synthetic_data.annotations.read_text())
    for annotation in content["annotations"]:
        annotation.update(id=-5, image_id=10**6)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError) as large:
        read_coco(path)
    monkeypatch.undo()
    with pytest.raises(AnnotationError) as whole:
        read_coco(path)
    assert large.value.faults == whole.value.faults
    assert len(whole.value.faults) == 3
