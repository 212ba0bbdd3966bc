"""The HTML report: self-contained, escaped, with all scores."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from html_reader import Reader
from PIL import Image

from meinst.codec_tools.evaluate import CodecScores, evaluate_codec
from meinst.codec_tools.report.html import write_report
from meinst.codecs import Codec, PCACodec
from meinst.data.coco import CocoData, read_coco

NASTY = "<b>disc</b> & \"co\" 'x'"


@pytest.fixture(scope="module")
def data(synthetic_data, tmp_path_factory: pytest.TempPathFactory) -> CocoData:
    """The synthetic data; the name of the discs is HTML."""
    content = synthetic_data.content()
    content["categories"][0]["name"] = NASTY
    path = tmp_path_factory.mktemp("data") / "named.json"
    path.write_text(json.dumps(content))
    return read_coco(path)


@pytest.fixture(scope="module")
def codec(data: CocoData) -> Codec:
    masks = np.concatenate([image.masks(14) for image in data.instances])
    return PCACodec(3, 14).fit(torch.from_numpy(masks))


@pytest.fixture(scope="module")
def scores(codec: Codec, data: CocoData) -> CodecScores:
    return evaluate_codec(codec, data)


@pytest.fixture(scope="module")
def path(codec: Codec, data: CocoData, scores: CodecScores, tmp_path_factory) -> Path:
    return write_report(scores, codec, data, tmp_path_factory.mktemp("out") / "new")


@pytest.fixture(scope="module")
def page(path: Path) -> Reader:
    return Reader(path.read_text(encoding="utf-8"))


def test_writes_a_single_file(path: Path) -> None:
    assert path.name == "report.html"
    assert list(path.parent.iterdir()) == [path]


def test_page_has_no_external_resources(path: Path, page: Reader) -> None:
    text = re.sub(r"base64,[^']*'", "'", path.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch|XMLHttp|\bimport\b", text, re.I)
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    assert page.all("script") == [{}]  # its text stands here
    places = [attributes.get("src") or "" for _, attributes in page.tags if "src" in attributes]
    assert len(places) > 2
    assert all(place.startswith("data:image/png;base64,") for place in places)
    assert not any("href" in attributes for _, attributes in page.tags)


def test_images_are_valid_png_files(page: Reader) -> None:
    # Histogram, sheet, and thumbnails of each of the worst instances.
    pictures = []
    for attributes in page.all("img"):
        assert attributes["alt"]
        encoded = (attributes["src"] or "").partition(",")[2]
        with Image.open(io.BytesIO(base64.b64decode(encoded, validate=True))) as picture:
            picture.load()
            pictures.append(picture.size)
    assert len(pictures) == 2 + 9
    assert pictures[1][1] > pictures[1][0] > 1000  # the sheet
    # "large" has a disc of 160 x 160 pixels: two squares, and some white between.
    assert (2 * 88 + 6, 88) in pictures[2:]


def test_names_are_escaped(path: Path, page: Reader) -> None:
    assert "<b>disc" not in path.read_text(encoding="utf-8")
    _, categories, worst = page.tables
    assert NASTY in [row[0] for row in categories]
    assert NASTY in [row[3] for row in worst]


def test_page_contains_the_overall_scores(page: Reader, scores: CodecScores) -> None:
    text = " ".join(page.texts)
    for value in (
        scores.overall.mean_iou,
        scores.overall.iou_p1,
        scores.overall.mean_boundary_iou,
        scores.ap_ceiling.ap,
        scores.pooled_miou,
    ):
        assert f"{value:.3f}" in text
    assert "12 bytes per instance" in text  # three numbers of four bytes
    assert "9 instances" in text
    assert scores.annotations[0] in text


def test_tables_contain_the_scores(page: Reader, scores: CodecScores) -> None:
    sizes, categories, _ = page.tables
    assert [row[0] for row in sizes] == ["size", "small", "medium", "large"]
    for row in sizes[1:]:
        group = scores.by_size[row[0]]
        ceiling = getattr(scores.ap_ceiling, f"ap_{row[0]}")
        assert row[1:] == [
            str(group.instances),
            *(
                f"{value:.3f}"
                for value in (
                    group.mean_iou,
                    group.iou_p1,
                    group.iou_p5,
                    group.iou_p25,
                    group.mean_boundary_iou,
                    ceiling,
                )
            ),
        ]
    # By IoU, the worst first; "star" has no instance.
    expected = sorted((scores.by_category[name].mean_iou, name) for name in (NASTY, "box"))
    assert [row[0] for row in categories[1:]] == [name for _, name in expected]
    assert [row[2] for row in categories[1:]] == [f"{iou:.3f}" for iou, _ in expected]


def test_only_the_categories_can_be_sorted(page: Reader) -> None:
    kinds = [table.get("class") for table in page.all("table")]
    assert kinds == ["", "sortable", "pictures"]
    assert len(page.all("button")) == len(page.tables[1][0])


def test_worst_instances_come_first(page: Reader, scores: CodecScores) -> None:
    rows = page.tables[2][1:]
    order = np.argsort(scores.iou, kind="stable")
    assert [row[4] for row in rows] == [str(scores.annotation_ids[n]) for n in order]
    assert [row[5] for row in rows] == [str(scores.image_ids[n]) for n in order]
    assert [row[1] for row in rows] == [f"{scores.iou[n]:.3f}" for n in order]
    assert [row[2] for row in rows] == [f"{scores.boundary_iou[n]:.3f}" for n in order]


def test_instances_of_several_files_name_their_file(
    codec: Codec, data: CocoData, tmp_path: Path
) -> None:
    files = [data, data]
    path = write_report(evaluate_codec(codec, files), codec, files, tmp_path)
    rows = Reader(path.read_text(encoding="utf-8")).tables[2][1:]
    assert len(rows) == 18
    assert all(row[5].endswith(f" of {data.annotations}") for row in rows)


def test_unknown_categories_are_listed(data: CocoData, tmp_path: Path) -> None:
    codec = PCACodec(3, 14, class_names=("box", "moon"))
    masks = np.concatenate([image.masks(14) for image in data.instances])
    codec.fit(torch.from_numpy(masks), torch.arange(len(masks)) % 2)
    path = write_report(evaluate_codec(codec, data), codec, data, tmp_path)
    page = Reader(path.read_text(encoding="utf-8"))
    assert any("Not measured" in text and NASTY in text for text in page.texts)
    assert [row[0] for row in page.tables[1][1:]] == ["box"]


def test_replaces_an_existing_report(
    codec: Codec, data: CocoData, scores: CodecScores, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text("old" * 10**6)
    write_report(scores, codec, data, tmp_path)
    Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
