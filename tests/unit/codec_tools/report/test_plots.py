"""Plots of codecs: lines and counts."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from meinst.codec_tools.report import plots
from meinst.codec_tools.report.plots import compare_plot, iou_histogram


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that the test draws."""
    drawn: list[Figure] = []
    draw = plots.png

    def record(figure: Figure) -> bytes:
        drawn.append(figure)
        return draw(figure)

    monkeypatch.setattr(plots, "png", record)
    return drawn


def row(kind: str, k: int, s: int, iou: float | None, ap: float | None) -> dict[str, Any]:
    return {"kind": kind, "n_components": k, "mask_size": s, "bytes": 4 * k} | {
        "mean_iou": iou,
        "ap_ceiling": ap,
    }


def test_no_rows_give_empty_panels(figures: list[Figure], tmp_path: Path) -> None:
    compare_plot([], tmp_path / "plot.png")
    assert [len(panel.lines) for panel in figures[0].axes] == [0, 0]
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.size[0] > 1000


def test_a_line_for_each_kind_and_size_by_bytes(figures: list[Figure], tmp_path: Path) -> None:
    rows = [
        row("pca", 60, 28, 0.9, 0.8),
        row("pca", 30, 28, 0.7, 0.6),
        row("pca", 60, 56, 0.95, None),
        row("dct", 60, 28, 0.85, 0.75),
    ]
    compare_plot(rows, tmp_path / "plot.png")
    drawn = [
        {line.get_label(): line.get_xydata().tolist() for line in panel.lines}
        for panel in figures[0].axes
    ]
    assert drawn[0] == {
        "DCT, 28 x 28": [[240, 0.85]],
        "PCA, 28 x 28": [[120, 0.7], [240, 0.9]],
        "PCA, 56 x 56": [[240, 0.95]],
    }
    assert drawn[1]["PCA, 28 x 28"] == [[120, 0.6], [240, 0.8]]
    assert drawn[1]["PCA, 56 x 56"] == []  # nothing to measure: no point, not a zero
    looks = {(line.get_color(), line.get_marker()) for line in figures[0].axes[0].lines}
    assert len(looks) == 3
    legend = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert legend == ["DCT, 28 x 28", "PCA, 28 x 28", "PCA, 56 x 56"]


def test_close_sizes_share_a_tick(figures: list[Figure], tmp_path: Path) -> None:
    rows = [row("pca", k, 28, 0.9, 0.8) for k in (30, 60, 62, 120)]
    compare_plot(rows, tmp_path / "plot.png")
    ticks = [tick.get_text() for tick in figures[0].axes[0].get_xticklabels()]
    assert ticks == ["120", "240", "480"]


def test_histogram_counts_every_instance(figures: list[Figure]) -> None:
    # Bins of a hundredth: two in [0.50, 0.51), one in the last, which holds 1.
    png = iou_histogram(np.array([0.502, 0.507, 1.0], dtype=np.float32))
    heights = [bar.get_height() for bar in figures[0].axes[0].patches]
    assert len(heights) == 100
    assert (sum(heights), heights[50], heights[-1]) == (3, 2, 1)
    assert Image.open(io.BytesIO(png)).format == "PNG"
