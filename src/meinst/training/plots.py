"""Plots of a training run: loss curves, and detections on validation images."""

from __future__ import annotations

import csv
import io
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from meinst.data.coco import CocoData
from meinst.data.images import ImageError, read_image
from meinst.detector.meinst import MEInst
from meinst.files import write_atomically

Series = dict[str, dict[int, float]]


def read_logs(folder: Path) -> Series:
    """Read values by name and update from the CSV logs of a run and its resumptions.

    If an update was computed twice (before and after a crash), the later value counts. Rows that a
    crash has damaged and folders of other names are skipped.
    """
    series: Series = defaultdict(dict)
    versions = {}
    for path in folder.glob("version_*/metrics.csv"):
        if (number := path.parent.name.removeprefix("version_")).isdecimal():
            versions[int(number)] = path
    for _, path in sorted(versions.items()):
        for row in _read_rows(path):
            step = int(row["step"])
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    series[name][step] = value
    return dict(series)


def _read_rows(path: Path) -> Iterator[dict[str, float]]:
    """The rows of a CSV log, without empty values."""
    text = path.read_text(errors="replace").replace("\0", "")
    complete = text[: text.rfind("\n") + 1]
    for row in csv.DictReader(io.StringIO(complete, newline="")):
        try:
            values = {name: float(value) for name, value in row.items() if value != ""}
        except (TypeError, ValueError):  # too few values are None, too many are a list
            continue
        if math.isfinite(values.get("step", math.nan)):
            yield values


def draw_curves(series: Series, path: Path) -> None:
    """Plot losses, learning rates and validation metrics over the updates, as a PNG file.

    Losses of single batches are noisy, so their running mean over a fiftieth of the run is plotted
    as well.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    groups = (
        ("loss/total", "sum of the losses"),
        ("loss/", "losses"),
        ("val/", "validation (COCO AP and F1, 0 to 1)"),
        ("lr-", "learning rates of the parameter groups"),
    )
    for panel, (prefix, title) in zip(panels.flat, groups, strict=True):
        for name in sorted(series):
            if not name.startswith(prefix) or (prefix == "loss/" and name == "loss/total"):
                continue
            steps = sorted(series[name])
            values = [series[name][step] for step in steps]
            color = None
            if prefix.startswith("loss/"):
                color = panel.plot(steps, values, linewidth=0.5, alpha=0.25)[0].get_color()
                steps, values = running_means(steps, values, 1 + len(steps) // 50)
            marker = "o" if prefix == "val/" else ""
            panel.plot(
                steps, values, marker=marker, markersize=3, linewidth=1, color=color, label=name
            )
        panel.set(title=title, xlabel="update")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    for panel in panels.flat[:2]:
        if panel.lines:
            panel.set_yscale("log")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())


def running_means(
    steps: list[int], values: list[float], count: int
) -> tuple[list[int], list[float]]:
    """Means of ``count`` consecutive values, each at the step in the middle."""
    means = np.convolve(values, np.full(count, 1 / count), mode="valid").tolist()
    return steps[count // 2 :][: len(means)], means


def draw_sheet(model: MEInst, data: CocoData, path: Path, count: int = 12) -> None:
    """Draw detections on evenly spaced images of a data set, as tiles of one JPEG file."""
    columns, side = 4, 360
    chosen = np.unique(np.linspace(0, len(data.images) - 1, count).round().astype(int))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * side, rows * side), (32, 32, 32))
    for place, index in enumerate(chosen):
        record = data.images[index]
        assert record.path is not None
        try:
            image = read_image(record.path, model.input_options).pixels
        except ImageError:
            continue
        tile = Image.fromarray(model.predict(image, tile="off").draw(image))
        tile.thumbnail((side - 4, side - 4))
        row, column = divmod(place, columns)
        sheet.paste(tile, (column * side, row * side))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=88)
    write_atomically(path, buffer.getvalue())
