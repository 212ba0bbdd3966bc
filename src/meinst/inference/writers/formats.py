"""The output formats of ``meinst predict --save``, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from meinst.inference.writers.base import PredictedImage, Run, Writer

DEFAULT_FORMATS = ("overlay", "coco")


@dataclass(frozen=True)
class Format:
    """An output format.

    Attributes:
        writer: module and class of its writer.
        files: its files in the output folder; NAME is that of the image.
        content: what they hold, in a few words.
        packages: packages of the extra ``formats`` that it needs.
    """

    writer: str
    files: str
    content: str
    packages: tuple[str, ...] = ()


FORMATS = {
    "overlay": Format("overlay:OverlayWriter", "NAME.jpg", "the image with its detections"),
    "coco": Format("coco:COCOWriter", "predictions.json, images.json", "COCO results"),
    "parquet": Format(
        "parquet:ParquetWriter", "detections.parquet", "compact detections", ("pyarrow",)
    ),
    "geojson": Format("geojson:GeoJSONWriter", "geojson/NAME.geojson", "polygons for QuPath"),
    "labels": Format("labels:LabelsWriter", "labels/NAME.tif", "label image"),
    "ome-zarr": Format(
        "ome_zarr:OMEZarrWriter", "ome-zarr/NAME.ome.zarr", "multiscale label image", ("zarr",)
    ),
    "yolo": Format("yolo:YOLOWriter", "yolo/", "YOLO segments, to be corrected"),
    "labelme": Format("labelme:LabelmeWriter", "labelme/NAME.json", "polygons, to be corrected"),
    "imagej": Format("imagej:ImageJWriter", "imagej/NAME.zip", "ImageJ's ROIs", ("roifile",)),
    "csv": Format("measurements:CSVWriter", "measurements.csv", "measurements of all objects"),
}


def parse_formats(names: str | Sequence[str], option: str = "") -> tuple[str, ...]:
    """Check the names of formats, and that the packages they need are installed.

    Args:
        names: the names; a text is divided at commas.
        option: the option that gave them, for error messages.

    Returns:
        The names without duplicates, in the order of ``FORMATS``.

    Raises:
        ValueError: if a name is not known or there is none, listing all names.
        ImportError: if a package is missing, with the remedy.
    """
    chosen = choose_formats(names, tuple(FORMATS), f"{option}the formats are")
    for name in chosen:
        for package in FORMATS[name].packages:
            if find_spec(package) is None:
                raise ImportError(
                    f"the format {name} needs the package {package}: pip install 'meinst[formats]'"
                )
    return chosen


def choose_formats(names: str | Sequence[str], known: Sequence[str], rule: str) -> tuple[str, ...]:
    """Check names of formats.

    Args:
        names: the names; a text is divided at commas.
        known: all names.
        rule: what the message says before them.

    Returns:
        The names without duplicates, in the order of ``known``.

    Raises:
        ValueError: if a name is not known or there is none, listing all names.
    """
    given = names.split(",") if isinstance(names, str) else names
    chosen = [name.strip() for name in given if name.strip()]
    unknown = next((name for name in chosen if name not in known), None)
    if unknown is not None or not chosen:
        found = f"got {unknown!r}" if unknown is not None else "none is given"
        raise ValueError(f"{rule} {', '.join(known)}; {found}.")
    return tuple(name for name in known if name in chosen)


def check_output(formats: Sequence[str], output: Path, *, unfinished: bool) -> None:
    """Reject existing files that must not be replaced, before a run begins.

    Args:
        formats: names of the formats.
        output: the folder of the results.
        unfinished: whether it holds a run that ended early.

    Raises:
        FileExistsError: if there are any.
    """
    for name in formats:
        _writer_class(name).check(output, unfinished=unfinished)


class Writers:
    """The writers of a run, used as one.

    Args:
        formats: names of the formats.
        run: the run.
    """

    def __init__(self, formats: Sequence[str], run: Run) -> None:
        self._writers = [_writer_class(name)(run) for name in formats]

    def write(self, image: PredictedImage) -> None:
        """Write the results of an image in all formats.

        Raises:
            OSError: if they cannot be written.
        """
        for writer in self._writers:
            writer.write(image)

    def rollback(self) -> None:
        """Drop what was written of an image that is not in the journal, because it failed."""
        for writer in self._writers:
            writer.rollback()

    def finish(self) -> None:
        """Write the files that concern all images."""
        for writer in self._writers:
            writer.finish()

    def close(self) -> None:
        """Close all files."""
        for writer in self._writers:
            writer.close()


def _writer_class(name: str) -> type[Writer]:
    module, _, kind = FORMATS[name].writer.partition(":")
    writer: type[Writer] = getattr(import_module(f"meinst.inference.writers.{module}"), kind)
    return writer
