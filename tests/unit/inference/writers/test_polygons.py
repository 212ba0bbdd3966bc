"""Formats of polygons: read by shapely, roifile and the readers of data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from drawn import NAMES, drawn, nothing, predicted
from PIL import Image

from meinst.data.coco import CocoData
from meinst.data.datasets.dataset import open_dataset
from meinst.data.writers.masks import pixels as shape_pixels
from meinst.detections import Detections
from meinst.inference.writers.base import Run
from meinst.inference.writers.geojson import GeoJSONWriter
from meinst.inference.writers.imagej import ImageJWriter
from meinst.inference.writers.labelme import LabelmeWriter
from meinst.inference.writers.yolo import YOLOWriter


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """The image of the drawn detections."""
    path = tmp_path / "pictures" / "a ü.png"
    path.parent.mkdir()
    Image.new("RGB", (130, 100)).save(path)
    return path


def visible(detections: Detections) -> list[tuple[str, np.ndarray]]:
    """Class and mask of the detections that have pixels."""
    masks = detections.masks().numpy()
    names = [detections.class_names[label] for label in detections.labels.tolist()]
    return [(name, mask) for name, mask in zip(names, masks, strict=True) if mask.any()]


def read_geojson(path: Path) -> list[tuple[Any, dict[str, Any]]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    features = content["features"]
    assert all(feature["type"] == "Feature" for feature in features)
    return [
        (shapely.from_geojson(json.dumps(each["geometry"])), each["properties"])
        for each in features
    ]


def inside(geometry: Any, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres are in a geometry, ``(H, W)``."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    found: np.ndarray = shapely.contains_xy(geometry, x, y)
    return found


def test_geojson(run: Run) -> None:
    writer = GeoJSONWriter(run)
    writer.write(predicted(nothing(), name="none"))
    assert read_geojson(run.output / "geojson" / "none.geojson") == []
    detections = drawn()
    writer.write(predicted(detections))
    found = read_geojson(run.output / "geojson" / "a.geojson")
    expected = visible(detections)
    assert len(found) == len(expected) == 9
    kinds = set()
    for (geometry, properties), (name, mask) in zip(found, expected, strict=True):
        assert geometry.is_valid
        assert geometry.area == mask.sum()
        assert np.array_equal(inside(geometry, detections.image_size), mask)
        assert properties["objectType"] == "detection"
        assert properties["classification"]["name"] == name
        assert len(properties["classification"]["color"]) == 3
        assert properties["measurements"]["Area px^2"] == mask.sum()
        polygons = getattr(geometry, "geoms", [geometry])
        assert all(polygon.exterior.is_ccw for polygon in polygons)
        kinds.add((geometry.geom_type, any(len(each.interiors) for each in polygons)))
    assert kinds >= {("Polygon", False), ("Polygon", True), ("MultiPolygon", False)}
    assert found[0][1]["measurements"]["Score"] == pytest.approx(0.9, abs=1e-6)


def test_geojson_in_micrometres(run: Run, tmp_path: Path) -> None:
    import tifffile

    path = tmp_path / "a.tif"
    zeros = np.zeros((100, 130), np.uint8)
    tifffile.imwrite(path, zeros, resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    detections = drawn()
    GeoJSONWriter(run).write(predicted(detections, path))
    (_, properties), *_ = read_geojson(run.output / "geojson" / "a.geojson")
    area = int(visible(detections)[0][1].sum())
    assert properties["measurements"]["Area µm^2"] == pytest.approx(area / 4)  # 0.5 µm a pixel


def test_imagej(run: Run) -> None:
    roifile = pytest.importorskip("roifile")
    writer = ImageJWriter(run)
    writer.write(predicted(nothing(), name="none"))
    detections = drawn()
    writer.write(predicted(detections))
    folder = run.output / "imagej"
    assert list(roifile.roiread(folder / "none.zip")) == []
    rois = roifile.roiread(folder / "a.zip")
    expected = visible(detections)
    assert len(rois) == len(expected)
    assert [roi.name for roi in rois[:2]] == ["000001-cell", "000002-bläschen_klein"]
    for roi, (name, mask) in zip(rois, expected, strict=True):
        rings = roi.coordinates(multi=True)
        rings = rings if isinstance(rings, list) else [rings]
        # Even-odd, as ImageJ fills composite ROIs.
        filled = np.zeros(mask.shape, bool)
        for ring in rings:
            filled ^= inside(shapely.Polygon(ring), mask.shape)
        assert np.array_equal(filled, mask)
        assert f"class: {name}\n" in roi.props
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert (roi.left, roi.top) == (columns[0], rows[0])
    before = (folder / "a.zip").read_bytes()
    writer.write(predicted(detections))
    assert (folder / "a.zip").read_bytes() == before


def test_imagej_beyond_its_whole_numbers(run: Run) -> None:
    """Coordinates of 16 bits end at 60,000; larger ones need floats."""
    from dataclasses import replace

    roifile = pytest.importorskip("roifile")
    detections = drawn()
    far = replace(detections, boxes=detections.boxes + 70_000, image_size=(70_100, 70_130))
    ImageJWriter(run).write(predicted(far, pixels=np.zeros((1, 1, 3), np.uint8)))
    rois = roifile.roiread(run.output / "imagej" / "a.zip")
    ring = rois[0].coordinates()
    assert np.array_equal(ring, detections.rings()[0][0][0] + 70_000)


def objects(data: CocoData, index: int) -> list[tuple[str, np.ndarray]]:
    """Class and mask of the objects that were read."""
    record, instances = data.images[index], data.instances[index]
    return [
        (data.class_names[label], shape_pixels(shape, record.height, record.width))
        for label, shape in zip(instances.labels.tolist(), instances.shapes, strict=True)
    ]


@pytest.mark.parametrize("kind", [YOLOWriter, LabelmeWriter])
def test_labels_are_read_as_a_data_set(
    kind: type[YOLOWriter] | type[LabelmeWriter], run: Run, picture: Path
) -> None:
    writer = kind(run)
    empty = picture.with_name("none.png")
    Image.new("RGB", (50, 40)).save(empty)
    writer.write(predicted(nothing(), empty, "none"))
    detections = drawn()
    writer.write(predicted(detections, picture, "a ü"))
    dataset = open_dataset(run.output / kind.name)
    (part,) = dataset.parts
    data = dataset.read(part)
    assert set(data.class_names) == set(NAMES)
    place = {record.path.name: n for n, record in enumerate(data.images) if record.path}
    found = objects(data, place[picture.name])
    expected = visible(detections)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, mask), (_, other) in zip(found, expected, strict=True):
        assert np.array_equal(mask, other)
    if empty.name in place:
        assert objects(data, place[empty.name]) == []
    path = data.images[place[picture.name]].path
    assert path is not None
    assert path.resolve() == picture.resolve()


def test_labelme_opens_them_beside_the_picture(run: Run, picture: Path) -> None:
    LabelmeWriter(run).write(predicted(drawn(), picture, "a ü"))
    path = run.output / "labelme" / "a ü.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (path.parent / content["imagePath"]).resolve() == picture.resolve()
    assert not Path(content["imagePath"]).is_absolute()
    assert (content["imageHeight"], content["imageWidth"]) == (100, 130)
    assert content["imageData"] is None
    assert content["shapes"][0]["description"] == "score 0.9000"
    assert all(shape["shape_type"] == "polygon" for shape in content["shapes"])


def test_yolo_links_survive_a_move(run: Run, picture: Path, tmp_path: Path) -> None:
    writer = YOLOWriter(run)
    for _ in range(2):  # a resumed run writes the last image again
        writer.write(predicted(drawn(), picture, "a"))
    link = run.output / "yolo" / "images" / "a.png"
    assert link.is_symlink()
    moved = tmp_path.with_name(tmp_path.name + "-moved")
    tmp_path.rename(moved)
    try:
        assert (moved / "out/yolo/images/a.png").read_bytes().startswith(b"\x89PNG")
    finally:
        moved.rename(tmp_path)


def test_yolo_copies_where_links_are_not_allowed(
    run: Run, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    YOLOWriter(run).write(predicted(drawn(), picture, "a"))
    copy = run.output / "yolo" / "images" / "a.png"
    assert not copy.is_symlink()
    assert copy.read_bytes() == picture.read_bytes()
