"""Formats with one file for all images: CSV and Parquet, and the spools they come from."""

from __future__ import annotations

import csv
import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from drawn import NAMES, drawn, nothing, predicted
from PIL import Image

from meinst import Detections
from meinst.images.intensity import Stretch
from meinst.images.notes import ImageNotes
from meinst.inference.writers import base, measurements
from meinst.inference.writers.base import PredictedImage, Run
from meinst.inference.writers.coco import COCOWriter
from meinst.inference.writers.measurements import COLUMNS, CSVWriter
from meinst.inference.writers.parquet import ParquetWriter
from meinst.inference.writers.spool import Spool, SpooledWriter, spool_sizes

STRETCH = ImageNotes(stretch=Stretch(0, 1000, "percentile", "uint16"))


def write_all(writer: SpooledWriter, images: Sequence[PredictedImage]) -> None:
    """As in a run: each image is in the journal after it was written."""
    for image in images:
        writer.write(image)
        writer.run.journal.append(image.row)
    writer.finish()
    writer.close()


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        table = csv.DictReader(file)
        rows = list(table)
    assert table.fieldnames is not None
    return list(table.fieldnames), rows


def test_spool(tmp_path: Path) -> None:
    path = tmp_path / ".meinst-spool-csv"
    spool = Spool(path, 0)
    spool.append(b"one")
    spool.append(b"two")
    assert spool_sizes(tmp_path) == {"csv": 6}
    spool.cut(3)
    spool.append(b"three")
    with spool.read(5) as file:
        assert file.read() == b"oneth"
    spool.close()
    again = Spool(path, 4)
    again.append(b"!")
    again.close()
    assert path.read_bytes() == b"onet!"


def test_no_objects(run: Run) -> None:
    write_all(CSVWriter(run), [predicted(nothing())])
    assert read_csv(run.output / "measurements.csv") == (list(COLUMNS), [])


