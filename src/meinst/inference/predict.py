"""Predict on image files: an overlay for each image, and all results in one COCO file."""

from __future__ import annotations

import errno
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from meinst.data.regions import open_picture
from meinst.detector.passes import TileOptions
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.detector.tiled import OnWindow
from meinst.files import check_folder
from meinst.images.notes import NO_NOTES, ImageNotes
from meinst.inference.journal import Journal, Row, describe_run
from meinst.inference.prefetch import IMAGE_ERRORS, PredictionResult, predict_iter
from meinst.inference.results import overlay_names, write_overlay, write_results
from meinst.locks import lock_folder

log = logging.getLogger("meinst")

# Errors of the disk rather than of one image, after which nothing more can be written.
_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_DISK_ERRORS = (*_FULL, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class ImageResult:
    """Outcome of one image.

    Attributes:
        source: the image file.
        overlay: the overlay that was written; None if the image failed.
        counts: number of detections of each class found, most frequent first.
        milliseconds: time since the previous image was done, including writing its overlay.
        error: why the image failed; None if it did not.
        notes: how the image was read and resized.
    """

    source: Path
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
    sources: Sequence[Path],
    output: Path,
    *,
    selection: SelectOptions | None = None,
    batch_size: int = 1,
    resume: bool = False,
    tiles: TileOptions | None = None,
    on_image: Callable[[ImageResult], None] | None = None,
    on_window: OnWindow | None = None,
) -> PredictionSummary:
    """Segment image files in order and write the results; the next images are read meanwhile.

    Writes an overlay of each image, ``predictions.json`` (COCO results) and ``images.json`` (files
    and classes of the ids); after Ctrl-C or SIGTERM, of the images done.

    Args:
        model: in evaluation mode.
        sources: image files.
        output: folder; created if it does not exist.
        selection: what counts as a detection; the model's own if None.
        batch_size: images per forward pass, where they have the same size.
        resume: continue the unfinished run in ``output``.
        tiles: which images are predicted in windows; see :class:`meinst.TileOptions`.
        on_image: called after each image; in a resumed run also for each that failed before.
        on_window: called after each window of an image with the number of windows done and in all.

    Raises:
        OSError: if the output cannot be written, is in use, or contains an unfinished run or
            results of another program; or if there is no run to resume.
        ValueError: if the run to resume had another model, selection or list of images.
    """
    selection, tiles = selection or model.selection, tiles or TileOptions()
    check_folder(output)
    with lock_folder(output):
        names = overlay_names(sources, output)
        header = describe_run(model, selection, sources, names, tiles)
        journal = Journal(output, header, resume=resume, batch_size=batch_size)
        rest = slice(journal.done, None)
        read = partial(open_picture, options=model.input_options, fits=tiles.fits)
        settings: dict[str, Any] = {"selection": selection, "tiles": tiles, "on_window": on_window}
        predictions = predict_iter(model, sources[rest], read, batch_size=batch_size, **settings)
        report = on_image or (lambda _: None)
        with _open(journal, len(sources)):
            _report_failures(sources, journal, report)
            detections = _write_all(model, predictions, names[rest], journal, report)
    return PredictionSummary(journal.done, journal.failed, detections)


@contextmanager
def _open(journal: Journal, images: int) -> Iterator[None]:
    """Close the journal, and remove it if all went well; errors say what was done.

    Raises:
        OSError: if nothing more can be written, with the remedy.
    """
    try:
        yield
    except OSError as error:
        remedy = "free some space and continue" if error.errno in _FULL else "continue"
        raise type(error)(
            f"{journal.path.parent}: {error.strerror or error}; {journal.done} of {images} images "
            f"are done; {remedy} with --resume."
        ) from error
    finally:
        journal.close()
    journal.path.unlink()


def _report_failures(
    sources: Sequence[Path], journal: Journal, report: Callable[[ImageResult], None]
) -> None:
    """Report the images that failed before the run was resumed."""
    for source, row in zip(sources, journal.rows(), strict=False):
        if row.error is not None:
            report(ImageResult(source, None, {}, 0.0, row.error))


def _write_all(
    model: Predictor,
    predictions: Iterator[PredictionResult[Path]],
    names: Sequence[str],
    journal: Journal,
    report: Callable[[ImageResult], None],
) -> int:
    """Write one overlay after the other, then the result files; returns the detections."""
    output = journal.path.parent
    try:
        start = time.perf_counter()
        for prediction, name in zip(predictions, names, strict=True):
            outcome, row = _write(prediction, journal.done + 1, output / name)
            journal.append(row)
            end = time.perf_counter()
            report(replace(outcome, milliseconds=(end - start) * 1000))
            start = end
    except OSError:
        raise
    except BaseException:  # interrupted: the overlays exist, so their results should, too
        if journal.done > journal.failed:
            write_results(output, model.class_names, journal.rows())
        log.warning("%s: %d images are done; continue with --resume", output, journal.done)
        raise
    if journal.done == journal.failed:  # results of an earlier run are left alone
        return 0
    return write_results(output, model.class_names, journal.rows())


def _write(
    prediction: PredictionResult[Path], image_id: int, path: Path
) -> tuple[ImageResult, Row]:
    """Write the overlay of one image; an error is part of the outcome.

    Raises:
        OSError: if nothing more can be written.
    """
    source = prediction.source
    try:
        pixels, detections = prediction.result()
        image, results = write_overlay(pixels, detections, image_id, source, path)
    except IMAGE_ERRORS as error:
        if error is not prediction.error and getattr(error, "errno", None) in _DISK_ERRORS:
            raise
        reason = str(error) or type(error).__name__
        return ImageResult(source, None, {}, 0.0, reason), Row(None, [], reason)
    if prediction.notes.stretch is not None:
        image["intensity"] = prediction.notes.stretch.to_dict()
    if prediction.notes.windows > 1:
        image["windows"] = prediction.notes.windows
        image["lost_windows"] = prediction.notes.lost_windows
    labels = (detections.class_names[label] for label in detections.labels.tolist())
    counts = dict(Counter(labels).most_common())
    outcome = ImageResult(source, path, counts, 0.0, notes=prediction.notes)
    return outcome, Row(image, results)
