"""Plots of a diagnosis, as PNG files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from meinst.codec_tools.report.canvas import INK, LINE, MUTED, png, style_plot
from meinst.diagnosis.assignments import THRESHOLDS
from meinst.diagnosis.colors import hex_color
from meinst.diagnosis.diagnose import Diagnosis
from meinst.diagnosis.kinds import ERRORS, Kind
from meinst.diagnosis.repairs import precision_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVE = hex_color(Kind.WRONG_CLASS)
_MOST_CLASSES = 12  # curves of classes in one plot
_MOST_ROWS = 80  # classes of a confusion matrix
_MOST_CELLS = 30  # classes of a confusion matrix with numbers


def loss_plot(diagnosis: Diagnosis) -> bytes:
    """The gains of single repairs, and what is lost at each IoU threshold."""
    figure = _figure(11, 3.9)
    bars, areas = figure.subplots(1, 2, width_ratios=(1, 1.25))
    kinds, errors = list(ERRORS), list(diagnosis.errors)
    places = np.arange(len(kinds))[::-1]
    gains = [error.dap for error in errors]
    bars.barh(places, gains, color=[hex_color(kind) for kind in kinds], height=0.7)
    for place, gain in zip(places, gains, strict=True):
        bars.text(gain, place, f" {gain:.3f}", va="center", size=8, color=INK)
    bars.set_yticks(places, [kind.title for kind in kinds])
    bars.set(xlabel="AP gained if repaired alone")
    bars.set_xlim(min(0.0, *gains), max(max(gains) * 1.18, 0.01))
    _title(bars, "What each kind of error costs")
    bars.grid(False, axis="y")
    _draw_losses(areas, diagnosis)
    return png(figure)


def _draw_losses(axes: Axes, diagnosis: Diagnosis) -> None:
    """AP at each IoU threshold, and above it the gains of the repairs, scaled to fill up to 1."""
    base = np.nanmean(precision_table(diagnosis.assignments).mean(-1), axis=1)  # (T,)
    gains = np.array([error.dap_by_iou for error in diagnosis.errors]).clip(0)  # (kinds, T)
    total = gains.sum(0)
    parts = gains / np.where(total > 0, total, 1) * (1 - base)
    colors = ["#dfe5ea", *(hex_color(kind) for kind in ERRORS)]
    labels = ["AP", *(kind.title for kind in ERRORS)]
    axes.stackplot(THRESHOLDS, base, *parts, colors=colors, labels=labels, linewidth=0)
    axes.plot(THRESHOLDS, base, color=INK, linewidth=1.5)
    axes.set(xlabel="IoU threshold", xlim=(0.5, 0.95), ylim=(0, 1), ylabel="AP")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1],
        names[::-1],
        fontsize=8,
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )
    _title(axes, "What is lost at each IoU threshold")


def precision_recall_plot(diagnosis: Diagnosis) -> bytes:
    """Precision-recall curves: the mean of the classes at all thresholds, and single classes."""
    table = precision_table(diagnosis.assignments)  # (T, C, 101)
    recalls = np.linspace(0, 1, table.shape[-1])
    measured = np.flatnonzero(~np.isnan(table[0, :, 0]))
    figure = _figure(11 if len(measured) > 1 else 7, 3.9)
    panels = figure.subplots(1, 2) if len(measured) > 1 else [figure.subplots(1, 1)]
    from matplotlib import colormaps

    shades = colormaps["viridis_r"](np.linspace(0.1, 1, len(table)))
    for threshold, curves, shade in zip(THRESHOLDS, table, shades, strict=True):
        mean = curves[measured].mean(0)
        panels[0].plot(
            recalls,
            _reached(mean),
            color=shade,
            linewidth=1.6,
            label=f"{threshold:.2f}  ({mean.mean():.3f})",
        )
    _finish_curves(panels[0], "IoU (AP)", "Mean of the classes" if len(measured) > 1 else "Masks")
    if len(measured) > 1:
        _draw_class_curves(panels[1], diagnosis, table[0], measured, recalls)
    return png(figure)


def _draw_class_curves(
    axes: Axes,
    diagnosis: Diagnosis,
    table: NDArray[np.float64],
    measured: NDArray[np.int64],
    recalls: NDArray[np.float64],
) -> None:
    """Curves of single classes at IoU 0.5; of many, those with most objects."""
    from matplotlib import colormaps

    objects = diagnosis.assignments.objects_per_class()
    chosen = measured[np.argsort(-objects[measured], kind="stable")][:_MOST_CLASSES]
    colors = colormaps["tab20"](np.arange(_MOST_CLASSES))
    names = diagnosis.assignments.class_names
    for label, color in zip(chosen, colors, strict=False):
        text = f"{_short(names[label])}  ({table[label].mean():.3f})"
        axes.plot(recalls, _reached(table[label]), color=color, linewidth=1.3, label=text)
    few = len(chosen) == len(measured)
    title = "Classes at IoU 0.50" + ("" if few else f", the {len(chosen)} most frequent")
    _finish_curves(axes, "class (AP50)", title)


def _reached(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve down to the first recall that is not reached, NaN beyond."""
    before = np.concatenate(([True], precision[:-1] > 0))
    return np.where(before, precision, np.nan)


