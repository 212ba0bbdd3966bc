"""All output formats of a run together: contents, names, resumed runs, full disks and old files."""

from __future__ import annotations

import csv
import errno
import gc
import io
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import SyntheticData
from PIL import Image
from pycocotools import mask as coco_mask

from meinst import Detections
from meinst.cli.main import main
from meinst.detector.meinst import MEInst
from meinst.inference.predict import ImageResult, predict_files
from meinst.inference.results import without_overlays
from meinst.inference.writers.formats import FORMATS, parse_formats

pytest.importorskip("pyarrow")
pytest.importorskip("roifile")
pytest.importorskip("zarr")

ALL = tuple(FORMATS)


def content_of(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones included; links by where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink()).encode()
        if path.is_symlink()
        else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("formats")


@pytest.fixture(scope="module")
def sources(synthetic_data: SyntheticData, folder: Path) -> list[Path]:
    """Images: two of the same stem, one of 16 bits, one with a very long name, one damaged."""
    folder = folder / "more"
    folder.mkdir()
    shutil.copy(synthetic_data.images / "small.png", folder / "two.png")
    long = folder / f"{'n' * 251}.png"
    shutil.copy(synthetic_data.images / "small.png", long)
    deep = folder / "deep.tif"
    random = np.random.default_rng(0)
    tifffile.imwrite(deep, random.integers(0, 4000, (60, 80), np.uint16))
    (folder / "broken.png").write_bytes(b"")
    first, *rest = (synthetic_data.images / name for name in ("two.png", "tall.jpg", "empty.png"))
    return [first, folder / "broken.png", folder / "two.png", deep, long, *rest]


@pytest.fixture(scope="module")
def whole(tiny_model: MEInst, sources: list[Path], folder: Path) -> Path:
    """The output of an uninterrupted run in all formats."""
    summary = predict_files(tiny_model, sources, folder / "whole", formats=ALL)
    assert (summary.images, summary.failed) == (7, 1)
    return folder / "whole"


@pytest.fixture
def out(folder: Path) -> Iterator[Path]:
    """An output beside that of the uninterrupted run, so that relative links are the same."""
    yield folder / "out"
    shutil.rmtree(folder / "out", ignore_errors=True)


def stop_after(count: int) -> Callable[[ImageResult], None]:
    """A callback that ends the run without the results being written, like a kill."""
    done: list[ImageResult] = []

    def stop(result: ImageResult) -> None:
        done.append(result)
        if len(done) == count:
            raise OSError("killed")

    return stop


