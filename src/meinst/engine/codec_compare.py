"""Codecs against each other: kinds, code lengths and mask sizes on the same instances."""

from __future__ import annotations

import csv
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from meinst.codecs import AutoencoderCodec, Codec, DCTCodec, GridCodec, Moments, PCACodec
from meinst.codecs.kinds import KINDS
from meinst.data.coco import CocoData, Report
from meinst.engine.codec_evaluate import CodecScores, score_codec
from meinst.engine.codec_fit import MOST_HELD_MASKS, MaskCounts, count_masks, sample_masks
from meinst.engine.codec_truth import gather_truth
from meinst.files import write_atomically

TABLE, PAGE, PLOT = "compare.csv", "compare.md", "compare.png"
FEW_BYTES = 1000
"""The best setting below so many bytes an instance is named."""

_HEADINGS = (
    "kind | K | S | bytes | mean IoU | IoU 1% | IoU 5% | IoU 25% | boundary IoU | pooled mIoU "
    "| AP ceiling | AP50 | AP75 | AP small | AP medium | AP large | seconds"
)


@dataclass(frozen=True)
class Setting:
    """A codec to try: its kind, ``K`` and ``S``."""

    kind: str
    n_components: int
    mask_size: int


@dataclass(frozen=True)
class CompareRow:
    """What one setting keeps; IoU and AP are 0 to 1, None without such objects.

    Attributes:
        kind: of the codec.
        n_components: ``K``.
        mask_size: ``S``.
        bytes: of a code, ``4 K``.
        mean_iou: over instances, at their own resolution.
        iou_p1: 1st percentile of the instances' IoU.
        iou_p5: 5th percentile.
        iou_p25: 25th percentile.
        mean_boundary_iou: over instances.
        pooled_miou: the published tool's figure, at ``S x S``.
        ap_ceiling: COCO mask AP of the decoded ground truth, the most a detector can reach.
        ap50: the same at IoU 0.50.
        ap75: at IoU 0.75.
        ap_small: of objects below 32 x 32 pixels.
        ap_medium: of objects below 96 x 96 pixels.
        ap_large: of larger objects.
        seconds: for encoding, decoding and measuring, without the fit.
    """

    kind: str
    n_components: int
    mask_size: int
    bytes: int
    mean_iou: float | None
    iou_p1: float | None
    iou_p5: float | None
    iou_p25: float | None
    mean_boundary_iou: float | None
    pooled_miou: float
    ap_ceiling: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    seconds: float