def test_measurements(run: Run, tmp_path: Path) -> None:
    """Grey, colour, and 16 bits with a pixel size: each channel of the original, not of 8 bits."""
    random = np.random.default_rng(0)
    grey = np.repeat(random.integers(0, 255, (100, 130, 1), np.uint8), 3, axis=2)
    color = random.integers(0, 255, (100, 130, 3), np.uint8)
    deep = random.integers(0, 60_000, (100, 130), np.uint16)
    path = tmp_path / "deep, 16.tif"
    tifffile.imwrite(path, deep, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    detections = drawn()
    images = [
        predicted(detections, Path("grey.png"), pixels=grey),
        predicted(detections, Path("color.png"), "b", 2, pixels=color),
        predicted(nothing(), Path("none.png"), "c", 3),
        predicted(detections, path, "d", 4, pixels=color, notes=STRETCH),
    ]
    write_all(CSVWriter(run), images)
    header, rows = read_csv(run.output / "measurements.csv")
    means = [f"{kind}_{c}" for c in (1, 2, 3) for kind in ("mean", "deviation")]
    assert header == [*COLUMNS, *means]
    assert len(rows) == 30
    masks = detections.masks().numpy()
    for image_id, values in ((1, grey[..., :1]), (2, color), (4, deep[..., None])):
        mine = [row for row in rows if row["image_id"] == str(image_id)]
        assert [row["object"] for row in mine] == [str(n) for n in range(1, 11)]
        for n, (row, mask) in enumerate(zip(mine, masks, strict=True)):
            assert row["class"] == NAMES[n % 2]
            assert int(row["area"]) == mask.sum()
            inside = values[mask].astype(np.float64)
            for c in range(3):
                known = c < values.shape[2] and len(inside) > 0
                mean, deviation = row[f"mean_{c + 1}"], row[f"deviation_{c + 1}"]
                if known:
                    assert float(mean) == pytest.approx(inside[:, c].mean())
                    assert float(deviation) == pytest.approx(inside[:, c].std())
                else:
                    assert (mean, deviation) == ("", "")
    last = rows[-10]
    assert last["file"] == str(path)
    assert float(last["pixel_size_um"]) == pytest.approx(0.5)
    assert float(last["area_um2"]) == pytest.approx(float(last["area"]) / 4)
    for name in ("centroid_x", "centroid_y", "perimeter", "major_axis", "minor_axis"):
        assert float(last[f"{name}_um"]) == pytest.approx(float(last[name]) / 2)
    assert rows[0]["pixel_size_um"] == rows[0]["area_um2"] == ""
    empty = rows[8]
    assert (empty["area"], empty["perimeter"], empty["centroid_x"]) == ("0", "", "")


def test_16_bits_in_other_formats_and_turned(run: Run, tmp_path: Path) -> None:
    values = np.arange(100 * 130, dtype=np.uint16).reshape(100, 130) * 5
    Image.fromarray(values).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", values.T, extratags=[(274, "H", 1, 5, True)])
    detections = drawn()[:1]
    images = [
        predicted(detections, tmp_path / name, name, k, notes=STRETCH)
        for k, name in enumerate(("a.png", "b.tif"), 1)
    ]
    write_all(CSVWriter(run), images)
    _, rows = read_csv(run.output / "measurements.csv")
    expected = values[detections.masks()[0].numpy()].mean()
    assert [float(row["mean_1"]) for row in rows] == pytest.approx([expected] * 2)


@pytest.mark.parametrize("orientation", [1, 6])
def test_values_are_read_in_parts_if_only_a_reduced_copy_is_at_hand(
    orientation: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurements, "_CELL", 32)
    detections = drawn()
    height, width = detections.image_size
    values = np.random.default_rng(5).integers(0, 60_000, (height, width, 2)).astype(np.uint16)
    stored = values if orientation == 1 else np.rot90(values)  # which turning undoes
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        stored,
        photometric="minisblack",
        planarconfig="contig",
        tile=(16, 16),
        compression=8,
        metadata=None,
        extratags=[(274, 3, 1, orientation, True)],
    )
    reduced = np.zeros((height // 2, width // 2, 3), np.uint8)
    write_all(CSVWriter(run), [predicted(detections, path, pixels=reduced, notes=STRETCH)])
    _, rows = read_csv(run.output / "measurements.csv")
    for row, mask in zip(rows, detections.masks().numpy(), strict=True):
        for channel in range(2 * mask.any()):
            inside = values[mask][:, channel]
            assert float(row[f"mean_{channel + 1}"]) == pytest.approx(inside.mean())
            assert float(row[f"deviation_{channel + 1}"]) == pytest.approx(inside.std())


def test_objects_in_damaged_parts_have_no_values(run: Run, tmp_path: Path) -> None:
    detections = drawn()
    path = tmp_path / "a.tif"
    values = np.zeros((*detections.image_size, 1), np.uint16)
    tifffile.imwrite(path, values, tile=(16, 16), compression=8, metadata=None)
    with tifffile.TiffFile(path) as file, path.open("r+b") as damaged:
        for offset, count in zip(
            file.pages.first.dataoffsets, file.pages.first.databytecounts, strict=True
        ):
            damaged.seek(offset)
            damaged.write(bytes(count))
    reduced = np.zeros((5, 5, 3), np.uint8)
    write_all(CSVWriter(run), [predicted(detections, path, pixels=reduced, notes=STRETCH)])
    _, rows = read_csv(run.output / "measurements.csv")
    assert len(rows) == 10
    assert {row["mean_1"] for row in rows} == {""}
    assert sum(int(row["area"]) > 0 for row in rows) > 5


def test_parquet(run: Run) -> None:
    pytest.importorskip("pyarrow")
    images = [predicted(drawn(), name="a"), predicted(nothing(), Path("ü"), "b", 2)]
    images.append(predicted(drawn()[3:5], Path("c"), "c", 3))
    write_all(ParquetWriter(run), images)
    with Detections.from_parquet(run.output / "detections.parquet") as stored:
        assert stored.model == "fingerprint"
        assert [stored.file(k) for k in stored] == ["a.tif", "ü", "c"]
        for image, found in zip(images, stored.values(), strict=True):
            assert repr(found) == repr(image.detections)
            assert np.array_equal(found.masks(), image.detections.masks())


def test_coco_results_are_those_of_json_dump(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK", 3)
    images = [predicted(drawn(), name="a"), predicted(nothing(), Path("ü"), "b", 2)]
    images.append(predicted(drawn()[3:5], Path("c"), "c", 3))
    write_all(COCOWriter(run), images)
    expected = [entry for image in images for entry in image.detections.to_coco(image.id)]
    assert (run.output / "predictions.json").read_text() == json.dumps(expected)
    content = json.loads((run.output / "images.json").read_text())
    assert [image["id"] for image in content["images"]] == [1, 2, 3]


def test_coco_results_of_many_objects_take_little_memory(run: Run) -> None:
    few = drawn()
    many = few[torch.arange(len(few)).repeat(2000)]
    peaks = []
    for detections in (many[:5000], many):
        writer = COCOWriter(run)
        image = predicted(detections)
        tracemalloc.start()
        writer.write(image)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        writer.close()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("kind", [COCOWriter, CSVWriter, ParquetWriter])
def test_images_that_failed_are_dropped(kind: type[SpooledWriter], run: Run) -> None:
    if kind is ParquetWriter:
        pytest.importorskip("pyarrow")
    expected = run.output / kind.file_name
    first, second = predicted(drawn()), predicted(drawn()[:3], name="b", image_id=2)
    writer = kind(run)
    writer.write(first)
    run.journal.append(first.row)
    writer.write(second)
    writer.rollback()
    assert run.journal.sizes == spool_sizes(run.output)
    writer.write(second)  # of a killed run, which is not in the journal
    writer.close()
    again = kind(run)
    again.finish()
    one = expected.read_bytes()
    write_all(again, [second])
    assert len(expected.read_bytes()) > len(one)
    assert kind.is_own(expected)


@pytest.mark.parametrize("kind", [CSVWriter, ParquetWriter])
def test_files_of_others_are_kept(kind: type[SpooledWriter], run: Run) -> None:
    if kind is ParquetWriter:
        pytest.importorskip("pyarrow")
    path = run.output / kind.file_name
    kind.check(run.output, unfinished=False)
    for content in (b"", b"a,b\n1,2\n"):
        path.write_bytes(content)
        with pytest.raises(FileExistsError, match=f"{kind.file_name} was not written by"):
            kind.check(run.output, unfinished=False)


def test_objects_beside_damage_are_measured(run: Run, tmp_path: Path) -> None:
    detections = drawn()
    values = np.random.default_rng(5).integers(1, 60_000, detections.image_size).astype(np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, tile=(16, 16), compression=8, metadata=None)
    with tifffile.TiffFile(path) as file, path.open("r+b") as damaged:
        page = file.pages.first
        damaged.seek(page.dataoffsets[0])  # of the tile at the top left
        damaged.write(bytes(page.databytecounts[0]))
    reduced = np.zeros((5, 5, 3), np.uint8)
    write_all(CSVWriter(run), [predicted(detections, path, pixels=reduced, notes=STRETCH)])
    _, rows = read_csv(run.output / "measurements.csv")
    known = 0
    for row, mask, box in zip(rows, detections.masks().numpy(), detections.boxes, strict=True):
        if mask.any() and box[:2].min() >= 16:
            assert float(row["mean_1"]) == pytest.approx(values[mask].mean())
            known += 1
        elif box[:2].max() < 15:
            assert row["mean_1"] == ""
    assert known > 2
