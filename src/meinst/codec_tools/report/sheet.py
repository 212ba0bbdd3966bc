"""An image that describes a mask codec: mean, components, variance, decoded masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from meinst.codec_tools.report.canvas import MUTED, Canvas
from meinst.codec_tools.report.pairs import ADDED, BOTH, LOST, Pair
from meinst.codec_tools.report.plots import CURVE
from meinst.codecs import Codec, LinearCodec
from meinst.codecs.clipped_logit import LOGIT
from meinst.codecs.registry import CODECS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float32]

# Lengths in inches.
_WIDTH, _MARGIN, _GAP = 12.0, 0.5, 0.12
_INSIDE = _WIDTH - 2 * _MARGIN
_HEADING = 0.18  # from the baseline of a section's title to its content
_CAPTION = 0.2  # height of the caption of a small image
_SECTION = 0.6  # from the end of a section to the baseline of the next title
_PANEL = 2.2  # side of the mean mask, height of the curves
_AXIS = 0.45  # height of the numbers and the label below a curve
_COLUMNS, _ROWS = 12, 5  # grid of small images
_CELL = (_INSIDE - (_COLUMNS - 1) * _GAP) / _COLUMNS
_CLASS_ROWS = 6
_PAIR_COLUMNS, _PAIR_GAP = 4, 0.4
_HALF = ((_INSIDE - (_PAIR_COLUMNS - 1) * _PAIR_GAP) / _PAIR_COLUMNS - _GAP) / 2

_SOFT = {"cmap": "Greys", "vmin": 0, "vmax": 1}
_SIGNED = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}


def describe(codec: Codec) -> tuple[str, str]:
    """A title for a codec, and a line with its options."""
    size = codec.mask_size
    title = (
        f"{CODECS[codec.kind].title} codec: {codec.n_components} numbers for {size} x {size} masks"
    )
    options = [f"{4 * codec.n_components} bytes per instance (float32)"]
    options += [
        f"{name} {('off', 'on')[value] if isinstance(value, bool) else value}"
        for name, value in codec.get_config().items()
        if name not in ("kind", "n_components", "mask_size", "class_names")
    ]
    names = codec.class_names
    options.append(
        "one basis for all classes"
        if names is None
        else f"a basis for each of {len(names)} classes"
    )
    return title, "  ·  ".join(options)


def codec_sheet(codec: Codec, pairs: Sequence[Pair] = (), iou: Floats | None = None) -> bytes:
    """Draw a codec: its mean, its components, the variance they explain, decoded masks.

    Args:
        codec: a fitted codec, on the CPU.
        pairs: original and decoded instances, from best to worst.
        iou: ``(N,)`` IoU of all instances, drawn as a curve.

    Returns:
        A PNG file.
    """
    canvas = Canvas(_WIDTH)
    title, options = describe(codec)
    canvas.text(_MARGIN, 0.7, title, 17, weight="bold")
    canvas.text(_MARGIN, 0.98, options, 9.5, color=MUTED)
    end = _draw_overview(canvas, 0.98 + _SECTION, codec, iou)
    if codec.class_names is None:
        end = _draw_components(canvas, end + _SECTION, codec)
    else:
        end = _draw_classes(canvas, end + _SECTION, codec, codec.class_names)
        end = _draw_class_means(canvas, end + _SECTION, codec, codec.class_names)
    if pairs:
        end = _draw_pairs(canvas, end + _SECTION, pairs)
    return canvas.png(end + _MARGIN)


# Sections. Each draws its title on the baseline `top` and returns the `y` where it ends.


def _draw_overview(canvas: Canvas, top: float, codec: Codec, iou: Floats | None) -> float:
    """The mean mask, and curves of variance and IoU where available, side by side."""
    ratios, names = _variance_ratios(codec), codec.class_names
    zero = _zeros(codec, None if names is None else range(len(names))).mean(0)
    if ratios is None:
        _title(canvas, top, "Code of zeros")
    else:
        _title(canvas, top, "Mean mask" if names is None else "Mean of the classes")
    canvas.image(zero, _MARGIN, top + _HEADING, _PANEL, _PANEL, **_SOFT)
    curves = (ratios is not None) + (iou is not None)
    between = 0.75
    left = _MARGIN + _PANEL + between
    if curves == 0:
        _title(canvas, top, "No variance curve", left)
        canvas.text(left, top + _HEADING + 0.15, "This codec has no explained variance.", 9.5)
        text = "With annotations, a curve shows how well it reconstructs their masks."
        canvas.text(left, top + _HEADING + 0.37, text, 9.5)
        return top + _HEADING + _PANEL
    width = (_WIDTH - _MARGIN - left - (curves - 1) * between) / curves
    if ratios is not None:
        _title(canvas, top, "Variance explained", left)
        _plot_variance(canvas.plot(left, top + _HEADING, width, _PANEL), ratios)
        left += width + between
    if iou is not None:
        _title(canvas, top, f"IoU of {len(iou):,} instances, mean {iou.mean():.3f}", left)
        _plot_iou(canvas.plot(left, top + _HEADING, width, _PANEL), iou)
    return top + _HEADING + _PANEL + _AXIS


def _draw_components(canvas: Canvas, top: float, codec: Codec) -> float:
    """The components of a linear codec; of others, the change of the logits with each number."""
    count = min(codec.n_components, _COLUMNS * _ROWS)
    what = "Components" if isinstance(codec, LinearCodec) else "Effect of each number"
    _title(canvas, top, what + _of(count, codec.n_components))
    _note(canvas, top, "red adds to the mask, blue removes; each image has its own scale")
    captions = [str(k + 1) for k in range(count)]
    return _draw_grid(canvas, top, _steps(codec, count), captions, _SIGNED)


def _draw_classes(canvas: Canvas, top: float, codec: Codec, names: Sequence[str]) -> float:
    """The mean and the first components of some classes, a row each."""
    rows = min(len(names), _CLASS_ROWS)
    count = min(codec.n_components, _COLUMNS - 1)
    _title(
        canvas,
        top,
        f"Means and components{_of(count, codec.n_components)}"
        + (f", {rows} of {len(names)} classes" if rows < len(names) else ""),
    )
    _note(canvas, top, "bases of rare classes are shrunk towards the basis of all masks")
    y = top + _HEADING
    for label in np.linspace(0, len(names) - 1, rows).round().astype(int).tolist():
        canvas.text(_MARGIN, y + _CAPTION - 0.05, _short(names[label], 80), 9)
        y += _CAPTION
        canvas.image(_zeros(codec, [label])[0], _MARGIN, y, _CELL, _CELL, **_SOFT)
        for k, step in enumerate(_steps(codec, count, label), start=1):
            canvas.image(step, _MARGIN + k * (_CELL + _GAP), y, _CELL, _CELL, **_SIGNED)
        y += _CELL + _GAP
    return y - _GAP


def _draw_class_means(canvas: Canvas, top: float, codec: Codec, names: Sequence[str]) -> float:
    """The mean mask of each class."""
    count = min(len(names), _COLUMNS * _ROWS)
    _title(canvas, top, "Mean masks of the classes" + _of(count, len(names)))
    captions = [_short(name, 13) for name in names[:count]]
    return _draw_grid(canvas, top, _zeros(codec, range(count)), captions, _SOFT)


def _draw_pairs(canvas: Canvas, top: float, pairs: Sequence[Pair]) -> float:
    """Original and decoded masks, each fitted into a square of the same size."""
    _title(canvas, top, "Original and decoded masks, from best to worst")
    legend = (("both", BOTH), ("lost", LOST), ("added", ADDED))
    for index, (text, color) in enumerate(legend):
        x = _WIDTH - _MARGIN - (len(legend) - index) * 0.7 + 0.1
        canvas.image(np.array([[color]], dtype=np.uint8), x, top - 0.1, 0.12, 0.12)
        canvas.text(x + 0.18, top, text, color=MUTED)
    step_x, step_y = 2 * _HALF + _GAP + _PAIR_GAP, _HALF + 2 * _CAPTION + 0.25
    for index, pair in enumerate(pairs):
        row, column = divmod(index, _PAIR_COLUMNS)
        x, y = _MARGIN + column * step_x, top + _HEADING + row * step_y
        for half, picture in enumerate(pair.pictures()):
            _draw_in_square(canvas, picture, x + half * (_HALF + _GAP), y)
        canvas.text(x, y + _HALF + _CAPTION, f"IoU {pair.iou:.3f}", 10, weight="bold")
        canvas.text(x + 0.85, y + _HALF + _CAPTION, _short(pair.class_name, 24))
        text = f"annotation {pair.annotation_id}"
        canvas.text(x, y + _HALF + 2 * _CAPTION - 0.02, text, 8, color=MUTED)
    rows = -(-len(pairs) // _PAIR_COLUMNS)
    return top + _HEADING + rows * step_y - 0.25


def _draw_in_square(canvas: Canvas, picture: NDArray[np.uint8], x: float, y: float) -> None:
    """Draw an ``(h, w, 3)`` image centred in a square, as large as possible."""
    height, width = picture.shape[:2]
    scale = _HALF / max(height, width)
    w, h = width * scale, height * scale
    canvas.image(picture, x + (_HALF - w) / 2, y + (_HALF - h) / 2, w, h)


def _draw_grid(
    canvas: Canvas, top: float, pictures: Floats, captions: Sequence[str], colors: Mapping[str, Any]
) -> float:
    """Rows of ``(n, S, S)`` small images, each with a caption above it."""
    step = _CELL + _CAPTION + 0.04
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        row, column = divmod(index, _COLUMNS)
        x, y = _MARGIN + column * (_CELL + _GAP), top + _HEADING + row * step
        canvas.text(x, y + _CAPTION - 0.05, caption, 8, color=MUTED)
        canvas.image(picture, x, y + _CAPTION, _CELL, _CELL, **colors)
    return top + _HEADING + -(-len(pictures) // _COLUMNS) * step - 0.04


def _title(canvas: Canvas, line: float, text: str, left: float = _MARGIN) -> None:
    canvas.text(left, line, text, 11, weight="bold")


def _note(canvas: Canvas, line: float, text: str) -> None:
    canvas.text(_WIDTH - _MARGIN, line, text, color=MUTED, ha="right")


def _of(count: int, total: int) -> str:
    return f", the first {count} of {total}" if count < total else ""


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# Plots


def _plot_variance(axes: Axes, ratios: Floats) -> None:
    """Cumulative ratios, ``(1 or C, K)``; for several classes their median and range."""
    cumulative = np.cumsum(ratios, axis=1)
    numbers = np.arange(1, cumulative.shape[1] + 1)
    if len(cumulative) > 1:
        axes.fill_between(
            numbers,
            cumulative.min(0),
            cumulative.max(0),
            color=CURVE,
            alpha=0.18,
            linewidth=0,
            label="all classes",
        )
    axes.plot(numbers, np.median(cumulative, axis=0), color=CURVE, linewidth=1.8, label="median")
    if len(cumulative) > 1:
        axes.legend(fontsize=8, frameon=False, loc="lower right")
    axes.set(xlabel="numbers", ylabel="share of the variance", ylim=(0, 1.02))
    axes.set_xlim(0, len(numbers) + 1)


def _plot_iou(axes: Axes, iou: Floats) -> None:
    """IoU of the instances, sorted from best to worst."""
    ranked = np.sort(iou)[::-1]
    share = (np.arange(len(ranked)) + 0.5) / len(ranked) * 100
    axes.fill_between(share, ranked, 0, color=CURVE, alpha=0.12, linewidth=0)
    axes.plot(share, ranked, color=CURVE, linewidth=1.8)
    axes.axhline(float(iou.mean()), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set(xlabel="share of the instances, %", ylabel="IoU", xlim=(0, 100))
    axes.set_ylim(max(0.0, float(ranked[-1]) - 0.05), 1.005)


# Decoded codes


@torch.no_grad()
def _zeros(codec: Codec, labels: Sequence[int] | None) -> Floats:
    """Decode codes of zeros: ``(labels, S, S)`` in [0, 1], or ``(1, S, S)`` without labels.

    For principal components this is the share of masks that cover each pixel.
    """
    chosen = None if labels is None else torch.tensor(labels)
    codes = torch.zeros(1 if labels is None else len(labels), codec.n_components)
    # Map logits to [0, 1] linearly: after a sigmoid, all means would look alike.
    return (codec.inverse_logits(codes, chosen) / LOGIT / 2 + 0.5).clamp(0, 1).numpy()


@torch.no_grad()
def _steps(codec: Codec, count: int, label: int | None = None) -> Floats:
    """Change of the decoded logits when one of the first numbers of a zero code becomes 1.

    Returns:
        ``(count, S, S)``, each divided by its largest magnitude.
    """
    codes = torch.zeros(count + 1, codec.n_components)
    codes[1:].fill_diagonal_(1)
    labels = None if label is None else torch.full((count + 1,), label)
    values = codec.inverse_logits(codes, labels)
    steps = values[1:] - values[0]  # (count, S, S)
    largest = steps.abs().amax(dim=(1, 2), keepdim=True)
    return (steps / torch.where(largest > 0, largest, 1.0)).numpy()


def _variance_ratios(codec: Codec) -> Floats | None:
    """Shares of the variance, ``(1 or C, K)``; None if the codec has none."""
    if not isinstance(codec, LinearCodec) or not codec.explained_variance_ratio_.any():
        return None
    return codec.explained_variance_ratio_.numpy()