def plan_settings(
    kinds: Sequence[str], components: Sequence[int], mask_sizes: Sequence[int]
) -> list[Setting]:
    """Every kind with every ``K`` and ``S``.

    A grid takes the largest square number of components that is not above ``K``; what then
    occurs twice is tried once.

    Raises:
        ValueError: an unknown kind, nothing to try, or a ``K`` that is not from 1 to ``S * S``.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"there is no codec kind {kind!r}; choose of {', '.join(KINDS)}.")
    if not (kinds and components and mask_sizes):
        raise ValueError("at least one kind, one K and one mask size are needed to compare.")
    smallest = min(mask_sizes)
    if smallest < 1 or min(components) < 1 or max(components) > smallest**2:
        raise ValueError(
            f"K must be from 1 to the square of every mask size, found K from {min(components)} "
            f"to {max(components)} and a mask size of {smallest}."
        )
    planned = (
        Setting(kind, math.isqrt(count) ** 2 if kind == "grid" else count, size)
        for kind in kinds
        for size in mask_sizes
        for count in components
    )
    return list(dict.fromkeys(planned))


def compare_codecs(
    settings: Sequence[Setting],
    data: Sequence[CocoData],
    fit: Sequence[Path] = (),
    on_row: Callable[[CompareRow], None] | None = None,
    on_report: Callable[[Path, Report], None] = lambda *_: None,
) -> list[CompareRow]:
    """Measure settings on the same instances.

    Masks are counted once for all sizes, principal components are found once for each size,
    and what the decoded masks are compared with is made once for all settings: the run lengths
    of all instances and of their boundaries stay in memory.

    Args:
        settings: as of :func:`plan_settings`.
        data: what to measure on.
        fit: annotation files that learned codecs are fitted on; by default those of ``data``.
        on_row: called after each setting.
        on_report: called with what reading a file to fit on left out or put right, whenever one
            is read.

    Raises:
        FileNotFoundError: a file to fit on does not exist.
        ValueError: nothing to measure, or too few masks to fit on.

    Warns:
        UserWarning: the masks span fewer directions than a setting has components.
    """
    truth = gather_truth(data)
    images = list(truth.images())
    rows = []
    for codec in _codecs(settings, list(fit) or [one.annotations for one in data], on_report):
        start = time.perf_counter()
        scores = score_codec(codec, truth, images)
        rows.append(_row(codec, scores, time.perf_counter() - start))
        if on_row is not None:
            on_row(rows[-1])
    return rows


def _codecs(
    settings: Sequence[Setting],
    fit: Sequence[Path],
    on_report: Callable[[Path, Report], None],
) -> Iterator[Codec]:
    """Make the codecs one after the other; learned ones are fitted when their turn comes."""
    lengths: dict[int, list[int]] = {}
    for one in settings:
        if one.kind == "pca":
            lengths.setdefault(one.mask_size, []).append(one.n_components)
    counts = count_masks(fit, list(lengths)) if lengths else MaskCounts({}, ())
    moments = counts.moments
    for path, report in zip(fit, counts.reports, strict=False):  # of none, where none was read
        on_report(path, report)
    fitted: dict[int, PCACodec] = {}
    for one in settings:
        count, size = one.n_components, one.mask_size
        if one.kind == "pca":
            if size not in fitted:
                sums = moments.pop(size)
                assert isinstance(sums, Moments)  # classes are not kept apart
                fitted[size] = PCACodec(max(lengths[size]), size).fit_moments(sums)
                fitted[size].moments_ = None  # larger than all else
            yield fitted[size].truncated(count)
        elif one.kind == "dct":
            yield DCTCodec(count, size)
        elif one.kind == "grid":
            yield GridCodec(count, size)
        else:
            masks = sample_masks(fit, size, MOST_HELD_MASKS, seed=0, on_report=on_report)
            try:
                codec = AutoencoderCodec(count, size).fit(masks)
            except ValueError as error:  # the other settings may do
                warnings.warn(f"autoencoder, K = {count}, S = {size}: {error}", stacklevel=2)
                continue
            yield codec


def _row(codec: Codec, scores: CodecScores, seconds: float) -> CompareRow:
    overall, ceiling = scores.overall, scores.ap_ceiling
    return CompareRow(
        kind=codec.kind,
        n_components=codec.n_components,
        mask_size=codec.mask_size,
        bytes=scores.bytes_per_instance,
        mean_iou=overall.mean_iou,
        iou_p1=overall.iou_p1,
        iou_p5=overall.iou_p5,
        iou_p25=overall.iou_p25,
        mean_boundary_iou=overall.mean_boundary_iou,
        pooled_miou=scores.pooled_miou,
        ap_ceiling=ceiling["AP"],
        ap50=ceiling["AP50"],
        ap75=ceiling["AP75"],
        ap_small=ceiling["APs"],
        ap_medium=ceiling["APm"],
        ap_large=ceiling["APl"],
        seconds=seconds,
    )


def best_row(rows: Sequence[CompareRow], below: int = FEW_BYTES) -> CompareRow | None:
    """The row of the highest AP ceiling below so many bytes; of equal ones the shortest code.

    None where no row is below.
    """
    short = [row for row in rows if row.bytes < below and row.ap_ceiling is not None]
    return max(short, key=lambda row: (row.ap_ceiling, -row.bytes), default=None)


def best_line(rows: Sequence[CompareRow]) -> str:
    """:func:`best_row` in a sentence."""
    best = best_row(rows)
    if best is None:
        return f"No setting is below {FEW_BYTES} bytes an instance."
    return (
        f"Best AP ceiling below {FEW_BYTES} bytes an instance: {best.kind}, "
        f"K = {best.n_components}, S = {best.mask_size} ({best.bytes} bytes): "
        f"{_cell(best.ap_ceiling)}, mean IoU {_cell(best.mean_iou)}."
    )


def write_rows(rows: Sequence[CompareRow], folder: Path) -> None:
    """Write ``compare.csv`` and ``compare.md``.

    Raises:
        OSError: the folder cannot be written.
    """
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [field.name for field in fields(CompareRow)])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(folder / TABLE, table.getvalue().encode())

    columns = _HEADINGS.split(" | ")
    lines = [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]
    lines += [f"| {' | '.join(map(_cell, asdict(row).values()))} |" for row in rows]
    page = "\n".join(("# Mask codecs compared", "", best_line(rows), "", *lines, ""))
    write_atomically(folder / PAGE, page.encode())


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
