"""Plots of the accuracy of mask codecs and the size of their codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.codec_tools.report.canvas import INK, png, style_plot
from meinst.codecs.registry import CODECS
from meinst.files import write_atomically

CURVE = "#0072b2"
_COLORS = (CURVE, "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito, 2008
_MARKERS, _DASHES = "os^Dv", ("-", "--", ":")  # for mask sizes


def iou_histogram(iou: NDArray[np.float32]) -> bytes:
    """Histogram of the IoU, ``(N,)``, of instances, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.add_subplot()
    style_plot(axes)
    axes.hist(iou, bins=np.linspace(0, 1, 101).tolist(), color=CURVE)
    axes.set(xlabel="IoU", ylabel="instances", xlim=(0, 1))
    return png(figure)


def compare_plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot mean IoU and AP ceiling against code size, one line per kind and mask size.

    Args:
        rows: dicts with the keys ``kind``, ``n_components``, ``mask_size``, ``bytes``, ``mean_iou``
            and ``ap_ceiling``; the last two are 0 to 1, or None where there is nothing to measure.
        path: the PNG file, written atomically.

    Raises:
        OSError: if the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.6))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.12)
    sizes = sorted({row["mask_size"] for row in rows})
    lines: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["bytes"]):
        lines.setdefault((row["kind"], row["mask_size"]), []).append(row)
    measures = (("mean_iou", "Mean IoU"), ("ap_ceiling", "AP ceiling"))
    panels = figure.subplots(1, 2)
    for axes, (measure, title) in zip(panels, measures, strict=True):
        for (kind, size), points in sorted(lines.items()):
            known = [point for point in points if point[measure] is not None]
            style = sizes.index(size)
            axes.plot(
                [point["bytes"] for point in known],
                [point[measure] for point in known],
                color=_COLORS[list(CODECS).index(kind) % len(_COLORS)],
                marker=_MARKERS[style % len(_MARKERS)],
                markersize=5,
                linestyle=_DASHES[style % len(_DASHES)],
                linewidth=1.5,
                label=f"{CODECS[kind].title}, {size} x {size}",
            )
        axes.set_title(title, loc="left", size=11, weight="bold", color=INK)
        axes.set(xlabel="bytes per instance (float32)", xscale="log")
        axes.set_xticks([], minor=True)
        ticks = _apart(sorted({row["bytes"] for row in rows}))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        style_plot(axes)
    if lines:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=9)
    write_atomically(path, png(figure))


def _apart(values: Sequence[int]) -> list[int]:
    """Thin out ascending values to those whose labels do not overlap."""
    kept: list[int] = []
    for value in values:
        if not kept or value >= 1.15 * kept[-1]:
            kept.append(value)
    return kept
