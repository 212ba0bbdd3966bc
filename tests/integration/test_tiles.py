"""Large images in windows: on the command line, in evaluation, and with the shipped model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import SyntheticData, column_runs
from oracle import Oracle, draw_discs, random_discs
from PIL import Image

from meinst.cli.main import main
from meinst.data.coco import CocoData, read_coco
from meinst.detector.meinst import MEInst
from meinst.detector.passes import TileOptions
from meinst.inference.evaluate import evaluate
from meinst.inference.predict import predict_files
from meinst.models.load import load


def write_slide(path: Path, size: tuple[int, int] = (300, 400), **options: Any) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    settings = {"photometric": "rgb", "tile": (64, 64), "compression": 8, **options}
    tifffile.imwrite(path, pixels, **settings)
    return pixels


def predict(model: Path, source: Path, output: Path, *options: str) -> int:
    arguments = ["predict", str(source), "--model", str(model), "--output", str(output)]
    return main([*arguments, "--device", "cpu", *options])


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def entry_of(output: Path) -> dict[str, Any]:
    (entry,) = json.loads((output / "images.json").read_text())["images"]
    return entry


def test_file_in_windows_gives_what_its_pixels_give(
    tiny_model: MEInst,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pixels = write_slide(tmp_path / "slide.tif")
    expected = tiny_model.predict(pixels, tile=96)
    assert predict(tiny_model_file, tmp_path / "slide.tif", tmp_path / "out", "--tile", "96") == 0
    entry = entry_of(tmp_path / "out")
    assert (entry["width"], entry["height"], entry["lost_windows"]) == (400, 300, 0)
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(results) == len(expected)
    for found, whole in zip(results[:50], expected.to_coco(1)[:50], strict=True):
        assert found["bbox"] == pytest.approx(whole["bbox"], abs=0.01)
        assert found["score"] == pytest.approx(whole["score"], abs=1e-5)
    notes = capsys.readouterr().err
    assert f"note: 1 image predicted in windows (for example {tmp_path / 'slide.tif'}" in notes
    assert size_of(tmp_path / "out" / "slide.jpg") == (400, 300)


def test_images_above_the_limit_are_read_in_windows(
    tiny_model: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = write_slide(tmp_path / "slide.tif", (500, 500))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    with pytest.raises(ValueError, match="save it as a tiled TIFF"):
        tiny_model.predict(tmp_path / "slide.tif", tile="off")
    found = tiny_model.predict(tmp_path / "slide.tif")
    assert found.image_size == pixels.shape[:2]
    assert len(found) > 100  # the limit of detections of a whole image


def test_overlays_of_large_images_are_reduced(
    tiny_model: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slide(tmp_path / "slide.tif")
    monkeypatch.setattr("meinst.data.regions.OVERVIEW_SIDE", 100)
    monkeypatch.setattr("meinst.data.regions.RegionImage.overview.__defaults__", (100,))
    predict_files(tiny_model, [tmp_path / "slide.tif"], tmp_path / "out", tiles=TileOptions(96))
    assert size_of(tmp_path / "out" / "slide.jpg") == (100, 75)
    assert entry_of(tmp_path / "out")["width"] == 400


def break_tile(path: Path, index: int) -> None:
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[index]
        count = file.pages.first.databytecounts[index]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\xff" * count)


def test_damaged_tiles_cost_windows_and_the_exit_code(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slide.tif"
    write_slide(path)
    break_tile(path, 0)
    assert predict(tiny_model_file, path, tmp_path / "out", "--tile", "96") == 1
    error = capsys.readouterr().err
    assert "warning: 1 image with damaged parts; 4 windows were left out" in error
    assert f"{path}: the tile at x = 0, y = 0 is damaged" in error
    assert entry_of(tmp_path / "out")["lost_windows"] == 4
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())


def test_pixel_size_resizes_by_the_file(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, sized = tmp_path / "plain.tif", tmp_path / "sized.tif"
    write_slide(plain)
    write_slide(sized, resolution=(40_000, 40_000), resolutionunit="CENTIMETER")
    assert predict(tiny_model_file, plain, tmp_path / "a", "--pixel-size", "0.5") == 2
    assert f"{plain}: the file does not state the size of its pixels" in capsys.readouterr().err
    assert predict(tiny_model_file, sized, tmp_path / "b", "--pixel-size", "0.5") == 0
    coarse = entry_of(tmp_path / "b")["windows"]
    assert predict(tiny_model_file, sized, tmp_path / "c", "--pixel-size", "0.125") == 0
    assert entry_of(tmp_path / "c")["windows"] > 4 * coarse


def test_wrong_options_are_one_line(
    tiny_model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_slide(tmp_path / "slide.tif")
    assert predict(tiny_model_file, tmp_path / "slide.tif", tmp_path / "out", "--tile", "7") == 2
    assert "tile must be at least 32, got 7" in capsys.readouterr().err


def test_resumed_run_must_have_the_same_windows(tiny_model: MEInst, tmp_path: Path) -> None:
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path in paths:
        write_slide(path)

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(tiny_model, paths, tmp_path / "out", tiles=TileOptions(96), on_image=stop)
    with pytest.raises(ValueError, match="tile is 64, but was 96"):
        predict_files(tiny_model, paths, tmp_path / "out", tiles=TileOptions(64), resume=True)
    predict_files(tiny_model, paths, tmp_path / "out", tiles=TileOptions(96), resume=True)
    predict_files(tiny_model, paths, tmp_path / "once", tiles=TileOptions(96))
    for name in ("predictions.json", "images.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def test_evaluation_of_images_that_fit_does_not_change(
    tiny_model: MEInst, synthetic_data: SyntheticData
) -> None:
    data = read_coco(synthetic_data.annotations, synthetic_data.images)
    before = evaluate(tiny_model, data, tiles=TileOptions("off"))
    assert evaluate(tiny_model, data, tiles=TileOptions(220)) == before
    windows = evaluate(tiny_model, data, tiles=TileOptions(96))
    assert windows.detections > before.detections


def write_pictures(folder: Path, name: str, pictures: dict[str, tuple[Any, Any]]) -> CocoData:
    """PNG files and annotations of their discs."""
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "disc"}],
    }
    for image_id, (file_name, (pixels, masks)) in enumerate(pictures.items(), start=1):
        Image.fromarray(pixels).save(folder / file_name)
        height, width = pixels.shape[:2]
        content["images"].append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height}
        )
        for mask in masks:
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": 1,
                    "segmentation": {"size": [height, width], "counts": column_runs(mask)},
                    "bbox": [float(side) for side in box],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                }
            )
    (folder / name).write_text(json.dumps(content))
    return read_coco(folder / name, folder)


def test_mosaic_is_measured_like_its_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size, rows, columns = (128, 128), 3, 4
    drawn, shapes = [], []
    for number in range(rows * columns):
        discs = random_discs(rng, size, 8, 5, 18)
        # Every object of the mosaic has a colour of its own.
        picture, masks = draw_discs(size, [*[(0.0, 0.0, 0.0)] * (8 * number), *discs])
        drawn.append(picture)
        shapes.append(masks[8 * number :])
    single = write_pictures(
        tmp_path,
        "single.json",
        {f"{n}.png": pair for n, pair in enumerate(zip(drawn, shapes, strict=True))},
    )
    strips = [np.hstack(drawn[row * columns : (row + 1) * columns]) for row in range(rows)]
    mosaic = np.vstack(strips)
    whole_masks = []
    for number, masks in enumerate(shapes):
        top, left = 128 * (number // columns), 128 * (number % columns)
        for mask in masks:
            whole = np.zeros(mosaic.shape[:2], np.bool_)
            whole[top : top + 128, left : left + 128] = mask
            whole_masks.append(whole)
    together = write_pictures(tmp_path, "mosaic.json", {"mosaic.png": (mosaic, whole_masks)})
    oracle: Any = Oracle()
    before = evaluate(oracle, single, tiles=TileOptions(128))
    tiled = evaluate(oracle, together, tiles=TileOptions(128))
    untiled = evaluate(oracle, together, tiles=TileOptions("off"))
    assert tiled.instances == before.instances
    assert before.segm.ap is not None
    assert before.segm.ap > 0.8
    assert tiled.segm.ap == pytest.approx(before.segm.ap, abs=0.02)
    assert (untiled.segm.ap or 0) < before.segm.ap - 0.1
    (note,) = tiled.notes
    assert note.startswith("note: 1 image predicted in windows")


def draw_nuclei(size: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright soft discs on a dark ground with noise, and their centres and radii."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] + 0.5
    light = np.full((size, size), 12.0)
    discs: list[tuple[float, float, float]] = []
    while len(discs) < count:
        radius = rng.uniform(9, 16)
        a, b = rng.uniform(radius + 2, size - radius - 2, 2)
        if all(np.hypot(a - c, b - d) > radius + r + 5 for c, d, r in discs):
            discs.append((a, b, radius))
            distance = np.hypot(x - a, y - b)
            light = np.maximum(light, 12 + 110 * np.clip(0.5 - (distance - radius), 0, 1))
    noisy = light + rng.normal(0, 3, light.shape)
    return np.repeat(noisy.clip(0, 255).astype(np.uint8)[..., None], 3, 2), np.array(discs)


@pytest.mark.slow
def test_shipped_model_finds_drawn_nuclei_once_across_seams() -> None:
    model = load("nuclei").fuse()
    picture, discs = draw_nuclei(512, 70, 0)

    def hits(tile: str | int) -> np.ndarray:
        boxes = model.predict(picture, tile=tile).boxes.numpy()
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        sides = boxes[:, 2:] - boxes[:, :2]
        distances = np.hypot(*(centres[:, None] - discs[None, :, :2]).transpose(2, 0, 1))
        assert (distances.min(axis=1) < 6).all()  # nothing else is found
        nearest = distances.argmin(axis=1)
        # Cut ones would be smaller than the discs.
        assert (sides.min(axis=1) > 1.5 * discs[nearest, 2]).all()
        return np.bincount(nearest, minlength=len(discs))

    whole, tiled = hits("off"), hits(256)
    assert tiled.max() == 1
    assert (tiled > 0).sum() >= (whole > 0).sum() - 1
    assert (tiled > 0).mean() > 0.95
