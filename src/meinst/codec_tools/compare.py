"""Compare mask codecs: kinds, lengths of codes and mask sizes on the same instances."""

from __future__ import annotations

import csv
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from meinst.codec_tools.count import count_masks
from meinst.codec_tools.evaluate import CodecScores, score_codec
from meinst.codec_tools.ground_truth import join_ground_truth
from meinst.codec_tools.mask_batches import Source, source_path
from meinst.codec_tools.sample import MAX_SAMPLE, sample_masks
from meinst.codecs import (
    Codec,
    DCTCodec,
    GridCodec,
    LinearCodec,
    codec_from_options,
)
from meinst.codecs.options import CodecKind, CodecOptions
from meinst.codecs.registry import checked_kind
from meinst.data.coco import CocoData, Report
from meinst.files import write_atomically

TABLE, PAGE, PLOT = "compare.csv", "compare.md", "compare.png"
SHORT_CODE_BYTES = 1000
"""The best setting below this length of a code is reported."""


@dataclass(frozen=True)
class Setting:
    """A codec to measure.

    Attributes:
        kind: kind of codec.
        n_components: ``K``.
        mask_size: ``S``.
    """

    kind: CodecKind
    n_components: int
    mask_size: int

    def options(self) -> CodecOptions:
        """Options of the codec; whitening does not change decoded masks."""
        # Without whitening, a DCT needs no fit.
        whiten = self.kind != DCTCodec.kind
        return CodecOptions(self.kind, self.n_components, self.mask_size, whiten=whiten)


def _column(heading: str) -> dict[str, str]:
    return {"heading": heading}


@dataclass(frozen=True)
class CompareRow:
    """Scores of one setting; IoU and AP are 0 to 1, and None where there are no such objects.

    Attributes:
        kind: kind of codec.
        n_components: ``K``.
        mask_size: ``S``.
        bytes: size of a code in bytes, ``4 K``.
        mean_iou: mean IoU of the instances, at the resolution of their images.
        iou_p1: 1st percentile of the IoU.
        iou_p5: 5th percentile of the IoU.
        iou_p25: 25th percentile of the IoU.
        mean_boundary_iou: mean boundary IoU of the instances.
        pooled_miou: mean IoU over all pixels of the ``S x S`` masks, as in the published tool.
        ap_ceiling: COCO's mask AP of the decoded ground truth, an upper limit for detectors.
        ap50: the same at IoU 0.50.
        ap75: the same at IoU 0.75.
        ap_small: the same for objects smaller than 32 x 32 pixels.
        ap_medium: the same for objects smaller than 96 x 96 pixels.
        ap_large: the same for larger objects.
        seconds: time to encode, decode and measure, without the fit.
    """

    kind: str = field(metadata=_column("kind"))
    n_components: int = field(metadata=_column("K"))
    mask_size: int = field(metadata=_column("S"))
    bytes: int = field(metadata=_column("bytes"))
    mean_iou: float | None = field(metadata=_column("mean IoU"))
    iou_p1: float | None = field(metadata=_column("IoU 1%"))
    iou_p5: float | None = field(metadata=_column("IoU 5%"))
    iou_p25: float | None = field(metadata=_column("IoU 25%"))
    mean_boundary_iou: float | None = field(metadata=_column("boundary IoU"))
    pooled_miou: float = field(metadata=_column("pooled mIoU"))
    ap_ceiling: float | None = field(metadata=_column("AP ceiling"))
    ap50: float | None = field(metadata=_column("AP50"))
    ap75: float | None = field(metadata=_column("AP75"))
    ap_small: float | None = field(metadata=_column("AP small"))
    ap_medium: float | None = field(metadata=_column("AP medium"))
    ap_large: float | None = field(metadata=_column("AP large"))
    seconds: float = field(metadata=_column("seconds"))


def plan_settings(
    kinds: Sequence[str], n_components: Sequence[int], mask_sizes: Sequence[int]
) -> list[Setting]:
    """Combine every kind with every ``K`` and every ``S``.

    For a grid, ``K`` is rounded down to a square number; repeated settings are dropped.

    Raises:
        ValueError: if a kind is unknown, a list is empty, or a ``K`` is not from 1 to ``S * S``.
    """
    checked = [checked_kind(kind) for kind in kinds]
    if not (kinds and n_components and mask_sizes):
        raise ValueError("kinds, n_components and mask_sizes must not be empty.")
    smallest = min(mask_sizes)
    if smallest < 1 or min(n_components) < 1 or max(n_components) > smallest**2:
        raise ValueError(
            "n_components must be between 1 and the square of every mask size, got n_components "
            f"from {min(n_components)} to {max(n_components)} and a mask size of {smallest}."
        )
    planned = (
        Setting(kind, math.isqrt(count) ** 2 if kind == GridCodec.kind else count, size)
        for kind in checked
        for size in mask_sizes
        for count in n_components
    )
    return list(dict.fromkeys(planned))


