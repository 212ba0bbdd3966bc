"""Label images: TIFF read by tifffile, OME-Zarr by zarr and ome-zarr."""

from __future__ import annotations

import json
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from drawn import detections_of, drawn, nothing, predicted

from meinst.detections import Detections
from meinst.inference.writers.base import Run
from meinst.inference.writers.labels import LabelsWriter
from meinst.inference.writers.ome_zarr import OMEZarrWriter
from meinst.inference.writers.strips import LabelStrips, reductions


def expected_labels(detections: Detections) -> np.ndarray:
    """The label image by definition: masks in the order of their scores, the best one last."""
    labels = np.zeros(detections.image_size, np.int64)
    order = sorted(range(len(detections)), key=lambda n: (-float(detections.scores[n]), n))
    masks = detections.masks().numpy()
    for n in reversed(order):
        labels[masks[n]] = n + 1
    return labels


def many(count: int) -> Detections:
    """Squares of 2 x 2 pixels on a grid."""
    columns = 300
    corners = [(3 * (n % columns), 3 * (n // columns)) for n in range(count)]
    size = 3 * -(-count // columns), 3 * columns
    return detections_of([np.ones((2, 2), bool)] * count, corners, size)


def read_tiff(path: Path) -> np.ndarray:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        assert page.is_tiled
        assert page.compression == 8  # Deflate
        assert len(tiff.pages) == 1
        values: np.ndarray = page.asarray()
    return values


def read_zarr(path: Path) -> tuple[list[np.ndarray], dict[str, Any]]:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="r")
    (multiscale,) = group.attrs["multiscales"]
    return [group[each["path"]][:] for each in multiscale["datasets"]], dict(group.attrs)


@pytest.mark.parametrize("step", [1, 7, 64, 1000])
def test_strips_are_rows_of_the_label_image(step: int) -> None:
    for detections in (nothing(), drawn()):
        strips = LabelStrips(detections)
        height = strips.size[0]
        rows = [strips[top : top + step] for top in range(0, height, step)]
        assert all(row.dtype == np.uint16 for row in rows)
        assert np.array_equal(np.concatenate(rows), expected_labels(detections))


def test_higher_score_wins() -> None:
    square = np.ones((4, 4), bool)
    corners = [(0, 0), (2, 0), (4, 0)]
    detections = detections_of([square] * 3, corners, (4, 8), scores=[0.5, 0.9, 0.5])
    assert LabelStrips(detections)[:1].tolist() == [[1, 1, 2, 2, 2, 2, 3, 3]]
    equal = detections_of([square] * 3, corners, (4, 8), scores=[0.5] * 3)
    assert LabelStrips(equal)[:1].tolist() == [[1, 1, 1, 1, 2, 2, 3, 3]]


def test_reduced_copies_hold_what_is_at_the_centres() -> None:
    detections = drawn()
    for factor in (2, 4):
        small = LabelStrips(detections, factor)
        assert small.size == (-(-100 // factor), -(-130 // factor))
        values = small[:]
        assert values.any()
        whole = expected_labels(detections)
        rows, columns = np.nonzero(values)
        # The centre is a corner of four pixels, one of which has the same label.
        near = np.zeros(len(rows), bool)
        for dy in (-1, 0):
            for dx in (-1, 0):
                y = np.minimum(rows * factor + factor // 2 + dy, 99)
                x = np.minimum(columns * factor + factor // 2 + dx, 129)
                near |= whole[y, x] == values[rows, columns]
        assert near.all()


def test_reductions() -> None:
    assert reductions((100, 130), 512) == [1]
    assert reductions((100, 513), 512) == [1, 2]
    assert reductions((100_000, 100_000), 1024) == [1, 2, 4, 8, 16, 32, 64, 128]


def test_tiff(run: Run) -> None:
    writer = LabelsWriter(run)
    for name, detections in (("none", nothing()), ("a", drawn())):
        writer.write(predicted(detections, name=name))
        values = read_tiff(run.output / "labels" / f"{name}.tif")
        assert values.dtype == np.uint16
        assert np.array_equal(values, expected_labels(detections))


def test_tiff_is_read_by_the_reader_of_data_sets(run: Run) -> None:
    from meinst.data.label_image import read_labels

    detections = drawn()
    LabelsWriter(run).write(predicted(detections))
    values = read_labels(run.output / "labels" / "a.tif")
    assert np.array_equal(values, expected_labels(detections))


def test_66_000_objects_need_32_bits(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("zarr")
    with caplog.at_level(logging.WARNING, "meinst"):
        LabelsWriter(run).write(predicted(many(65_535)))
        assert caplog.text == ""
        few = read_tiff(run.output / "labels" / "a.tif")
        assert (few.dtype, few.max()) == (np.uint16, 65_535)
        detections = many(66_000)
        image = predicted(detections)
        LabelsWriter(run).write(image)
        OMEZarrWriter(run).write(image)
    assert caplog.text.count("has 32 bits per pixel, because 66000 objects do not fit") == 2
    values = read_tiff(run.output / "labels" / "a.tif")
    assert values.dtype == np.uint32
    assert np.array_equal(np.unique(values), np.arange(66_001))
    assert values[:2, :2].tolist() == [[1, 1], [1, 1]]
    levels, attributes = read_zarr(run.output / "ome-zarr" / "a.ome.zarr")
    assert np.array_equal(levels[0], values)
    assert "properties" not in attributes["image-label"]


def test_large_images_become_pyramids(run: Run) -> None:
    detections = detections_of([np.ones((24, 24), bool)], [(4080, 16)], (60, 4200))
    LabelsWriter(run).write(predicted(detections))
    with tifffile.TiffFile(run.output / "labels" / "a.tif") as tiff:
        levels = [level.asarray() for level in tiff.series[0].levels]
    assert [level.shape for level in levels] == [(60, 4200), (30, 2100), (15, 1050), (8, 525)]
    assert [int(level.sum()) for level in levels] == [576, 144, 36, 9]
    for factor, level in zip((1, 2, 4, 8), levels, strict=True):
        assert level.any(0).nonzero()[0][0] == 4080 // factor


def test_physical_size_is_kept(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("zarr")
    path = tmp_path / "a.tif"
    size = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    zeros = np.zeros((600, 700), np.uint8)
    tifffile.imwrite(path, zeros, ome=True, metadata={"axes": "YX", **size})
    detections = detections_of([np.ones((24, 24), bool)], [(3, 3)], (600, 700))
    image = predicted(detections, path)
    assert image.pixel_size == pytest.approx(0.25)
    LabelsWriter(run).write(image)
    again = predicted(detections, run.output / "labels" / "a.tif")
    assert again.pixel_size == pytest.approx(0.25)
    OMEZarrWriter(run).write(image)
    _, attributes = read_zarr(run.output / "ome-zarr" / "a.ome.zarr")
    (multiscale,) = attributes["multiscales"]
    assert multiscale["axes"][0] == {"name": "y", "type": "space", "unit": "micrometer"}
    second = multiscale["datasets"][1]["coordinateTransformations"]
    assert second == [
        {"type": "scale", "scale": [0.5, 0.5]},
        {"type": "translation", "translation": [0.125, 0.125]},
    ]


def test_ome_zarr(run: Run) -> None:
    pytest.importorskip("zarr")
    writer = OMEZarrWriter(run)
    large = detections_of([np.ones((24, 24), bool)], [(1190, 1010)], (1100, 1300))
    for name, detections in (("none", nothing()), ("a", drawn()), ("large", large)):
        for _ in range(2):  # a resumed run writes the last image again
            writer.write(predicted(detections, name=name))
        levels, attributes = read_zarr(run.output / "ome-zarr" / f"{name}.ome.zarr")
        assert levels[0].dtype == np.uint16
        assert np.array_equal(levels[0], expected_labels(detections))
        (multiscale,) = attributes["multiscales"]
        assert multiscale["version"] == "0.4"
        assert [axis["name"] for axis in multiscale["axes"]] == ["y", "x"]
        properties = attributes["image-label"].get("properties", [])
        assert [each["label-value"] for each in properties] == list(range(1, len(detections) + 1))
    assert [level.shape for level in levels] == [(1100, 1300), (550, 650), (275, 325)]
    assert [bool(level.any()) for level in levels] == [True] * 3
    names = sorted(path.name for path in (run.output / "ome-zarr").iterdir())
    assert names == [".meinst-predictions", "a.ome.zarr", "large.ome.zarr", "none.ome.zarr"]
    metadata = json.loads((run.output / "ome-zarr/a.ome.zarr/0/.zarray").read_text())
    assert (metadata["zarr_format"], metadata["dimension_separator"]) == (2, "/")


def test_ome_zarr_is_opened_by_its_reader(run: Run) -> None:
    pytest.importorskip("zarr")
    io, reader = pytest.importorskip("ome_zarr.io"), pytest.importorskip("ome_zarr.reader")
    detections = drawn()
    OMEZarrWriter(run).write(predicted(detections))
    location = io.parse_url(str(run.output / "ome-zarr" / "a.ome.zarr"))
    (node, *_) = list(reader.Reader(location)())
    assert np.array_equal(np.asarray(node.data[0]), expected_labels(detections))


def test_ome_zarr_follows_the_specification(run: Run, tmp_path: Path) -> None:
    zarr, models = pytest.importorskip("zarr"), pytest.importorskip("ome_zarr_models.v04")
    path = tmp_path / "a.tif"
    zeros = np.zeros((1100, 1300), np.uint8)
    tifffile.imwrite(path, zeros, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    detections = detections_of([np.ones((24, 24), bool)], [(1190, 1010)], (1100, 1300))
    OMEZarrWriter(run).write(predicted(detections, path))
    group = zarr.open_group(str(run.output / "ome-zarr" / "a.ome.zarr"), mode="r")
    label = models.ImageLabel.from_zarr(group)
    assert len(label.attributes.multiscales[0].datasets) == 3
    assert label.attributes.image_label.properties[0].label_value == 1


def test_memory_is_that_of_a_strip(run: Run) -> None:
    """A label image of 400 megapixels, whose 800 MB are never held."""
    corners = [(100 * n, 100 * n) for n in range(199)]
    detections = detections_of([np.ones((24, 24), bool)] * 199, corners, (20_000, 20_000))
    image = predicted(detections, pixels=np.zeros((1, 1, 3), np.uint8))
    tracemalloc.start()
    LabelsWriter(run).write(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250e6
    path = run.output / "labels" / "a.tif"
    assert path.stat().st_size < 10e6
    with tifffile.TiffFile(path) as tiff:
        smallest = tiff.series[0].levels[-1].asarray()
    assert len(np.unique(smallest)) > 100
