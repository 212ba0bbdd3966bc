"""Videos are decoded frame by frame, from files, streams and cameras."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import RATE, frame, write_video

from meinst.images.video import FrameRange, VideoError, VideoReader, is_video

av = pytest.importorskip("av")


def test_all_frames_of_a_lossless_video_have_its_pixels(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", 6, lossless=True)
    with VideoReader(path) as video:
        frames = list(video.read())
        assert video.rate == RATE
        assert video.broken is None
    assert [each.index for each in frames] == [0, 1, 2, 3, 4, 5]
    assert [each.seconds for each in frames] == pytest.approx(
        [n / RATE for n in range(6)], abs=2e-3
    )
    for number, each in enumerate(frames):
        np.testing.assert_array_equal(each.pixels, frame(number))


def test_number_of_frames_and_rate_of_mp4(tmp_path: Path) -> None:
    with VideoReader(write_video(tmp_path / "clip.mp4", 12)) as video:
        assert (video.frames, video.rate) == (12, Fraction(25))
        assert len(list(video.read())) == 12


@pytest.mark.parametrize(
    ("chosen", "indices"),
    [
        (FrameRange(every=3), [0, 3, 6, 9]),
        (FrameRange(start=0.16), [4, 5, 6, 7, 8, 9]),
        (FrameRange(end=0.12), [0, 1, 2]),
        (FrameRange(every=2, start=0.12, end=0.29), [4, 6]),
    ],
)
def test_chosen_frames(tmp_path: Path, chosen: FrameRange, indices: list[int]) -> None:
    with VideoReader(write_video(tmp_path / "clip.mp4", 10)) as video:
        assert [each.index for each in video.read(chosen)] == indices


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_videos_are_upright(tmp_path: Path, degrees: int) -> None:
    """Telephones write the pixels as the sensor sees them, and how to turn them."""
    plain = write_video(tmp_path / "plain.mp4", 1, sound=False)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(_with_rotation(plain.read_bytes(), degrees))
    with VideoReader(plain) as video:
        (expected,) = video.read()
    with VideoReader(turned) as video:
        (found,) = video.read()
    np.testing.assert_array_equal(found.pixels, np.rot90(expected.pixels, -degrees // 90))


def _with_rotation(content: bytes, clockwise: int) -> bytes:
    """An MP4 file whose track header has a matrix that turns the pictures clockwise."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise]
    numbers = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    matrix = b"".join((number % 2**32).to_bytes(4, "big") for number in numbers)
    start = content.index(b"tkhd") + 4 + 40  # version 0
    return content[:start] + matrix + content[start + 36 :]


def test_cut_video_keeps_its_frames_and_says_why_it_ended(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mkv", 50, sound=False).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with VideoReader(path) as video:
        assert 5 < len(list(video.read())) < 50
    whole = write_video(tmp_path / "whole.mp4", 50, sound=False).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.raises(VideoError, match=r"cut\.mp4 cannot be opened as a video: \S"), path.open():
        VideoReader(path)


def test_damaged_packets_end_the_video(tmp_path: Path) -> None:
    content = bytearray(write_video(tmp_path / "whole.mp4", 50, sound=False).read_bytes())
    first, last = content.index(b"mdat"), content.index(b"moov") - 4
    start = first + (last - first) // 2
    content[start:last] = b"\xff" * (last - start)
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    with VideoReader(path) as video:
        frames = list(video.read())
        assert 5 < len(frames) < 50
        assert video.broken is not None


_READ_DAMAGED = """
import sys
from meinst.images.video import VideoError, VideoReader
for repetition in range(400):
    with VideoReader(sys.argv[1]) as video:
        for number, frame in enumerate(video.read()):
            if number == repetition % 25:
                break
"""


def test_closing_a_damaged_video_does_not_hang(tmp_path: Path) -> None:
    """The decoder's threads must not wait for the interpreter, which waits for them to end."""
    content = bytearray(write_video(tmp_path / "whole.mp4", 50, sound=False).read_bytes())
    first, last = content.index(b"mdat") + 8, content.index(b"moov") - 4
    generator = np.random.default_rng(0)
    start = first + (last - first) // 3
    content[start:last] = generator.integers(0, 256, last - start, np.uint8).tobytes()
    path = tmp_path / "damaged.mp4"
    path.write_bytes(content)
    command = [sys.executable, "-c", _READ_DAMAGED, str(path)]
    subprocess.run(command, check=True, timeout=100)
    with VideoReader(path):
        assert av.logging.get_level() is None  # others hang about once in 1,000 videos


def test_frames_of_changing_size_are_rejected(tmp_path: Path) -> None:
    first = write_video(tmp_path / "a.ts", 5, sound=False)
    second = write_video(tmp_path / "b.ts", 5, size=(64, 80), sound=False)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoReader(path) as video:
        frames = video.read()
        assert next(frames).pixels.shape == (96, 128, 3)
        with pytest.raises(VideoError, match=r"frame \d has 80 x 64 pixels.* 128 x 96; split"):
            list(frames)


def test_files_without_pictures(tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    with pytest.raises(VideoError, match=r"notes\.mp4 cannot be opened as a video: \S"):
        VideoReader(path)
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        samples = av.AudioFrame.from_ndarray(
            np.zeros((1, 4096), np.int16), format="s16", layout="mono"
        )
        samples.sample_rate = 44100
        container.mux(stream.encode(samples))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match=r"sound\.mp4 has no pictures, only audio"):
        VideoReader(sound)
    with pytest.raises(FileNotFoundError, match=r"The video .*missing\.mp4 does not exist"):
        VideoReader(tmp_path / "missing.mp4")
    with pytest.raises(FileNotFoundError, match="There is no camera 73"):
        VideoReader("73")


def test_range_without_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", 5)
    with VideoReader(path) as video, pytest.raises(VideoError, match="none in the chosen time"):
        list(video.read(FrameRange(start=9)))
    with pytest.raises(ValueError, match=r"end must be after start = 3 s, got 2 s"):
        FrameRange(start=3, end=2)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        FrameRange(every=0)


def test_animations_are_videos_only_by_request(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    images = [Image.fromarray(frame(number)) for number in range(3)]
    images[0].save(path, save_all=True, append_images=images[1:])
    assert not is_video(path)
    with VideoReader(path) as video:
        assert len(list(video.read())) == 3


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("clip.mp4", True),
        ("CLIP.MOV", True),
        ("0", True),
        ("rtsp://camera/live", True),
        ("https://example.org/clip.mp4?x=1", True),
        ("https://example.org/photo.jpg", False),
        ("photo.jpg", False),
        ("folder", False),
    ],
)
def test_what_is_a_video(source: str, expected: bool) -> None:
    assert is_video(source) is expected
