"""The part of ``meinst predict`` that handles videos."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.main import print_error
from meinst.cli.output import mask_progress
from meinst.options import printable

if TYPE_CHECKING:
    from meinst.cli.predict import PredictArguments
    from meinst.detector.predictor import Predictor
    from meinst.images.video import FrameRange
    from meinst.inference.predict_video import VideoSummary


def predict_videos(model: Predictor, sources: Sequence[str], options: PredictArguments) -> int:
    """Segment videos one after the other; returns the number that failed or ended early.

    Raises:
        ValueError: if the results of two videos would have the same name.
    """
    from meinst.images.video import FrameRange

    formats = video_formats(options)
    _check_names(sources, options.output, formats)
    frames = FrameRange(options.every, options.start, options.end)
    failed = 0
    for source in sources:
        try:
            summary = _predict(model, source, options, frames, formats)
        except (ValueError, OSError) as error:
            print_error(error)
            failed += 1
            continue
        _print_summary(summary)
        if summary.broken:
            print(f"warning: {printable(source)}: {summary.broken}", file=sys.stderr)
            failed += 1
    return failed


def video_formats(options: PredictArguments) -> tuple[str, ...]:
    """The formats of videos that were chosen.

    Raises:
        ValueError: if one of them is not for videos.
    """
    from meinst.inference.video_results import DEFAULT_VIDEO_FORMATS, parse_video_formats

    if options.save is None:
        return DEFAULT_VIDEO_FORMATS
    return parse_video_formats(options.save, "--save: ")


def _check_names(sources: Sequence[str], output: Path, formats: Sequence[str]) -> None:
    """Reject videos of the same name, of which the last one would replace the others."""
    from meinst.inference.video_results import video_files

    known: dict[str, str] = {}
    for source in sources:
        path = video_files(source, output, formats)[0]
        other = known.setdefault(path.name.casefold(), source)
        if other != source:
            raise ValueError(
                f"{printable(source)} and {printable(other)} would both be written to {path}; "
                "give them in runs with different --output."
            )


def _predict(
    model: Predictor,
    source: str,
    options: PredictArguments,
    frames: FrameRange,
    formats: Sequence[str],
) -> VideoSummary:
    """Segment a video under a progress bar with the frames per second."""
    from meinst.inference.predict_video import expected_frames, predict_video

    selection = model.selection.override(options.score_threshold, options.max_detections)
    total = expected_frames(source, frames)
    with mask_progress(total, noun="frames") as advance:
        return predict_video(
            model,
            source,
            options.output,
            selection=selection,
            frames=frames,
            formats=formats,
            tracking=options.track,
            on_frame=lambda: advance(1),
        )


def _print_summary(summary: VideoSummary) -> None:
    """Print the result line of a video."""
    speed = summary.frames / max(summary.seconds, 1e-6)
    tracks = f" in {summary.tracks} tracks" if summary.tracks else ""
    print(
        printable(
            f"{summary.source}: {summary.detections} objects{tracks} in {summary.frames} frames "
            f"({speed:.1f} frames/s) -> {summary.files[0]}"
        ),
        flush=True,
    )
