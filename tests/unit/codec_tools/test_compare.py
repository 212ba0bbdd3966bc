"""Comparisons of settings equal their single evaluations."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SyntheticData, column_runs, draw_mask
from synthetic_masks import SmallAutoencoder

import meinst.codec_tools.ground_truth as truth_module
from meinst.codec_tools.compare import (
    CompareRow,
    Setting,
    best_line,
    best_row,
    compare_codecs,
    plan_settings,
    write_rows,
)
from meinst.codec_tools.count import count_masks
from meinst.codec_tools.evaluate import evaluate_codec
from meinst.codec_tools.sample import sample_masks
from meinst.codecs import Codec, DCTCodec, GridCodec, PCACodec
from meinst.codecs.options import CodecOptions
from meinst.codecs.registry import CODECS, codec_from_options
from meinst.data.coco import read_coco


def draw_blobs(path: Path, seed: int, count: int = 30) -> Path:
    """Annotations of shapes of three discs each, no two alike, in images of 50 x 60."""
    rng = np.random.default_rng(seed)
    annotations = []
    for number in range(1, count + 1):
        discs = [(*rng.uniform(15, 40, 2), rng.uniform(3, 12)) for _ in range(3)]
        mask = np.any([draw_mask("disc", disc, 50, 60) for disc in discs], axis=0)
        annotations.append(
            {
                "id": number,
                "image_id": number % 5,
                "category_id": 1,
                "segmentation": {"size": [50, 60], "counts": column_runs(mask)},
                "area": int(mask.sum()),
            }
        )
    images = [{"id": i, "file_name": f"{i}.png", "height": 50, "width": 60} for i in range(5)]
    categories = [{"id": 1, "name": "blob"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    return draw_blobs(tmp_path / "blobs.json", seed=0)


@pytest.mark.parametrize(
    ("kinds", "components", "sizes", "message"),
    [
        ([], [4], [8], "must not be empty"),
        (["pca"], [], [8], "must not be empty"),
        (["pca"], [4], [], "must not be empty"),
        (["pcs"], [4], [8], "pca, dct, grid, autoencoder, got 'pcs'"),
        (["dct"], [0, 4], [8], "n_components from 0 to 4"),
        (["dct"], [4, 65], [8, 9], "n_components from 4 to 65 and a mask size of 8"),
        (["dct"], [1], [0], "a mask size of 0"),
    ],
)
def test_rejects_impossible_plans(
    kinds: list[str], components: list[int], sizes: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan_settings(kinds, components, sizes)


def test_plan_combines_kinds_sizes_and_lengths() -> None:
    # The largest squares up to 30, 26 and 9 are 25, 25 and 9.
    assert plan_settings(["dct", "grid"], [30, 26, 9], [14, 7]) == [
        *(Setting("dct", count, size) for size in (14, 7) for count in (30, 26, 9)),
        *(Setting("grid", count, size) for size in (14, 7) for count in (25, 9)),
    ]


def test_rows_equal_single_evaluations(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = draw_blobs(tmp_path / "other.json", seed=1)
    fit, data = [blobs, other], [read_coco(blobs)]
    traced = []
    trace = truth_module.shape_runs

    def counted(*arguments: object) -> object:
        traced.append(arguments)
        return trace(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(truth_module, "shape_runs", counted)
    settings = plan_settings(["pca", "dct", "grid"], [3, 6], [7, 14])
    reported: list[CompareRow] = []
    rows = compare_codecs(settings, data, fit, reported.append)
    assert reported == rows
    assert [Setting(row.kind, row.n_components, row.mask_size) for row in rows] == settings
    assert len(traced) == 30  # once for all of the 12 settings

    sums = count_masks(fit, [7, 14]).moments
    for row in rows:
        count, size = row.n_components, row.mask_size
        codec: Codec = {"dct": DCTCodec, "grid": GridCodec}.get(row.kind, PCACodec)(count, size)
        if isinstance(codec, PCACodec):
            codec.fit_moments(sums[size])
        scores = evaluate_codec(codec, data)
        ceiling, overall = scores.ap_ceiling, scores.overall
        assert asdict(row) == {
            "kind": codec.kind,
            "n_components": count,
            "mask_size": size,
            "bytes": 4 * count,
            "mean_iou": pytest.approx(overall.mean_iou),
            "iou_p1": pytest.approx(overall.iou_p1),
            "iou_p5": pytest.approx(overall.iou_p5),
            "iou_p25": pytest.approx(overall.iou_p25),
            "mean_boundary_iou": pytest.approx(overall.mean_boundary_iou),
            "pooled_miou": pytest.approx(scores.pooled_miou),
            "ap_ceiling": pytest.approx(ceiling.ap),
            "ap50": pytest.approx(ceiling.ap50),
            "ap75": pytest.approx(ceiling.ap75),
            "ap_small": pytest.approx(ceiling.ap_small),
            "ap_medium": pytest.approx(ceiling.ap_medium),
            "ap_large": pytest.approx(ceiling.ap_large),
            "seconds": row.seconds,
        }
        assert row.seconds > 0


def test_fits_on_measured_data_by_default(blobs: Path, tmp_path: Path) -> None:
    setting, data = [Setting("pca", 4, 7)], [read_coco(blobs)]
    own = compare_codecs(setting, data)[0]
    assert own.pooled_miou == compare_codecs(setting, data, [blobs])[0].pooled_miou
    few = draw_blobs(tmp_path / "few.json", seed=1, count=6)
    assert compare_codecs(setting, data, [few])[0].pooled_miou < own.pooled_miou
    with pytest.raises(FileNotFoundError):
        compare_codecs(setting, data, [tmp_path / "none.json"])


def test_warns_of_masks_that_span_few_directions(synthetic_data: SyntheticData) -> None:
    with pytest.warns(UserWarning, match=r"span 2 directions, fewer than n_components=4"):
        compare_codecs([Setting("pca", 4, 7)], [read_coco(synthetic_data.annotations)])


def test_autoencoders_are_trained_on_masks(blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "autoencoder", SmallAutoencoder)
    data = read_coco(blobs)
    (row,) = compare_codecs([Setting("autoencoder", 4, 8)], [data])
    codec = codec_from_options(CodecOptions("autoencoder", 4, 8))
    expected = evaluate_codec(codec.fit(sample_masks([data], 8, 1000, seed=0)), data)
    assert row.kind == "autoencoder"
    assert row.pooled_miou == pytest.approx(expected.pooled_miou)


def test_other_settings_are_measured_if_an_autoencoder_cannot_be_fitted(
    synthetic_data: SyntheticData,
) -> None:
    settings = [Setting("autoencoder", 40, 8), Setting("dct", 4, 8)]
    with pytest.warns(UserWarning, match="autoencoder, K = 40, S = 8: "):
        (row,) = compare_codecs(settings, [read_coco(synthetic_data.annotations)])
    assert row.kind == "dct"


def test_rejects_data_without_instances(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    path.write_text(json.dumps(synthetic_data.content() | {"annotations": []}))
    with pytest.raises(ValueError, match=r"none\.json: no instances to measure"):
        compare_codecs([Setting("dct", 4, 7)], [read_coco(path)])


ROW = CompareRow(
    "pca", 60, 28, 240, 0.9, 0.1, 0.5, 0.8, 0.7, 0.95, 0.85, 1.0, 0.9, None, 0.8, 0.7, 1.5
)


def test_best_row_has_the_highest_ap_of_short_codes() -> None:
    assert best_row([]) is None
    better = replace(ROW, n_components=120, bytes=480, ap_ceiling=0.87)
    longer = replace(better, n_components=130, bytes=520)
    best = replace(ROW, n_components=250, bytes=1000, ap_ceiling=0.99)
    unknown = replace(ROW, ap_ceiling=None)
    assert best_row([ROW, longer, better, best, unknown]) == better
    assert best_row([ROW, best], below=1001) == best
    assert best_line([best]) == "No setting is below 1000 bytes per instance."
    assert best_line([ROW, better]) == (
        "Best AP ceiling below 1000 bytes per instance: pca, K = 120, S = 28 (480 bytes): "
        "0.8700, mean IoU 0.9000."
    )


def test_written_files_contain_the_rows(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, kind="dct", ap_ceiling=0.5)]
    write_rows(rows, tmp_path / "new")
    with (tmp_path / "new" / "compare.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["kind"] for row in read] == ["pca", "dct"]
    found = {name: value for name, value in read[0].items() if name != "kind"}
    expected = {name: value for name, value in asdict(ROW).items() if name != "kind"}
    assert {k: float(v) if v else None for k, v in found.items()} == expected
    page = (tmp_path / "new" / "compare.md").read_text().splitlines()
    assert page[2] == best_line(rows)
    table = [line for line in page if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert table[0].startswith("| kind | K | S | bytes | mean IoU | IoU 1% | IoU 5% | IoU 25% |")
    assert table[2].startswith("| pca | 60 | 28 | 240 | 0.9000 | 0.1000 |")
    assert "| 0.9000 | - | 0.8000 | 0.7000 | 1.5000 |" in table[2]