def test_all_formats_hold_the_same(sources: list[Path], whole: Path) -> None:
    out = whole
    images = json.loads((out / "images.json").read_text())["images"]
    results = json.loads((out / "predictions.json").read_text())
    assert len(results) > 50
    with (out / "measurements.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(results)
    with Detections.from_parquet(out / "detections.parquet") as stored:
        assert list(stored) == [image["id"] for image in images] == [1, 3, 4, 5, 6, 7]
        for image in images:
            found = stored[image["id"]]
            assert stored.file(image["id"]) == image["file_name"]
            mine = [each for each in results if each["image_id"] == image["id"]]
            assert found.to_coco(image["id"]) == mine
            measured = [row for row in rows if row["image_id"] == str(image["id"])]
            areas = [coco_mask.area(each["segmentation"]) for each in mine]
            assert [int(row["area"]) for row in measured] == areas
            visible = sum(area > 0 for area in areas)
            name = image["overlay"].removesuffix(".jpg")
            (path,) = _files(out / "labels", name)
            labels = tifffile.imread(path)
            assert labels.shape == found.image_size
            assert np.array_equal(labels > 0, found.masks().numpy().any(0))
            (path,) = _files(out / "geojson", name)
            assert len(json.loads(path.read_text())["features"]) == visible
            (path,) = _files(out / "yolo/labels", name)
            assert len(path.read_text().splitlines()) == visible
    assert (out / "yolo" / "images" / "two_2.png").resolve() == sources[2].resolve()
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def _files(folder: Path, name: str) -> list[Path]:
    """The files of an image, whose name is cut if it is too long."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return [path for path in files if path.stem == name or path.stem[:200] == name[:200] != name]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_resumed_run_ends_with_the_same_files(
    tiny_model: MEInst, sources: list[Path], whole: Path, out: Path, batch_size: int
) -> None:
    for count in (1, 4, 7) if batch_size == 1 else (3,):
        shutil.rmtree(out, ignore_errors=True)
        with pytest.raises(OSError, match=f"killed; {count} of 7 images are done; continue with"):
            predict_files(
                tiny_model,
                sources,
                out,
                formats=ALL,
                batch_size=batch_size,
                on_image=stop_after(count),
            )
        for name in ("csv", "parquet"):  # of an image that is not in the journal
            with (out / f".meinst-spool-{name}").open("ab") as file:
                file.write(b"half a row")
        (out / "geojson" / ".meinst.abc").write_bytes(b"half a file")
        (out / "yolo" / "labels" / ".meinst.abc").write_bytes(b"half a file")
        (out / "ome-zarr" / ".meinst-unfinished" / "0").mkdir(parents=True)
        again = without_overlays(sources, out)
        summary = predict_files(
            tiny_model, again, out, formats=ALL, batch_size=batch_size, resume=True
        )
        assert (summary.images, summary.failed) == (7, 1)
        assert content_of(out) == content_of(whole)


def test_lost_ends_of_spools_are_computed_again(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path
) -> None:
    """After a power cut, the journal may be ahead of the other files."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict_files(tiny_model, sources, whole, formats="csv,parquet")
    with pytest.raises(OSError, match="killed"):
        predict_files(tiny_model, sources, out, formats="csv,parquet", on_image=stop_after(5))
    spool = out / ".meinst-spool-csv"
    os.truncate(spool, spool.stat().st_size // 2)
    again: list[ImageResult] = []
    predict_files(
        tiny_model, sources, out, formats="csv,parquet", resume=True, on_image=again.append
    )
    assert len(again) > 2
    assert content_of(out) == content_of(whole)


def test_other_formats_are_rejected(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(OSError, match="killed"):
        predict_files(tiny_model, sources, out, formats="csv", on_image=stop_after(2))
    with pytest.raises(ValueError, match=r"--save.* is \['geojson', 'csv'\], but was \['csv'\]"):
        predict_files(tiny_model, sources, out, formats="geojson,csv", resume=True)


def test_image_that_fails_in_one_format_is_in_none(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meinst.inference.writers.measurements import CSVWriter

    add = CSVWriter.add

    def fail_once(writer: CSVWriter, image: Any) -> None:
        add(writer, image)
        if image.id == 3:
            raise ValueError("its values cannot be read")

    monkeypatch.setattr(CSVWriter, "add", fail_once)
    out = tmp_path / "out"
    summary = predict_files(tiny_model, sources, out, formats="coco,parquet,csv")
    assert summary.failed == 2
    with (out / "measurements.csv").open(newline="") as file:
        assert {row["image_id"] for row in csv.DictReader(file)} == set("14567")
    with Detections.from_parquet(out / "detections.parquet") as stored:
        assert list(stored) == [1, 4, 5, 6, 7]
    ids = {result["image_id"] for result in json.loads((out / "predictions.json").read_text())}
    assert ids == {1, 4, 5, 6, 7}


def test_interrupted_run_keeps_finished_results(
    tiny_model: MEInst, sources: list[Path], whole: Path, out: Path
) -> None:

    def interrupt(result: ImageResult) -> None:
        if result.source == sources[3]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_files(tiny_model, sources, out, formats=ALL, on_image=interrupt)
    with Detections.from_parquet(out / "detections.parquet") as stored:
        assert list(stored) == [1, 3, 4]
    with (out / "measurements.csv").open(newline="") as file:
        assert {row["image_id"] for row in csv.DictReader(file)} == set("134")
    predict_files(tiny_model, without_overlays(sources, out), out, formats=ALL, resume=True)
    assert content_of(out) == content_of(whole)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("overlay", "coco")])
def test_full_disk_keeps_what_was_done(
    name: str,
    tiny_model: MEInst,
    sources: list[Path],
    whole: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk is full when the fourth image has been written in one of the formats."""
    from meinst.inference.writers.formats import _writer_class

    kind = _writer_class(name)
    write = kind.write

    def full(writer: Any, image: Any) -> None:
        write(writer, image)
        if image.id == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    message = "No space left on device; 3 of 7 images are done; free some space and continue"
    with monkeypatch.context() as patch:
        patch.setattr(kind, "write", full)
        with pytest.raises(OSError, match=message):
            predict_files(tiny_model, sources, out, formats=ALL)
    predict_files(tiny_model, without_overlays(sources, out), out, formats=ALL, resume=True)
    assert content_of(out) == content_of(whole)


def test_files_of_others_and_corrected_labels_are_kept(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path
) -> None:
    for name in ("geojson", "labels", "ome-zarr", "yolo", "labelme", "imagej"):
        out = tmp_path / name
        (out / name).mkdir(parents=True)
        (out / name / "mine").write_text("precious")
        with pytest.raises(FileExistsError, match=f"{name} contains files that"):
            predict_files(tiny_model, sources, out, formats=[name])
        assert content_of(out) == {f"{name}/mine": b"precious"}
    out = tmp_path / "out"
    for _ in range(2):  # results of an earlier run are replaced
        predict_files(tiny_model, sources[:1], out, formats="geojson,labels,ome-zarr,imagej,csv")
    for name in ("yolo", "labelme"):  # but not those that may have been corrected
        predict_files(tiny_model, sources[:1], out, formats=name)
        before = content_of(out)
        for _ in range(2):
            with pytest.raises(FileExistsError, match=f"{name} contains labels of an earlier run"):
                predict_files(tiny_model, sources[:1], out, formats=name)
        assert content_of(out) == before


def test_run_that_ended_before_its_first_image_starts_again(
    tiny_model: MEInst, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meinst.inference.writers.labelme import LabelmeWriter

    out = tmp_path / "out"
    write = LabelmeWriter.write

    def killed(writer: LabelmeWriter, image: Any) -> None:
        write(writer, image)
        raise OSError(errno.EIO, "killed")

    with monkeypatch.context() as patch:
        patch.setattr(LabelmeWriter, "write", killed)
        with pytest.raises(OSError, match="killed; 0 of 1"):
            predict_files(tiny_model, sources[:1], out, formats="labelme,csv")
    predict_files(tiny_model, sources[:1], out, formats="labelme,csv")
    assert set(content_of(out)) == {
        *("measurements.csv", "labelme/.meinst-predictions", "labelme/two.json")
    }


def test_unknown_and_missing(
    tiny_model: MEInst, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=f"the formats are {', '.join(ALL)}; got 'xml'"):
        predict_files(tiny_model, [], tmp_path / "out", formats="overlay,xml")
    with pytest.raises(ValueError, match="none is given"):
        parse_formats(" , ")
    assert parse_formats("csv, overlay,csv") == ("overlay", "csv")
    monkeypatch.setattr("meinst.inference.writers.formats.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"parquet needs .* pip install 'meinst\[formats\]'"):
        predict_files(tiny_model, [], tmp_path / "out", formats="parquet")
    assert not (tmp_path / "out").exists()
    assert parse_formats("overlay,coco,geojson,labels,yolo,labelme,csv")


def test_command(
    tiny_model_file: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["predict", str(sources[0]), "--model", str(tiny_model_file), "--device", "cpu"]
    command += ["--output", str(out)]
    assert main([*command, "--save", "overlay,tiff"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --save: the formats are {', '.join(ALL)}; got 'tiff'.\n"
    assert not out.exists()
    assert main([*command, "--save", "csv,labels"]) == 0
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == f"results of 1 of 1 images: {out}"
    assert " -> " not in output
    assert sorted(path.name for path in out.iterdir()) == ["labels", "measurements.csv"]


def test_memory_and_open_files_do_not_grow(tiny_model: MEInst, tmp_path: Path) -> None:
    """Between image 10 and image 25, in all formats; what is found in one takes 50 kB and more."""
    sources = []
    for k in range(25):
        sources.append(tmp_path / f"{k}.png")
        Image.fromarray(np.full((32, 40), 9 * k, np.uint8)).save(sources[-1])
    handles: list[int] = []
    memory: list[int] = []

    def measure(_: ImageResult) -> None:
        handles.append(len(list(Path("/proc/self/fd").iterdir())))
        gc.collect()
        memory.append(tracemalloc.get_traced_memory()[0])

    predict_files(tiny_model, sources[:2], tmp_path / "first", formats=ALL)  # imports, caches
    tracemalloc.start()
    predict_files(tiny_model, sources, tmp_path / "out", formats=ALL, on_image=measure)
    tracemalloc.stop()
    assert max(handles[5:]) <= max(handles[:5])
    assert memory[-1] < memory[9] + 150_000


def test_addresses_give_the_results_of_files(
    tiny_model: MEInst, sources: list[Path], whole: Path, out: Path
) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    addresses = [f"memory://{k}/{path.name}" for k, path in enumerate(sources)]
    for path, address in zip(sources, addresses, strict=True):
        system.pipe(address, path.read_bytes())
    addresses[1] = "memory://nowhere/broken.png"
    outcomes: list[ImageResult] = []
    predict_files(tiny_model, addresses, out, formats=ALL, on_image=outcomes.append)
    assert [each.error is None for each in outcomes] == [True, False, *[True] * 5]
    assert "memory://nowhere/broken.png does not exist" in str(outcomes[1].error)
    found, expected = content_of(out), content_of(whole)
    assert found.keys() == expected.keys()
    named = {"images.json", "measurements.csv", "detections.parquet"}  # by the names of the images
    for name, content in expected.items():
        if not name.startswith(("yolo/images", "labelme")) and name not in named:
            assert found[name] == content, name
    links = whole / "yolo" / "images"
    assert found["yolo/images/deep.tif"] == (links / "deep.tif").read_bytes()
    with Detections.from_parquet(out / "detections.parquet") as stored:
        assert stored.file(3) == addresses[2]


def test_lists_and_folders_on_the_command_line(
    tiny_model_file: Path,
    sources: list[Path],
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/x.png", "a/b/y.png"):
        shutil.copy(sources[0], tmp_path / name)
    monkeypatch.chdir(tmp_path)
    options = ["--model", str(tiny_model_file), "--device", "cpu", "--output", str(out)]
    command = ["predict", *options, "--save", "coco"]

    def files() -> list[str]:
        assert capsys.readouterr().err == ""
        images = json.loads((out / "images.json").read_text())["images"]
        assert all(image["overlay"] is None for image in images)
        return [image["file_name"] for image in images]

    assert main([*command, "a"]) == 0
    assert files() == ["a/x.png"]
    assert main([*command, "a", "--recursive"]) == 0
    assert files() == ["a/b/y.png", "a/x.png"]
    Path("list.txt").write_bytes("\ufeffa/b/y.png\r\n\r\n# comment\r\na/x.png\r\n".encode())
    assert main([*command, "--from-file", "list.txt"]) == 0
    assert files() == ["a/b/y.png", "a/x.png"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a/x.png\n"))
    assert main([*command, "a/b/y.png", "--from-file", "-"]) == 0
    assert files() == ["a/b/y.png", "a/x.png"]
    for arguments, message in (
        ([], "missing arguments: SOURCES; see `meinst predict --help`"),
        (["--from-file", "no.txt"], "--from-file no.txt does not exist"),
        (["memory://nowhere/a.png"], None),
    ):
        assert main([*command, *arguments]) == 2
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 1
        assert (message or "memory://nowhere/a.png does not exist") in errors[0]
