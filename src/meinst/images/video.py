"""Read videos: files, addresses of streams, and cameras."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from meinst.files import is_file
from meinst.images.search import VIDEO_SUFFIXES
from meinst.options import check_range, printable

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://")
_ADDRESSES = (*_STREAMS, "http://", "https://")
_BY_NAME = {".ts", ".m3u8"}  # suffixes that other files in a folder may have, too
_DEFAULT_RATE = Fraction(25)  # frames per second of streams that state none


class VideoError(ValueError):
    """A video that cannot be read, or no further."""


@dataclass(frozen=True)
class FrameRange:
    """Which frames of a video are read.

    Attributes:
        every: read one of this number of frames.
        start: time of the first frame, in seconds.
        end: time before which the last frame is, in seconds; by default that of the video.
    """

    every: int = 1
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        """Reject empty ranges."""
        check_range(self, 1, math.inf, "every")
        check_range(self, 0, math.inf, "start", "end")
        if self.end is not None and self.end <= self.start:
            raise ValueError(f"end must be after start = {self.start:g} s, got {self.end:g} s.")


@dataclass(frozen=True)
class VideoFrame:
    """A frame.

    Attributes:
        index: its number in the video, from 0.
        seconds: its time from the beginning of the video.
        pixels: ``(H, W, 3)`` uint8 RGB, rotated as the metadata of the video demand.
    """

    index: int
    seconds: float
    pixels: NDArray[np.uint8]


class VideoReader:
    """Decodes a video, frame after frame; a context manager.

    Args:
        source: a file, the address of a stream, or the number of a camera.

    Attributes:
        rate: frames per second.
        frames: number of frames that the video states, 0 if unknown.
        broken: why the video ended early; None if it did not.

    Raises:
        FileNotFoundError: if there is no such file.
        VideoError: if it cannot be opened or has no pictures.
        ImportError: if PyAV is not installed.

    Examples:
        >>> with VideoReader("clip.mp4") as video:  # doctest: +SKIP
        ...     for frame in video.read(FrameRange(every=5)):
        ...         print(frame.seconds, frame.pixels.shape)
    """

    def __init__(self, source: str | Path) -> None:
        av = import_av()
        self.name = printable(str(source))  # for messages
        self.broken: str | None = None
        address, options = _address(source)
        try:
            self._container: InputContainer = av.open(address, metadata_errors="replace", **options)
        except av.FFmpegError as error:
            raise VideoError(
                f"{self.name} cannot be opened as a video: {_reason(error)}"
            ) from error
        if not self._container.streams.video:
            kinds = _kinds(self._container)
            self._container.close()
            raise VideoError(f"{self.name} has no pictures, only {kinds}.")
        self._stream: VideoStream = self._container.streams.video[0]
        if self._stream.codec_context is None:  # no decoder in this build
            self._container.close()
            raise VideoError(f"{self.name}: its codec is not known to this version of PyAV.")
        self._stream.thread_type = "AUTO"
        self.rate = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_RATE
        self.frames = self._stream.frames or _frames_by_duration(self._stream, self.rate)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file or the camera."""
        self._container.close()

    def read(self, chosen: FrameRange | None = None) -> Iterator[VideoFrame]:
        """Decode frames in order.

        If the video is damaged or cut off, the frames before it are yielded, and :attr:`broken`
        says why there are no more.

        Args:
            chosen: which frames; all if None.

        Raises:
            VideoError: if the size of the frames changes, or there is no frame at all.
        """
        chosen = chosen or FrameRange()
        size: tuple[int, ...] | None = None
        for index, seconds, frame in self._decode():
            if chosen.end is not None and seconds >= chosen.end:
                break
            if seconds < chosen.start or index % chosen.every:
                continue
            pixels = _upright(frame)
            if size not in (None, pixels.shape):
                raise VideoError(
                    f"{self.name}: frame {index} has {pixels.shape[1]} x {pixels.shape[0]} "
                    f"pixels, those before it {size[1]} x {size[0]}; split the video there."
                )
            size = pixels.shape
            yield VideoFrame(index, seconds, pixels)
        if size is None:
            reason = self.broken or "it has none in the chosen time"
            raise VideoError(f"{self.name}: no frame could be read: {reason}.")

    def _decode(self) -> Iterator[tuple[int, float, Any]]:
        """Number, time and frame; ends at damage."""
        av = import_av()
        first: float | None = None
        index = 0
        frames = self._container.decode(self._stream)
        while True:
            try:
                frame = next(frames)
            except StopIteration:
                break
            except (av.FFmpegError, OSError) as error:
                self.broken = f"{_reason(error)} after frame {index}"
                return
            time = frame.time if frame.time is not None else index / float(self.rate)
            first = time if first is None else first
            yield index, time - first, frame
            index += 1
        if self._stream.frames > index + 1:  # containers count one more or less
            self.broken = f"it ends after {index} of {self._stream.frames} frames"


def is_video(source: str | Path) -> bool:
    """Whether a source is a video by its suffix, the address of a stream or a camera's number."""
    text = str(source)
    is_camera = text.isdecimal() and not Path(text).exists()
    if text.startswith("http"):
        text = urlsplit(text).path
    suffix = Path(text).suffix.lower()
    return is_camera or text.startswith(_STREAMS) or suffix in VIDEO_SUFFIXES | _BY_NAME


def import_av() -> Any:
    """The module ``av`` (PyAV).

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("videos need PyAV: pip install 'meinst[video]'") from error
    # Any level makes FFmpeg's threads wait for the interpreter in order to log damage, while the
    # interpreter waits for them to end: https://github.com/PyAV-Org/PyAV/issues/909
    av.logging.set_level(None)
    return av


def _address(source: str | Path) -> tuple[str, dict[str, Any]]:
    """What PyAV opens, and how."""
    text = str(source)
    if text.startswith(_ADDRESSES):
        return text, {"timeout": 10.0}
    path = Path(text)
    if text.isdecimal() and not path.exists():
        device = Path(f"/dev/video{text}")
        if not device.exists():
            raise FileNotFoundError(f"There is no camera {text} ({device}).")
        return str(device), {"format": "v4l2", "timeout": 10.0}
    if not is_file(path):
        raise FileNotFoundError(f"The video {printable(text)} does not exist.")
    return f"file:{path}", {}


def _upright(frame: Any) -> NDArray[np.uint8]:
    """A frame as RGB, rotated as its metadata demand."""
    pixels: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    quarters = round((frame.rotation or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _frames_by_duration(stream: VideoStream, rate: Fraction) -> int:
    if stream.duration is None or stream.time_base is None:
        return 0
    return round(stream.duration * stream.time_base * rate)


def _kinds(container: InputContainer) -> str:
    return ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _reason(error: Exception) -> str:
    """The first line of an error of FFmpeg, without its number."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(text.splitlines()[0].rstrip("."))
