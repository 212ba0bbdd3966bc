"""Predict on image files and write the results in one or several formats."""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from meinst.data.frames import PictureReader
from meinst.detector.passes import TileOptions
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.detector.tiled import OnWindow
from meinst.files import check_folder
from meinst.images.frames import Frame, FrameChoice, PictureSource, expand_frames, file_of
from meinst.images.notes import NO_NOTES, ImageNotes
from meinst.images.sources import ImageSource, to_source
from meinst.inference.journal import JOURNAL, Journal, Row, describe_run
from meinst.inference.prefetch import IMAGE_ERRORS, PredictionResult, predict_iter
from meinst.inference.results import overlay_names
from meinst.inference.writers.base import PredictedImage, Run
from meinst.inference.writers.formats import (
    DEFAULT_FORMATS,
    Writers,
    check_output,
    parse_formats,
)
from meinst.inference.writers.spool import remove_spools, spool_sizes
from meinst.locks import lock_folder

log = logging.getLogger("meinst")

# Errors of the disk rather than of one image, after which nothing more can be written.
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_DISK_ERRORS = (*_FULL, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class ImageResult:
    """Outcome of one image.

    Attributes:
        source: the image file, or its frame.
        overlay: the overlay that was written; None if the image failed, or overlays are not saved.
        counts: number of detections of each class found, most frequent first.
        milliseconds: time since the previous image was done, including writing its overlay.
        error: why the image failed; None if it did not.
        notes: how the image was read and resized.
    """

    source: PictureSource
    overlay: Path | None
    counts: dict[str, int]
    milliseconds: float
    error: str | None = None
    notes: ImageNotes = NO_NOTES


@dataclass(frozen=True)
class PredictionSummary:
    """Outcome of a run; it does not grow with the number of images.

    Attributes:
        images: number of images, including those done before the run was resumed.
        failed: how many of them failed.
        detections: number of detections.
    """

    images: int
    failed: int
    detections: int


def predict_files(
    model: Predictor,
    sources: Sequence[str | ImageSource],
    output: Path,
    *,
    selection: SelectOptions | None = None,
    formats: str | Sequence[str] = DEFAULT_FORMATS,
    batch_size: int = 1,
    resume: bool = False,
    tiles: TileOptions | None = None,
    frames: str | None = None,
    on_image: Callable[[ImageResult], None] | None = None,
    on_window: OnWindow | None = None,
) -> PredictionSummary:
    """Segment image files in order and write the results; the next images are read meanwhile.

    Args:
        model: in evaluation mode.
        sources: image files, or addresses of fsspec such as ``s3://bucket/cells.png``.
        output: folder; created if it does not exist.
        selection: what counts as a detection; the model's own if None.
        formats: what to write; names of :data:`meinst.inference.writers.formats.FORMATS`.
        batch_size: images per forward pass, where they have the same size.
        resume: continue the unfinished run in ``output``.
        tiles: which images are predicted in windows.
        frames: which frames of stacks, time series and animations become images of their own:
            ``all``, a number from 0, or ``A:B``; by default only the first is used.
        on_image: called after each image; in a resumed run also for each that failed before.
        on_window: called after each window with the number of windows done and in all.

    Raises:
        OSError: if the output cannot be written, is in use or holds the results of something else.
        ValueError: if a format or ``frames`` is unknown, or the run to resume had other arguments.
    """
    formats = parse_formats(formats)
    selection, tiles = selection or model.selection, tiles or TileOptions()
    files = _pictures(sources, frames)
    check_folder(output)
    with lock_folder(output):
        names = overlay_names(files, output)
        header = describe_run(model, selection, files, names, tiles) | {"formats": list(formats)}
        with _open(output, header, resume=resume, batch_size=batch_size) as (journal, writers):
            report = on_image or (lambda _: None)
            _report_failures(files, journal, report)
            settings = {"selection": selection, "batch_size": batch_size, "on_window": on_window}
            predictions = _predict(model, files[journal.done :], tiles, settings)
            _write_all(writers, predictions, names[journal.done :], journal, report)
    return PredictionSummary(journal.done, journal.failed, journal.detections)


def _pictures(sources: Sequence[str | ImageSource], frames: str | None) -> list[PictureSource]:
    """The files, or their frames."""
    files = map(to_source, sources)
    return list(files if frames is None else expand_frames(files, FrameChoice.from_text(frames)))


def _predict(
    model: Predictor, files: Sequence[PictureSource], tiles: TileOptions, settings: dict[str, Any]
) -> Iterator[PredictionResult[PictureSource]]:
    """Predict in order; the next images are read meanwhile."""
    with closing(PictureReader(model.input_options, tiles.fits)) as reader:
        yield from predict_iter(model, files, reader.read, tiles=tiles, **settings)


@contextmanager
def _open(
    output: Path, header: Mapping[str, Any], *, resume: bool, batch_size: int
) -> Iterator[tuple[Journal, Writers]]:
    """Open the journal and the writers of a run, and close them.

    If all went well, what only ``--resume`` needs is removed; errors say what was done.

    Raises:
        OSError: if nothing more can be written, with the remedy.
        FileExistsError: if existing files must not be replaced.
    """
    formats = header["formats"]
    check_output(formats, output, unfinished=(output / JOURNAL).exists())
    sizes = spool_sizes(output)
    journal = Journal(output, header, resume=resume, batch_size=batch_size, sizes=sizes)
    try:
        run = Run(output, tuple(header["class_names"]), header["model"], journal)
        with closing(Writers(formats, run)) as writers:
            yield journal, writers
    except OSError as error:
        remedy = "free some space and continue" if error.errno in _FULL else "continue"
        raise type(error)(
            f"{output}: {error.strerror or error}; {journal.done} of {header['images']} images "
            f"are done; {remedy} with --resume."
        ) from error
    finally:
        journal.close()
    journal.path.unlink()
    remove_spools(output)


def _report_failures(
    sources: Sequence[PictureSource], journal: Journal, report: Callable[[ImageResult], None]
) -> None:
    """Report the images that failed before the run was resumed."""
    for source, row in zip(sources, journal.rows(), strict=False):
        if row.error is not None:
            report(ImageResult(source, None, {}, 0.0, row.error))


def _write_all(
    writers: Writers,
    predictions: Iterator[PredictionResult[PictureSource]],
    names: Sequence[str],
    journal: Journal,
    report: Callable[[ImageResult], None],
) -> None:
    """Write the files of one image after the other, then those of all images."""
    output = journal.path.parent
    try:
        start = time.perf_counter()
        for prediction, name in zip(predictions, names, strict=True):
            outcome, row = _write(writers, prediction, journal, name)
            journal.append(row)
            end = time.perf_counter()
            report(replace(outcome, milliseconds=(end - start) * 1000))
            start = end
    except OSError:
        raise
    except BaseException:  # interrupted: the files of images exist, so the others should, too
        writers.rollback()
        if journal.done > journal.failed:
            writers.finish()
        log.warning("%s: %d images are done; continue with --resume", output, journal.done)
        raise
    if journal.done > journal.failed:  # otherwise, results of an earlier run are left alone
        writers.finish()


def _write(
    writers: Writers, prediction: PredictionResult[PictureSource], journal: Journal, overlay: str
) -> tuple[ImageResult, Row]:
    """Write the files of one image; an error is part of the outcome.

    Raises:
        OSError: if nothing more can be written.
    """
    source = prediction.source
    try:
        pixels, detections = prediction.result()
        row = Row(_entry(journal.done + 1, prediction), detections=len(detections))
        name = overlay.removesuffix(".jpg")
        writers.write(
            PredictedImage(source, name, pixels, detections.to("cpu"), row, prediction.notes)
        )
    except IMAGE_ERRORS as error:
        if error is not prediction.error and getattr(error, "errno", None) in _DISK_ERRORS:
            raise
        writers.rollback()
        reason = str(error) or type(error).__name__
        failed = Row(None, reason, sizes=journal.sizes)
        return ImageResult(source, None, {}, 0.0, reason), failed
    labels = (detections.class_names[label] for label in detections.labels.tolist())
    counts = dict(Counter(labels).most_common())
    assert row.image is not None
    path = row.image["overlay"] and journal.path.parent / row.image["overlay"]
    return ImageResult(source, path, counts, 0.0, notes=prediction.notes), row


def _entry(image_id: int, prediction: PredictionResult[PictureSource]) -> dict[str, Any]:
    """The entry of an image in ``images.json``; the writer of overlays adds its own."""
    assert prediction.detections is not None
    height, width = prediction.detections.image_size
    source = prediction.source
    entry = {"id": image_id, "file_name": str(file_of(source)), "width": width, "height": height}
    entry["overlay"] = None
    if isinstance(source, Frame):
        entry |= {"frame": source.index, **dict(source.position)}
    if prediction.notes.stretch is not None:
        entry["intensity"] = prediction.notes.stretch.to_dict()
    if prediction.notes.windows > 1:
        entry["windows"] = prediction.notes.windows
        entry["lost_windows"] = prediction.notes.lost_windows
    return entry