def compare_codecs(
    settings: Sequence[Setting],
    data: Sequence[CocoData],
    fit: Sequence[Path] = (),
    on_row: Callable[[CompareRow], None] | None = None,
    on_report: Callable[[Path, Report], None] = lambda *_: None,
) -> list[CompareRow]:
    """Measure several codecs on the same instances.

    Masks are counted once for all mask sizes, and principal components are computed once per mask
    size. The run lengths of all instances and of their boundaries are computed once and stay in
    memory.

    Args:
        settings: the codecs, from :func:`plan_settings`.
        data: annotations to measure on.
        fit: annotation files to fit codecs on; ``data`` by default.
        on_row: called after each setting.
        on_report: called with the instances left out or repaired, each time that a file of
            ``fit`` is read.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if there are no instances to measure, or too few masks to fit on.

    Warns:
        UserWarning: if the masks span fewer directions than a setting has components, or an
            autoencoder cannot be fitted, so that its row is missing.
    """
    truth = join_ground_truth(data)
    images = list(truth.images())
    rows = []
    codecs = _codecs(settings, fit, on_report) if fit else _codecs(settings, data)
    for codec in codecs:
        start = time.perf_counter()
        scores = score_codec(codec, truth, images)
        rows.append(_row(codec, scores, time.perf_counter() - start))
        if on_row is not None:
            on_row(rows[-1])
    return rows


def _codecs(
    settings: Sequence[Setting],
    sources: Sequence[Source],
    on_report: Callable[[Path, Report], None] = lambda *_: None,
) -> Iterator[Codec]:
    """Fit the codecs one after the other, so that few are in memory at a time."""
    longest = _fit_longest(settings, sources, on_report)
    for setting in settings:
        codec = codec_from_options(setting.options())
        if isinstance(codec, LinearCodec) and not codec.fitted:
            codec = longest[codec.kind, codec.mask_size].truncated(codec.n_components)
        elif not codec.fitted:
            size = codec.mask_size
            masks = sample_masks(sources, size, MAX_SAMPLE, seed=0, on_report=on_report)
            try:
                codec.fit(masks)
            except ValueError as error:  # go on with the other settings
                name = f"{codec.kind}, K = {codec.n_components}, S = {size}"
                warnings.warn(f"{name}: {error}", stacklevel=2)
                continue
        yield codec


def _fit_longest(
    settings: Sequence[Setting],
    sources: Sequence[Source],
    on_report: Callable[[Path, Report], None],
) -> dict[tuple[str, int], LinearCodec]:
    """Fit linear codecs: of each kind and mask size the longest, which contains the shorter ones.

    Counts the masks of all sizes in one pass over the sources, if any codec needs a fit.
    """
    longest: dict[tuple[str, int], LinearCodec] = {}
    for setting in sorted(settings, key=lambda setting: setting.n_components):
        codec = codec_from_options(setting.options())
        if isinstance(codec, LinearCodec) and not codec.fitted:
            longest[setting.kind, setting.mask_size] = codec
    if longest:
        counts = count_masks(sources, sorted({size for _, size in longest}))
        for source, report in zip(sources, counts.reports, strict=True):
            on_report(source_path(source), report)
        for (_, size), codec in longest.items():
            codec.fit_moments(counts.moments[size])
    return longest


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
        ap_ceiling=ceiling.ap,
        ap50=ceiling.ap50,
        ap75=ceiling.ap75,
        ap_small=ceiling.ap_small,
        ap_medium=ceiling.ap_medium,
        ap_large=ceiling.ap_large,
        seconds=seconds,
    )


def best_row(rows: Sequence[CompareRow], below: int = SHORT_CODE_BYTES) -> CompareRow | None:
    """The row of the highest AP ceiling among codes shorter than ``below`` bytes, or None.

    Of rows with equal AP ceiling, the one with the shortest code is returned.
    """
    short = [row for row in rows if row.bytes < below and row.ap_ceiling is not None]
    return max(short, key=lambda row: (row.ap_ceiling, -row.bytes), default=None)


def best_line(rows: Sequence[CompareRow]) -> str:
    """A sentence about :func:`best_row`."""
    best = best_row(rows)
    if best is None:
        return f"No setting is below {SHORT_CODE_BYTES} bytes per instance."
    return (
        f"Best AP ceiling below {SHORT_CODE_BYTES} bytes per instance: {best.kind}, "
        f"K = {best.n_components}, S = {best.mask_size} ({best.bytes} bytes): "
        f"{_cell(best.ap_ceiling)}, mean IoU {_cell(best.mean_iou)}."
    )


def write_rows(rows: Sequence[CompareRow], folder: Path) -> None:
    """Write ``compare.csv`` and ``compare.md``.

    Raises:
        OSError: if the folder cannot be written.
    """
    columns = fields(CompareRow)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [column.name for column in columns])
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(folder / TABLE, table.getvalue().encode())

    headings = [column.metadata["heading"] for column in columns]
    lines = [f"| {' | '.join(headings)} |", f"|---|{'---:|' * (len(headings) - 1)}"]
    lines += [f"| {' | '.join(map(_cell, asdict(row).values()))} |" for row in rows]
    page = "\n".join(("# Mask codecs compared", "", best_line(rows), "", *lines, ""))
    write_atomically(folder / PAGE, page.encode())


def _cell(value: str | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
