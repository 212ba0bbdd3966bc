"""The published matrix file of the PCA codec: four float32 arrays in an ``.npz``."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.codecs.base import CodecFileError

_KEYS = ("components_c", "mean_c", "ratio_c", "explained_variance_c")
_OPTIONS = ("sigmoid", "whiten")


@dataclass(frozen=True)
class PCAMatrix:
    """What the file holds; the first axis is 1, for one basis for all classes.

    Attributes:
        components: ``(1, K, D)`` float32.
        mean: ``(1, D)`` float32.
        ratio: ``(1, K)`` float32, shares of the total variance.
        explained_variance: ``(1, K)`` float32.
        sigmoid: whether the basis is one of logits; ``True`` where the file does not say.
        whiten: whether codes are divided by standard deviations; likewise.
    """

    components: NDArray[np.float32]
    mean: NDArray[np.float32]
    ratio: NDArray[np.float32]
    explained_variance: NDArray[np.float32]
    sigmoid: bool
    whiten: bool


def write_matrix(path: Path, matrix: PCAMatrix) -> None:
    """Write the file beside its place and move it there, so that it is never half written.

    Raises:
        OSError: the folder cannot be written or is full.
    """
    arrays: dict[str, Any] = {
        "components_c": matrix.components,
        "mean_c": matrix.mean,
        "ratio_c": matrix.ratio,
        "explained_variance_c": matrix.explained_variance,
    }
    # The published files hold no options: theirs are both true.
    if not (matrix.sigmoid and matrix.whiten):
        arrays |= {"sigmoid": np.array(matrix.sigmoid), "whiten": np.array(matrix.whiten)}
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist. Make the folder first.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_matrix(path: Path) -> PCAMatrix:
    """Read and check a matrix file; nothing in it is executed.

    Raises:
        OSError: there is no such file, or it cannot be opened.
        CodecFileError: not an ``.npz``, missing arrays, wrong shapes or values, object arrays.
    """
    arrays = _read_arrays(path)
    components = arrays["components_c"]
    if components.ndim != 3:
        raise _error(path, "components_c must have the shape (1, K, D)", components.shape)
    if components.shape[0] != 1:
        raise _error(
            path, "only class-agnostic matrices (first axis 1) are supported", components.shape
        )
    _, count, size = components.shape
    if math.isqrt(size) ** 2 != size or not 1 <= count <= size:
        raise _error(
            path,
            "components_c must have the shape (1, K, D), D a square number, K from 1 to D",
            components.shape,
        )
    shapes = {"mean_c": (1, size), "ratio_c": (1, count), "explained_variance_c": (1, count)}
    for key, shape in shapes.items():
        if arrays[key].shape != shape:
            raise _error(path, f"{key} must have the shape {shape}", arrays[key].shape)
    for key in _KEYS:
        if not np.isfinite(arrays[key]).all():
            raise _error(path, f"{key} must be finite", "NaN or infinity")
    if arrays["explained_variance_c"].min() < 0:
        raise _error(path, "variances must not be negative", arrays["explained_variance_c"].min())
    if not arrays["components_c"].any():
        raise _error(path, "components_c must not be empty", "zeros only")
    return PCAMatrix(
        components=arrays["components_c"].astype(np.float32),
        mean=arrays["mean_c"].astype(np.float32),
        ratio=arrays["ratio_c"].astype(np.float32),
        explained_variance=arrays["explained_variance_c"].astype(np.float32),
        sigmoid=_option(path, arrays, "sigmoid"),
        whiten=_option(path, arrays, "whiten"),
    )


def _read_arrays(path: Path) -> dict[str, NDArray[np.float64]]:
    """Read the known arrays of an ``.npz``; the option arrays only where present."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file to read a mask codec from.")
    # Opened here, since numpy leaves the file open where the archive is broken.
    with path.open("rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise _error(path, "it must be an .npz archive", "something else") from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise _error(path, "it must be an .npz archive", "a single array")
        with archive:
            arrays = _known_arrays(path, archive)
    for key, array in arrays.items():
        if array.dtype.kind != ("b" if key in _OPTIONS else "f"):
            raise _error(path, f"{key} has a wrong type", array.dtype)
    return arrays


def _known_arrays(path: Path, archive: np.lib.npyio.NpzFile) -> dict[str, NDArray[np.float64]]:
    missing = [key for key in _KEYS if key not in archive.files]
    if missing:
        raise _error(path, f"the arrays {missing} are missing", archive.files)
    wanted = [*_KEYS, *(key for key in _OPTIONS if key in archive.files)]
    try:
        return {key: np.asarray(archive[key]) for key in wanted}
    except ValueError as error:
        raise _error(path, "arrays must be plain numbers", "objects") from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _error(path, "it must be whole", "a damaged archive") from error


def _option(path: Path, arrays: dict[str, NDArray[np.float64]], key: str) -> bool:
    if key not in arrays:
        return True
    if arrays[key].shape != ():
        raise _error(path, f"{key} must be a single truth value", arrays[key].shape)
    return bool(arrays[key])


def _error(path: Path, rule: str, found: object) -> CodecFileError:
    return CodecFileError(f"{path} is no mask codec file: {rule}; found {found}.")
