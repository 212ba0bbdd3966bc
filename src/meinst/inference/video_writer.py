"""Write annotated videos with the sound of their source."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.files import open_atomically
from meinst.images.video import import_av
from meinst.options import printable

log = logging.getLogger("meinst")

_TIME_BASE = Fraction(1, 90_000)  # times of frames need not be regular
_ENCODERS = (("libx264", {"preset": "veryfast", "crf": "20"}), ("mpeg4", {"q:v": "3"}))
_SOUNDS = ("aac", "mp3", "ac3", "opus")  # what MP4 can contain


class VideoWriter:
    """An MP4 file that appears when it is complete; a context manager.

    Args:
        path: the file.
        rate: frames per second, for players; frames have times of their own.
        sound: the video whose first audio stream is copied; None for no sound.
        start: time in ``sound`` of the first frame, in seconds.

    Raises:
        OSError: if the file cannot be written.
    """

    def __init__(
        self, path: Path, rate: Fraction, sound: Path | None = None, start: float = 0.0
    ) -> None:
        self._rate = rate
        self._start = start
        self._video: Any = None
        self._sound: _Sound | None = None
        with ExitStack() as stack:  # closes what is open if a later step fails
            file = stack.enter_context(open_atomically(path))
            self._container = stack.enter_context(import_av().open(file, "w", format="mp4"))
            if sound is not None:
                source = stack.enter_context(import_av().open(f"file:{sound}"))
                self._sound = _Sound(self._container, source, start)
            self._stack = stack.pop_all()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._stack:  # an error raised here removes the incomplete file
            if error is not None:
                raise error
            if self._video is not None:
                self._container.mux(self._video.encode())

    def write(self, pixels: NDArray[np.uint8], seconds: float) -> None:
        """Append a frame.

        Args:
            pixels: ``(H, W, 3)`` uint8 RGB; all of the same size.
            seconds: its time from the beginning of the source.
        """
        frame = import_av().VideoFrame.from_ndarray(_even(pixels), format="rgb24")
        if self._video is None:
            self._video = self._add_stream(frame.width, frame.height)
        frame.pts = round((seconds - self._start) / _TIME_BASE)
        frame.time_base = _TIME_BASE
        self._container.mux(self._video.encode(frame))
        if self._sound is not None:
            self._sound.copy(seconds)

    def finish(self, seconds: float) -> None:
        """Copy the sound up to a time."""
        if self._sound is not None and self._video is not None:
            self._sound.copy(seconds)

    def _add_stream(self, width: int, height: int) -> Any:
        """The video stream, by the first encoder that this build has."""
        av = import_av()
        name, options = next((n, o) for n, o in _ENCODERS if n in av.codecs_available)
        stream = self._container.add_stream(name, rate=self._rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = _TIME_BASE
        return stream


class _Sound:
    """Packets of the first audio stream of a file, copied as the pictures advance."""

    def __init__(self, target: Any, source: Any, start: float) -> None:
        self._target = target
        self._start = start
        self._offset = _start_time(source.streams.video[0])
        self._stream: Any = None
        self._packets: Iterator[Any] = iter(())
        self._waiting: Any = None  # the first packet that was not copied yet
        if not source.streams.audio:
            return
        stream = source.streams.audio[0]
        if stream.codec_context.name not in _SOUNDS:
            log.warning(
                "%s: its sound (%s) does not fit into an MP4 file and is left out",
                printable(source.name.removeprefix("file:")),
                stream.codec_context.name,
            )
            return
        self._stream = target.add_stream_from_template(stream)
        self._packets = source.demux(stream)

    def copy(self, seconds: float) -> None:
        """Copy the packets up to a time, in seconds from the first frame of the source."""
        while self._stream is not None:
            packet, self._waiting = self._waiting or next(self._packets, None), None
            if packet is None:
                return
            if packet.pts is None:  # the end, or not to be shown
                continue
            time = float(packet.pts * packet.time_base) - self._offset
            if time > seconds:
                self._waiting = packet
                return
            if self._start and time < self._start:  # encoders begin before 0
                continue
            shift = round((self._offset + self._start) / packet.time_base)
            packet.pts -= shift
            packet.dts = packet.pts if packet.dts is None else packet.dts - shift
            packet.stream = self._stream
            self._target.mux(packet)


def _start_time(stream: Any) -> float:
    """Time of a stream's first frame, in seconds; broadcasts do not begin at 0."""
    return float((stream.start_time or 0) * stream.time_base)


def _even(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the last row and column where a side is odd; encoders need even ones."""
    height, width = pixels.shape[:2]
    if height % 2 == width % 2 == 0:
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
