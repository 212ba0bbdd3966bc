"""``meinst codec show``: the image, and errors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import SyntheticData
from PIL import Image

from meinst.cli.main import main
from meinst.codecs import DCTCodec, PCACodec
from meinst.data.coco import read_coco


@pytest.fixture(scope="module")
def codec(synthetic_data: SyntheticData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    masks = [image.masks(14) for image in read_coco(synthetic_data.annotations).instances]
    path = tmp_path_factory.mktemp("codec") / "codec.npz"
    PCACodec(4, 14).fit(torch.cat([torch.from_numpy(part) for part in masks])).save(path)
    return path


def show(*arguments: object) -> int:
    return main(["codec", "show", *map(str, arguments)])


def height(path: Path) -> int:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.size[1]


def test_codec_without_annotations(
    codec: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert show(codec) == 0
    assert capsys.readouterr().out == "codec.png\n"
    assert height(tmp_path / "codec.png") > 500


def test_image_grows_with_the_number_of_pairs(
    codec: Path, synthetic_data: SyntheticData, tmp_path: Path
) -> None:
    """Nine instances: rows of four, so 1, 4 and 5 pairs take 1, 1 and 2 rows, 400 take 3."""
    heights = []
    for count in (1, 4, 5, 400):
        path = tmp_path / "new" / f"{count}.png"
        assert show(codec, synthetic_data.annotations, "--output", path, "--count", count) == 0
        heights.append(height(path))
    assert heights[0] == heights[1]
    row = heights[2] - heights[1]
    assert row > 50
    assert abs(heights[3] - heights[2] - row) <= 1


def test_kinds_and_several_files(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    DCTCodec(6, 14).save(tmp_path / "dct.npz")
    files = (synthetic_data.annotations, tmp_path / "copied.json")
    files[1].write_bytes(files[0].read_bytes())
    assert show(tmp_path / "dct.npz", *files, "--output", tmp_path / "dct.png") == 0
    assert height(tmp_path / "dct.png") > 500


def test_faulty_annotations_are_printed(
    codec: Path, synthetic_data: SyntheticData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = synthetic_data.content()
    content["annotations"][0]["segmentation"] = []
    faulty = tmp_path / "faulty.json"
    faulty.write_text(json.dumps(content))
    assert show(codec, faulty, "--output", tmp_path / "codec.png") == 0
    assert f"warning: {faulty}: dropped: 1 x no mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CODEC", "--count", "0"], "--count must be between 1 and 400, got 0"),
        (["CODEC", "--count", "401"], "--count must be between 1 and 400, got 401"),
        (["CODEC", "--output", "DIR"], "is a folder; give the name of a file"),
        (["DIR/none.npz"], "none.npz does not exist"),
        (["CODEC", "DIR/none.json"], "none.json"),
        (["JSON"], "not a valid mask codec file"),
    ],
)
def test_bad_input(
    arguments: list[str],
    message: str,
    codec: Path,
    synthetic_data: SyntheticData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"CODEC": codec, "DIR": tmp_path, "JSON": synthetic_data.annotations}
    for name, value in names.items():
        arguments = [argument.replace(name, str(value)) for argument in arguments]
    assert show(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error:")
    assert message in shown.err
    assert (shown.out, list(tmp_path.iterdir())) == ("", [])


def test_without_matplotlib(
    codec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert show(codec) == 2
    assert "pip install 'meinst[train]'" in capsys.readouterr().err