def _finish_curves(axes: Axes, legend: str, title: str) -> None:
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    box = axes.legend(
        title=legend, fontsize=7.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5)
    )
    for text in box.get_texts():
        text.set_parse_math(False)
    box.get_title().set(size=8, color=MUTED)
    _title(axes, title)


def calibration_plot(diagnosis: Diagnosis) -> bytes:
    """Precision against score, and the number of detections of each score."""
    bins = diagnosis.calibration.bins
    figure = _figure(6.4, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [each for each in bins if each.precision is not None]
    middles = [(each.low + each.high) / 2 for each in filled]
    precisions = [each.precision for each in filled]
    width = 1 / len(bins) * 0.94
    above.bar(middles, precisions, width=width, color=_CURVE, label="share that is correct")
    above.plot(
        [each.mean_score for each in filled],
        [each.mean_score for each in filled],
        "o",
        color=INK,
        markersize=4,
        label="mean score",
    )
    above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    above.set(ylabel="precision", ylim=(0, 1.02))
    above.legend(fontsize=8, frameon=False, loc="upper left")
    counts = [each.detections for each in bins]
    below.bar([(each.low + each.high) / 2 for each in bins], counts, width=width, color=LINE)
    below.set(xlabel="score", ylabel="detections", xlim=(0, 1))
    if max(counts, default=0) > 0:
        below.set_yscale("log")
    for axes in (above, below):
        style_plot(axes)
        axes.axvline(diagnosis.working_score, color=hex_color(Kind.FALSE), linewidth=1)
    return png(figure)


def outline_plot(diagnosis: Diagnosis) -> bytes:
    """Distributions of box, mask and boundary IoU of the correct detections."""
    assignments = diagnosis.assignments
    chosen = assignments.confident & (assignments.kinds[0] == Kind.CORRECT)
    figure = _figure(6.4, 3.4)
    axes = figure.subplots(1, 1)
    curves = (
        ("box IoU", assignments.box_iou, hex_color(Kind.LOOSE_BOX)),
        ("mask IoU", assignments.iou, _CURVE),
        ("boundary IoU", assignments.boundary_iou, hex_color(Kind.FALSE)),
    )
    for name, values, color in curves:
        ranked = np.sort(values[chosen])
        share = np.arange(1, len(ranked) + 1) / max(len(ranked), 1) * 100
        axes.plot(ranked, share, color=color, linewidth=1.8, label=name)
    axes.set(xlabel="IoU", ylabel="correct detections with less, %", xlim=(0, 1), ylim=(0, 100))
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    style_plot(axes)
    return png(figure)


def confusion_plot(diagnosis: Diagnosis) -> bytes:
    """The confusion matrix with background; of many classes those with most errors."""
    from matplotlib.colors import to_rgb

    chosen = most_confused(diagnosis.confusion)
    matrix = diagnosis.confusion[np.ix_(chosen, chosen)]
    all_names = (*diagnosis.assignments.class_names, "background")
    names = [_short(all_names[label]) for label in chosen]
    count = len(names)
    numbered = count <= _MOST_CELLS
    side = 1.6 + count * (0.42 if numbered else 0.17)
    figure = _figure(side + 1.2, side)
    axes = figure.subplots(1, 1)
    shares = matrix / np.maximum(diagnosis.confusion[chosen].sum(1, keepdims=True), 1)
    right = np.array(to_rgb(hex_color(Kind.CORRECT)))
    wrong = np.array(to_rgb(hex_color(Kind.FALSE)))
    full = np.where(np.eye(count, dtype=np.bool_)[..., None], right, wrong)  # (n, n, RGB)
    axes.imshow(1 - np.sqrt(shares)[..., None] * (1 - full))
    size = 8 if numbered else 6
    texts: dict[str, Any] = {"parse_math": False, "size": size, "color": INK}
    axes.set_xticks(np.arange(count), names, rotation=90 if count > 4 else 0, **texts)
    axes.set_yticks(np.arange(count), names, **texts)
    axes.set(xlabel="detections", ylabel="objects")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(size=9, color=MUTED)
    for line in (axes.axhline, axes.axvline):
        line(count - 1.5, color=MUTED, linewidth=0.8)
    if numbered:
        for row, column in np.argwhere(matrix > 0).tolist():
            color = "white" if shares[row, column] > 0.5 else INK
            text = f"{matrix[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", size=7.5, color=color)
    return png(figure)


def most_confused(confusion: NDArray[np.int64]) -> list[int]:
    """Indices of at most 80 classes, those with most errors, and of background."""
    errors = confusion.sum(0) + confusion.sum(1) - 2 * np.diagonal(confusion)
    classes = np.argsort(-errors[:-1], kind="stable")[:_MOST_ROWS]
    return [*np.sort(classes).tolist(), len(confusion) - 1]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    return figure


def _title(axes: Axes, text: str) -> None:
    style: dict[str, Any] = {"loc": "left", "size": 10.5, "weight": "bold", "color": INK}
    axes.set_title(text, **style)
    style_plot(axes)


def _short(text: str, most: int = 18) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
