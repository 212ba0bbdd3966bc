"""The report on a mask codec: one HTML file that stands alone, without scripts from elsewhere."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image

from meinst.codecs import Codec
from meinst.data.coco import CocoData
from meinst.engine.codec_evaluate import CodecScores, ShapeScores
from meinst.engine.codec_pairs import Pair, find_pairs, spread
from meinst.engine.codec_pictures import iou_histogram
from meinst.engine.codec_sheet import codec_sheet, describe
from meinst.files import write_atomically

REPORT = "report.html"
_PAIRS = 12
_WORST = 20
_THUMBNAIL = 88  # pixels

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; background: #fff;
       max-width: 1080px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.6rem 0 .4rem; }
p { margin: .3rem 0 .8rem; } .muted, th, figcaption { color: #66727d; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr));
           gap: 1rem; margin: 1.6rem 0; }
.figures div { border: 1px solid #dde2e6; border-radius: 6px; padding: .8rem 1rem; }
.figures b { display: block; font-size: 1.7rem; font-variant-numeric: tabular-nums; }
.figures span { display: block; font-weight: 600; }
.figures small { color: #66727d; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e6eaed; }
th { font-weight: 600; font-size: .85rem; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.pictures :is(th, td) { text-align: left; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
            cursor: pointer; }
th button:hover { color: #0072b2; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
img { max-width: 100%; height: auto; } td img { display: block; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; color: #66727d; font-size: .8rem; }
"""

