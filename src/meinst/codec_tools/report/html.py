"""The report on a mask codec: a self-contained HTML file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from meinst.codec_tools.evaluate import CodecScores, ShapeScores
from meinst.codec_tools.report.pairs import Pair, find_pairs, spread
from meinst.codec_tools.report.plots import iou_histogram
from meinst.codec_tools.report.sheet import codec_sheet, describe
from meinst.codecs import Codec
from meinst.data.coco import CocoData
from meinst.files import write_atomically
from meinst.html_page import EmbeddedPicture, render_page

REPORT = "report.html"
_TEMPLATE = "report.html.j2"
_PAIRS = 12
_WORST = 20
_THUMBNAIL = 88  # pixels
_GAP = 6  # pixels between two thumbnails


@dataclass(frozen=True)
class _Group:
    """A row of a table of scores."""

    name: str
    scores: ShapeScores
    ap_ceiling: float | None


@dataclass(frozen=True)
class _Instance:
    """A row of the table of instances."""

    pair: Pair
    thumbnails: EmbeddedPicture
    boundary_iou: float
    image_id: int
    file: str


def write_report(
    scores: CodecScores, codec: Codec, data: CocoData | Sequence[CocoData], folder: Path
) -> Path:
    """Write the accuracy of a codec as an HTML file that contains all images.

    Args:
        scores: scores of ``codec`` on ``data``.
        codec: the codec, on the CPU.
        data: the annotations, in the same order as when they were measured.
        folder: created if it does not exist.

    Returns:
        ``folder/report.html``, written atomically.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the scores are of other data.
    """
    title, options = describe(codec)
    pairs = find_pairs(scores, codec, data, spread(scores.iou, _PAIRS))
    page = render_page(
        "meinst.codec_tools.report",
        _TEMPLATE,
        title=title,
        options=options,
        scores=scores,
        by_size=list(_sizes(scores)),
        by_category=_worst_first(scores),
        histogram=EmbeddedPicture.from_png(
            iou_histogram(scores.iou), "Histogram of the instances' IoU"
        ),
        sheet=EmbeddedPicture.from_png(
            codec_sheet(codec, pairs, scores.iou), "Components, curves, decoded masks"
        ),
        worst=list(_worst(scores, codec, data)),
        configuration=json.dumps(scores.codec, ensure_ascii=False),
    )
    path = folder / REPORT
    write_atomically(path, page)
    return path


def _sizes(scores: CodecScores) -> Iterator[_Group]:
    ceiling = scores.ap_ceiling
    ceilings = {"small": ceiling.ap_small, "medium": ceiling.ap_medium, "large": ceiling.ap_large}
    for name, group in scores.by_size.items():
        yield _Group(name, group, ceilings[name])


def _worst_first(scores: CodecScores) -> list[_Group]:
    """The categories that have instances, by increasing mean IoU."""
    groups = [
        _Group(name, group, scores.ap_ceiling.per_class[name].ap)
        for name, group in scores.by_category.items()
        if group.instances
    ]
    return sorted(groups, key=lambda group: group.scores.mean_iou or 0.0)


def _worst(
    scores: CodecScores, codec: Codec, data: CocoData | Sequence[CocoData]
) -> Iterator[_Instance]:
    """The instances of lowest IoU."""
    indices = np.argsort(scores.iou, kind="stable")[:_WORST]
    for n, pair in zip(indices, find_pairs(scores, codec, data, indices), strict=True):
        yield _Instance(
            pair=pair,
            thumbnails=_thumbnails(pair),
            boundary_iou=float(scores.boundary_iou[n]),
            image_id=int(scores.image_ids[n]),
            file=scores.annotations[scores.files[n]],
        )


def _thumbnails(pair: Pair) -> EmbeddedPicture:
    """Original and decoded mask side by side; enlarged masks show their pixels."""
    pictures = pair.pictures()
    height, width = pictures[0].shape[:2]
    scale = _THUMBNAIL / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    strip = Image.new("RGB", (2 * size[0] + _GAP, size[1]), "white")
    for index, picture in enumerate(pictures):
        resized = Image.fromarray(picture).resize(size, resampling)
        strip.paste(resized, (index * (size[0] + _GAP), 0))
    buffer = io.BytesIO()
    strip.save(buffer, format="PNG")
    return EmbeddedPicture.from_png(
        buffer.getvalue(), f"Annotation {pair.annotation_id} before and after encoding"
    )
