"""The report on a diagnosis: a self-contained HTML file, and its figures as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from meinst.diagnosis import plots
from meinst.diagnosis.colors import hex_color
from meinst.diagnosis.diagnose import Diagnosis
from meinst.diagnosis.gallery import Gallery
from meinst.diagnosis.kinds import ERRORS, Kind
from meinst.files import write_atomically
from meinst.html_page import EmbeddedPicture, render_page

REPORT, FIGURES = "report.html", "report.json"
_TEMPLATE = "report.html.j2"
_PICTURES = 12
_SUSPECTS = 12
_CONFUSIONS = 15

MEANINGS: dict[Kind, tuple[str, str]] = {
    Kind.DOUBLE: (
        "A second detection of an object that a better one has found.",
        "A lower NMS threshold; for parts of objects, more training.",
    ),
    Kind.WRONG_CLASS: (
        "The mask fits an object of another class.",
        "More or clearer examples of these classes; check the labels below.",
    ),
    Kind.MERGED: (
        "One detection covers at least half of each of several objects.",
        "A larger input or a finer first stride; labels that separate touching objects.",
    ),
    Kind.SPLIT: (
        "Several detections are pieces of one object.",
        "Coarser levels or a smaller input for large objects; more training.",
    ),
    Kind.POOR_OUTLINE: (
        "The box fits, the mask does not.",
        "Mask refinement, a codec of more numbers, or exacter labels.",
    ),
    Kind.LOOSE_BOX: (
        "The box does not fit the object.",
        "Longer training, or a larger input for small objects.",
    ),
    Kind.BOTH: (
        "Of another class than the object, and loose.",
        "As for wrong class.",
    ),
    Kind.FALSE: (
        "Nothing of a measured class is there.",
        "Pictures without objects in training; check whether labels are missing, below.",
    ),
    Kind.MISSED: (
        "No detection is aimed at the object.",
        "A larger input for small objects; more examples that look like these.",
    ),
}
"""What each kind of error is, and what often helps."""


def write_report(diagnosis: Diagnosis, folder: str | Path, *, title: str = "model") -> Path:
    """Write ``report.html``, which contains all plots and pictures, and ``report.json``.

    Args:
        diagnosis: result of :func:`meinst.diagnose`.
        folder: created if it does not exist.
        title: name of the model.

    Returns:
        The path of ``report.html``.

    Raises:
        ImportError: if matplotlib is not installed.
        OSError: if a file cannot be written.
    """
    check_plots()
    folder = Path(folder)
    gallery = Gallery(diagnosis)
    page = render_page(
        "meinst.diagnosis",
        _TEMPLATE,
        title=title,
        diagnosis=diagnosis,
        metrics=diagnosis.metrics,
        kinds={kind.title: (hex_color(kind), *MEANINGS[kind]) for kind in ERRORS},
        colors={kind: hex_color(kind) for kind in Kind},
        plots=_plots(diagnosis),
        lost=1 - (diagnosis.metrics.segm.ap or 0.0),
        classes=_worst_first(diagnosis),
        confusions=top_confusions(diagnosis),
        worst=gallery.worst(_PICTURES),
        unlabelled=gallery.unlabelled(_SUSPECTS),
        contradicted=gallery.contradicted(_SUSPECTS),
        unseen=gallery.unseen(_SUSPECTS),
        unseen_total=int((~diagnosis.assignments.touched & ~diagnosis.assignments.crowd).sum()),
    )
    content = {"model": title, **diagnosis.to_dict()}
    write_atomically(folder / FIGURES, json.dumps(content, indent=2, allow_nan=False).encode())
    path = folder / REPORT
    write_atomically(path, page)
    return path


def check_plots() -> None:
    """Verify that plots can be drawn.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "the report needs matplotlib for its plots: pip install 'meinst[train]'"
        ) from error


def _plots(diagnosis: Diagnosis) -> dict[str, EmbeddedPicture]:
    drawn = {
        "losses": (plots.loss_plot, "What each kind of error costs"),
        "curves": (plots.precision_recall_plot, "Precision-recall curves"),
        "calibration": (plots.calibration_plot, "Precision against score"),
        "outlines": (plots.outline_plot, "Distributions of IoU"),
        "confusion": (plots.confusion_plot, "Confusion matrix"),
    }
    return {
        name: EmbeddedPicture.from_png(draw(diagnosis), alt) for name, (draw, alt) in drawn.items()
    }


def _worst_first(diagnosis: Diagnosis) -> list[Any]:
    """The classes that have objects or detections, by increasing AP."""
    measured = [each for each in diagnosis.classes if each.objects or each.detections]
    return sorted(measured, key=lambda each: 2.0 if each.ap is None else each.ap)


def top_confusions(diagnosis: Diagnosis) -> list[tuple[str, str, int]]:
    """The classes that are mistaken for another most often: object, detection and count."""
    matrix = diagnosis.confusion[:-1, :-1].copy()
    np.fill_diagonal(matrix, 0)
    names = diagnosis.assignments.class_names
    order = np.argsort(-matrix, axis=None, kind="stable")[:_CONFUSIONS]
    rows, columns = np.unravel_index(order, matrix.shape)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(names[r], names[c], int(matrix[r, c])) for r, c in pairs if matrix[r, c]]