# Sorts a table by the column whose heading was pressed, by numbers where there are numbers.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const text = row => row.cells[column].textContent.replaceAll(",", "");
    const order = (a, b) => (parseFloat(text(a)) - parseFloat(text(b)))
      || text(a).localeCompare(text(b));
    const rows = [...table.tBodies[0].rows].sort((a, b) => up ? order(a, b) : order(b, a));
    table.tBodies[0].append(...rows);
  }));
}
"""


def write_report(
    scores: CodecScores, codec: Codec, data: CocoData | Sequence[CocoData], folder: Path
) -> Path:
    """Write what a codec loses as one HTML file, pictures inside.

    Args:
        scores: of ``codec`` on ``data``.
        codec: the codec, on the CPU.
        data: the annotations, in the order in which they were measured.
        folder: made if it is not there.

    Returns:
        ``folder/report.html``; an interrupted write leaves an older one whole.

    Raises:
        OSError: the file cannot be written.
        ValueError: the scores are of other data.
    """
    title, options = describe(codec)
    left_out = ", ".join(scores.unknown_categories)
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='muted'>{escape(options)}</p>",
        f"<p>Measured on {_integer(scores.overall.instances)} instances of "
        f"{escape(', '.join(scores.annotations))}.</p>",
        f"<p>The codec does not know, so not measured: {escape(left_out)}.</p>" * bool(left_out),
        _headline(scores),
        "<h2>By size</h2>",
        "<p>Small: masks below 32 x 32 pixels; medium: below 96 x 96; large: the others.</p>",
        _scores_table("size", scores.by_size, _ceilings_by_size(scores)),
        "<h2>By category</h2>",
        "<p>The worst comes first; press a heading to sort by it.</p>",
        _scores_table("category", _worst_first(scores), _ceilings_by_category(scores), "sortable"),
    ]
    parts += _pictures(scores, codec, data)
    configuration = json.dumps(scores.codec, ensure_ascii=False)
    parts += [
        "<h2>The codec</h2>",
        f"<pre>{escape(configuration)}</pre>",
        f"<p class='muted'>Written by meinst {escape(version('meinst'))}.</p>",
    ]
    page = (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{_SCRIPT}</script></body></html>\n"
    )
    path = folder / REPORT
    write_atomically(path, page.encode())
    return path


def _headline(scores: CodecScores) -> str:
    overall = scores.overall
    figures = (
        (
            _number(overall.mean_iou),
            "mean IoU",
            "Overlap of a mask with what is decoded from its code, averaged over instances.",
        ),
        (
            _number(overall.iou_p1),
            "IoU, 1st percentile",
            "One instance in a hundred is kept worse than this.",
        ),
        (
            _number(overall.mean_boundary_iou),
            "mean boundary IoU",
            "The same overlap, but only of the bands along the outlines.",
        ),
        (
            _number(scores.ap_ceiling["AP"]),
            "AP ceiling",
            "COCO mask AP of the annotations themselves after encoding and decoding: the most "
            "that a detector with this codec can hope for.",
        ),
        (
            _number(scores.pooled_miou),
            "pooled mIoU",
            "The published tool's figure: foreground's and background's IoU over the small "
            "masks of all instances together.",
        ),
        (
            str(scores.bytes_per_instance),
            "bytes an instance",
            "What a mask takes as a code of float32 numbers.",
        ),
    )
    cards = "".join(
        f"<div><b>{value}</b><span>{name}</span><small>{text}</small></div>"
        for value, name, text in figures
    )
    return f"<div class='figures'>{cards}</div>"


def _scores_table(
    what: str, groups: dict[str, ShapeScores], ceilings: dict[str, float | None], kind: str = ""
) -> str:
    """A row for each group: its name, its scores and its AP ceiling."""
    head = [
        what,
        "instances",
        "mean IoU",
        "1st percentile",
        "5th",
        "25th",
        "boundary IoU",
        "AP ceiling",
    ]
    rows = [
        [
            escape(name),
            _integer(group.instances),
            _number(group.mean_iou),
            _number(group.iou_p1),
            _number(group.iou_p5),
            _number(group.iou_p25),
            _number(group.mean_boundary_iou),
            _number(ceilings.get(name)),
        ]
        for name, group in groups.items()
    ]
    return _table(head, rows, kind)


def _worst_first(scores: CodecScores) -> dict[str, ShapeScores]:
    """The categories that have instances, by mean IoU."""
    known = [item for item in scores.by_category.items() if item[1].mean_iou is not None]
    return dict(sorted(known, key=lambda item: item[1].mean_iou or 0.0))


def _ceilings_by_size(scores: CodecScores) -> dict[str, float | None]:
    keys = {"small": "APs", "medium": "APm", "large": "APl"}
    return {size: scores.ap_ceiling[key] for size, key in keys.items()}


def _ceilings_by_category(scores: CodecScores) -> dict[str, float | None]:
    return {name: metrics["AP"] for name, metrics in scores.ap_ceiling["per_class"].items()}


def _pictures(
    scores: CodecScores, codec: Codec, data: CocoData | Sequence[CocoData]
) -> Iterable[str]:
    """Histogram, sheet and the worst instances."""
    yield "<h2>IoU of the instances</h2>"
    yield _image(iou_histogram(scores.iou), "Histogram of the instances' IoU")
    pairs = find_pairs(scores, codec, data, spread(scores.iou, _PAIRS))
    yield "<h2>The codec and what it does to masks</h2>"
    yield _image(codec_sheet(codec, pairs, scores.iou), "Components, curves, decoded masks")
    worst = np.argsort(scores.iou, kind="stable")[:_WORST]
    yield f"<h2>The {len(worst)} worst instances</h2>"
    yield "<p>Original and decoded: orange was lost, blue was added.</p>"
    several = len(scores.annotations) > 1
    head = ["masks", "IoU", "boundary IoU", "category", "annotation", "image"]
    rows = [
        [
            _thumbnails(pair),
            _number(pair.iou),
            _number(float(scores.boundary_iou[n])),
            escape(pair.class_name),
            str(pair.annotation_id),
            str(scores.image_ids[n])
            + (f" of {escape(scores.annotations[scores.files[n]])}" if several else ""),
        ]
        for n, pair in zip(worst, find_pairs(scores, codec, data, worst), strict=True)
    ]
    yield _table(head, rows, "pictures")


def _thumbnails(pair: Pair) -> str:
    """Both pictures of a pair side by side, pixels being pixels where they are large enough."""
    before, after = pair.pictures()
    height, width = before.shape[:2]
    scale = _THUMBNAIL / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    strip = Image.new("RGB", (2 * size[0] + 6, size[1]), "white")
    for place, picture in enumerate((before, after)):
        strip.paste(Image.fromarray(picture).resize(size, how), (place * (size[0] + 6), 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="PNG")
    return _image(buffer.getvalue(), f"Annotation {pair.annotation_id} before and after")


def _image(png: bytes, text: str) -> str:
    encoded = base64.b64encode(png).decode("ascii")
    return f"<img alt='{escape(text)}' src='data:image/png;base64,{encoded}'>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; ``sortable`` ones have headings to press."""
    if kind == "sortable":
        head = [f"<button>{name}</button>" for name in head]
    cells = "".join(f"<th>{name}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table class='{kind}'><thead><tr>{cells}</tr></thead>\n<tbody>{lines}</tbody></table>"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _integer(value: int) -> str:
    return f"{value:,}"
