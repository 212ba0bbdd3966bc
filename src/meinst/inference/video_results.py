"""What ``meinst predict --save`` writes for a video, frame after frame."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from torch import Tensor

from meinst.detections import Detections
from meinst.files import open_atomically
from meinst.images.video import VideoFrame
from meinst.inference.video_writer import VideoWriter
from meinst.inference.writers.formats import choose_formats
from meinst.options import printable
from meinst.parquet import RowGroupWriter, import_pyarrow, make_batch, make_schema

VIDEO_FORMATS = {
    "overlay": (".mp4",),
    "mot": (".txt",),
    "coco": (".json", ".images.json"),
    "parquet": (".parquet",),
}
"""Suffixes of the files of each format.

``overlay`` is the annotated video with the source's frame times and sound; ``mot``, tracks in the
format of the MOT Challenge; ``coco``, results with ``track_id``, and their images with number and
time of each frame; ``parquet``, compact detections.
"""

DEFAULT_VIDEO_FORMATS = ("overlay", "mot", "coco")


def parse_video_formats(names: str | Sequence[str], option: str = "") -> tuple[str, ...]:
    """Check the names of formats of videos.

    Args:
        names: the names; a text is divided at commas.
        option: the option that gave them, for error messages.

    Returns:
        The names without duplicates, in the order of ``VIDEO_FORMATS``.

    Raises:
        ValueError: if a name is not known or there is none, listing all names.
        ImportError: if a package is missing, with the remedy.
    """
    chosen = choose_formats(names, tuple(VIDEO_FORMATS), f"{option}the formats of videos are")
    if "parquet" in chosen:
        import_pyarrow()
    return chosen


def video_files(source: str | Path, output: Path, formats: Sequence[str]) -> tuple[Path, ...]:
    """What is written for a source, named after it.

    Raises:
        FileExistsError: if it would replace the source.
    """
    stem = Path(str(source)).stem if Path(str(source)).is_file() else str(source)
    name = re.sub(r"[^\w.-]+", "_", f"camera{stem}" if stem.isdecimal() else stem).strip("_")
    suffixes = [suffix for each in formats for suffix in VIDEO_FORMATS[each]]
    files = tuple(output / f"{name}{suffix}" for suffix in suffixes)
    if Path(str(source)).resolve() in {path.resolve() for path in files}:
        raise FileExistsError(
            f"{printable(str(source))} would be overwritten; choose another --output."
        )
    return files


@dataclass(frozen=True)
class PredictedFrame:
    """A frame and what was found in it.

    Attributes:
        number: of the frame among those that were predicted, from 1.
        frame: the frame.
        detections: the detections.
    """

    number: int
    frame: VideoFrame
    detections: Detections

    @cached_property
    def soft_masks(self) -> Tensor:
        """The decoded masks."""
        return self.detections.soft_masks()

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """COCO results."""
        return self.detections.to_coco(self.number, soft_masks=self.soft_masks)


class _Writer(Protocol):
    """Writes the files of one format."""

    def write(self, found: PredictedFrame) -> None:
        """Append a frame."""

    def finish(self, seconds: float) -> None:
        """Write the ends of the files.

        Args:
            seconds: time at which the video ends.
        """


@dataclass(frozen=True)
class VideoRun:
    """What all writers of a video need to know.

    Attributes:
        source: the video.
        class_names: names of the classes.
        model: fingerprint of the model.
        rate: frames per second of the result.
        start: time of its first frame in the source, in seconds.
    """

    source: str | Path
    class_names: tuple[str, ...]
    model: str
    rate: Fraction
    start: float


class VideoResults:
    """The files of a video, which appear when they are complete; a context manager.

    Args:
        formats: names of :data:`VIDEO_FORMATS`.
        files: of :func:`video_files`.
        run: what the writers need to know.

    Raises:
        OSError: if a file cannot be written.
    """

    def __init__(self, formats: Sequence[str], files: Sequence[Path], run: VideoRun) -> None:
        self._writers: list[_Writer] = []
        paths = iter(files)
        with ExitStack() as stack:  # closes what is open if a later step fails
            for name in formats:
                own = [next(paths) for _ in VIDEO_FORMATS[name]]
                if name == "overlay":
                    self._writers.append(_Overlay(own[0], run, stack))
                    continue
                opened = [stack.enter_context(open_atomically(path)) for path in own]
                self._writers.append(_WRITERS[name](opened, run))
            self._stack = stack.pop_all()

    def __enter__(self) -> VideoResults:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._stack:  # an error raised here removes the incomplete files
            if error is not None:
                raise error

    def write(self, found: PredictedFrame) -> None:
        """Append a frame to all files."""
        for writer in self._writers:
            writer.write(found)

    def finish(self, seconds: float) -> None:
        """Write the ends of all files.

        Args:
            seconds: time at which the video ends.
        """
        for writer in self._writers:
            writer.finish(seconds)


class _Overlay:
    """The annotated video with the sound of its source."""

    def __init__(self, path: Path, run: VideoRun, stack: ExitStack) -> None:
        sound = Path(run.source) if Path(str(run.source)).is_file() else None
        self._video = stack.enter_context(VideoWriter(path, run.rate, sound, run.start))

    def write(self, found: PredictedFrame) -> None:
        drawn = found.detections.draw(found.frame.pixels, soft_masks=found.soft_masks)
        self._video.write(drawn, found.frame.seconds)

    def finish(self, seconds: float) -> None:
        self._video.finish(seconds)


class _MOT:
    """Tracks as text of the MOT Challenge."""

    def __init__(self, files: Sequence[BinaryIO], run: VideoRun) -> None:  # noqa: ARG002
        (self._file,) = files

    def write(self, found: PredictedFrame) -> None:
        self._file.write("".join(_mot_lines(found)).encode())

    def finish(self, seconds: float) -> None:
        pass


def _mot_lines(found: PredictedFrame) -> Iterator[str]:
    """Lines of frame, track, left, top, width, height, score, -1, -1, -1."""
    if found.detections.track_ids is None:
        return
    tracks = found.detections.track_ids.tolist()
    rows = zip(
        tracks, found.detections.boxes.tolist(), found.detections.scores.tolist(), strict=True
    )
    for track, (x1, y1, x2, y2), score in rows:
        if track >= 0:
            sides = ",".join(f"{side:.2f}" for side in (x1, y1, x2 - x1, y2 - y1))
            yield f"{found.number},{track},{sides},{score:.4f},-1,-1,-1\n"


class _COCO:
    """COCO results with track ids, and the images with number and time of each frame."""

    def __init__(self, files: Sequence[BinaryIO], run: VideoRun) -> None:
        self._results, self._images = files
        self._class_names = run.class_names
        self._comma = ""
        self._results.write(b"[")
        self._images.write(b'{\n "images": [')

    def write(self, found: PredictedFrame) -> None:
        if found.results:
            text = self._comma + json.dumps(found.results)[1:-1]
            self._results.write(text.encode())
            self._comma = ", "
        height, width = found.detections.image_size
        frame = found.frame
        image = {"id": found.number, "frame": frame.index, "seconds": round(frame.seconds, 6)}
        image |= {"width": width, "height": height}
        line = (",\n  " if found.number > 1 else "\n  ") + json.dumps(image)
        self._images.write(line.encode())

    def finish(self, seconds: float) -> None:  # noqa: ARG002
        categories = [
            {"id": number, "name": name} for number, name in enumerate(self._class_names, 1)
        ]
        self._results.write(b"]")
        rest = json.dumps({"categories": categories, "annotations": []}, indent=1)
        self._images.write(b"\n ]," + rest[1:].encode())


class _Parquet:
    """Compact detections with track ids."""

    def __init__(self, files: Sequence[BinaryIO], run: VideoRun) -> None:
        (self._file,) = files
        self._name = str(run.source)
        self._model = run.model
        self._rows: RowGroupWriter | None = None

    def write(self, found: PredictedFrame) -> None:
        detections = found.detections
        if self._rows is None:
            schema = make_schema(detections.codec, detections.class_names, self._model)
            self._rows = RowGroupWriter(self._file, schema)
        self._rows.write(make_batch(self._rows.schema, detections, found.number, self._name))

    def finish(self, seconds: float) -> None:  # noqa: ARG002
        if self._rows is not None:
            self._rows.close()


_WRITERS: dict[str, Callable[..., _Writer]] = {"mot": _MOT, "coco": _COCO, "parquet": _Parquet}
