from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from drawn import NAMES, detections_of, drawn, nothing
from torch import Tensor

from meinst import Detections
from meinst.codecs import Codec, CodecOptions
from meinst.codecs.registry import CODECS, codec_from_options
from meinst.parquet import make_batch, make_schema, write_parquet
from meinst.stored_detections import ParquetError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def assert_equal(first: Detections, second: Detections) -> None:
    """The same in every bit, and the same masks."""
    for name in ("boxes", "scores", "labels", "codes"):
        one: Tensor = getattr(first, name)
        other: Tensor = getattr(second, name)
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert first.image_size == second.image_size
    assert first.class_names == second.class_names
    assert torch.equal(first.soft_masks(), second.soft_masks())


def fitted(kind: str) -> Codec:
    """A codec of 4 components, fitted where it must be."""
    options = CodecOptions(kind=kind, n_components=4, mask_size=12)  # type: ignore[arg-type]
    codec = codec_from_options(options)
    masks = torch.rand(60, 12, 12, generator=torch.Generator().manual_seed(0)) > 0.5
    return codec if codec.fitted else codec.fit(masks)


def test_no_detections(tmp_path: Path) -> None:
    nothing().to_parquet(tmp_path / "a.parquet", image_id=5, file="b.png")
    with Detections.from_parquet(tmp_path / "a.parquet") as stored:
        assert list(stored) == [5]
        assert stored.file(5) == "b.png"
        assert_equal(stored[5], nothing())
    (row,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    image = {"image_id": 5, "file": "b.png", "image_height": 40, "image_width": 50}
    columns = ("box", "score", "class_id", "class_name", "code", "track_id")
    assert row == image | dict.fromkeys(columns)


def test_tracks(tmp_path: Path) -> None:
    detections = replace(drawn(), track_ids=torch.arange(10) - 1)
    detections.to_parquet(tmp_path / "a.parquet")
    with Detections.from_parquet(tmp_path / "a.parquet") as stored:
        assert stored[1].track_ids is not None
        assert stored[1].track_ids.tolist() == list(range(-1, 9))
    table = pq.read_table(tmp_path / "a.parquet")
    place = table.schema.get_field_index("track_id")
    some = pa.array([None, *range(9)], pa.int64())
    pq.write_table(table.set_column(place, "track_id", some), tmp_path / "b.parquet")
    with (
        Detections.from_parquet(tmp_path / "b.parquet") as stored,
        pytest.raises(ValueError, match="some detections have a track_id and others do not"),
    ):
        stored[1]


def test_columns_for_other_programs(tmp_path: Path) -> None:
    detections = drawn()
    detections.to_parquet(tmp_path / "a.parquet", image_id=7, file="ü\udcff.png")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column("image_id").to_pylist() == [7] * 10
    assert table.column("file")[0].as_py() == "ü\\udcff.png"
    assert table.column("class_name").to_pylist() == [NAMES[k % 2] for k in range(10)]
    assert table.column("box")[0].as_py() == [5, 5, 29, 29]
    assert table.schema.field("code").type == pa.list_(pa.uint8(), 288)
    metadata = table.schema.metadata
    assert json.loads(metadata[b"meinst.class_names"]) == list(NAMES)
    assert json.loads(metadata[b"meinst.codec"]) == {"kind": "packed", "mask_size": 24}


@pytest.mark.parametrize("kind", CODECS)
def test_every_codec(kind: str, tmp_path: Path) -> None:
    codec = fitted(kind)
    codes = torch.randn(3, codec.n_components, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[1.5, 2, 30, 40], [0, 0, 9, 9], [3, 3, 4, 4]])
    scores, labels = torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 0, 1])
    detections = Detections(boxes, scores, labels, codes, (50, 60), codec, NAMES)
    detections.to_parquet(tmp_path / "a.parquet")
    with Detections.from_parquet(tmp_path / "a.parquet") as stored:
        assert_equal(stored[1], detections)


def test_images_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meinst.parquet._ROWS", 16)
    path = tmp_path / "a.parquet"
    images = {
        3: drawn(),
        4: nothing(),
        9: detections_of([np.ones((24, 24))] * 50, [(0, 0)] * 50, (30, 30)),
    }
    images |= {10: drawn()[:1], 12: drawn()}
    schema = make_schema(drawn().codec, NAMES, "model")
    batches = [make_batch(schema, each, k, f"{k}.png") for k, each in images.items()]
    write_parquet(path, schema, batches)
    assert pq.ParquetFile(path).metadata.num_row_groups > 4
    with Detections.from_parquet(path) as stored:
        assert stored.model == "model"
        assert len(stored) == 5
        assert list(stored) == list(images)
        for image_id, detections in stored.items():
            assert_equal(detections, images[image_id])
            assert stored.file(image_id) == f"{image_id}.png"
        for image_id in (12, 3, 10):
            assert_equal(stored[image_id], images[image_id])
        with pytest.raises(KeyError):
            stored[5]


def test_a_loop_reads_each_row_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meinst.parquet._ROWS", 20)
    schema = make_schema(drawn().codec, NAMES)
    batches = [make_batch(schema, drawn(), k, "a") for k in range(10)]
    write_parquet(tmp_path / "a.parquet", schema, batches)
    with Detections.from_parquet(tmp_path / "a.parquet") as stored:
        reads: list[int] = []
        read = stored._file.read_row_group

        def count(group: int) -> Any:
            reads.append(group)
            return read(group)

        monkeypatch.setattr(
            stored, "_file", SimpleNamespace(read_row_group=count, close=lambda: None)
        )
        assert sum(len(each) for each in stored.values()) == 100
        assert reads == list(range(5))


def test_files_of_others_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Detections.from_parquet(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ParquetError, match=r"a\.parquet .* whole Parquet file"):
        Detections.from_parquet(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ParquetError, match=r"meinst\.format must be 1; found None"):
        Detections.from_parquet(path)


def test_damaged_bytes_are_found(tmp_path: Path) -> None:
    """Flipped bytes, mostly in pages, whose checksums are stored: an error, or the same result."""
    path = tmp_path / "a.parquet"
    drawn().to_parquet(path)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    rejected = 0
    for place in random.integers(4, len(whole) - 8, 120):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            with Detections.from_parquet(path) as stored:
                found = stored[1]
                stored.file(1)
        except (ParquetError, KeyError):
            rejected += 1
        else:
            assert_equal(found, drawn())
    assert rejected > 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meinst.format": "2"}, "meinst.format must be 1; found 2"),
        ({"meinst.class_names": "["}, "class_names must be JSON"),
        ({"meinst.class_names": "[1]"}, "must be a list of names"),
        ({"meinst.codec": "3"}, "must hold a codec"),
        ({"meinst.codec": '{"kind": "pca", "npz": "?"}'}, "must hold a codec"),
        ({"meinst.codec": '{"kind": "pca", "npz": "YWJj"}'}, "must be an .npz archive"),
        ({"meinst.codec": '{"kind": "packed", "mask_size": 9999}'}, "mask_size must be"),
        ({"meinst.codec": '{"kind": "packed", "mask_size": 12}'}, "its columns must be"),
        ({"meinst.class_names": '["cell"]'}, "image 1 must be valid.*labels must be indices"),
    ],
)
def test_damaged_metadata(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    drawn().to_parquet(path)
    table = pq.read_table(path)
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata | changes), path)
    with pytest.raises(ValueError, match=message), Detections.from_parquet(path) as stored:
        stored[1]
