"""One way to load any model: shipped, trained or exported."""

from __future__ import annotations

from pathlib import Path

from meinst.detector.predictor import Predictor
from meinst.models.checkpoint import list_models, load_model
from meinst.models.exported import load_exported


def load(name_or_path: str | Path) -> Predictor:
    """Load a model by its name, its file or, if it was exported, its folder.

    The model is in evaluation mode, on the CPU. For faster prediction call its
    :meth:`~meinst.detector.predictor.Predictor.fuse`, unless it will be trained or saved.

    Args:
        name_or_path: a shipped model's name, a file written by ``meinst train``, or a folder
            written by ``meinst export``.

    Raises:
        FileNotFoundError: if there is no such model.
        ModelFileError: if the file or folder is not a model of this project.
        ImportError: if the engine of an exported model is not installed.
    """
    path = Path(name_or_path)
    if path.is_dir() and str(name_or_path) not in list_models():
        return load_exported(path)
    return load_model(name_or_path)
