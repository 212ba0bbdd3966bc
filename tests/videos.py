"""Drawn videos: rectangles that move by whole pixels, with sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SIZE = (96, 128)
RATE = 25
SAMPLES = 44100 // RATE  # of the sound, per frame


def frame(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame ``(H, W, 3)``: a red square moves to the right, a green one upwards."""
    pixels = np.full((*size, 3), 40, dtype=np.uint8)
    pixels[20:50, 10 + number : 40 + number] = (220, 40, 40)
    pixels[60 - number : 90 - number, 80:110] = (40, 220, 40)
    return pixels


def write_video(
    path: Path,
    frames: int = 20,
    *,
    size: tuple[int, int] = SIZE,
    sound: bool = True,
    lossless: bool = False,
    start: int = 0,
) -> Path:
    """Write a video.

    Args:
        path: the file; its suffix names the format.
        frames: number of frames.
        size: height and width.
        sound: whether there is a tone.
        lossless: encode the pixels exactly (as RGB).
        start: time of the first frame and sound, in seconds.
    """
    import av

    with av.open(str(path), "w") as container:
        codec = "libx264rgb" if lossless else "libx264"
        options = {"qp": "0"} if lossless else {"crf": "10"}
        video = container.add_stream(codec, rate=RATE, options=options)
        video.height, video.width = size
        video.pix_fmt = "rgb24" if lossless else "yuv420p"
        audio = container.add_stream("aac", rate=44100, layout="mono") if sound else None
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(frame(number, size), format="rgb24")
            picture.pts = number + start * RATE
            container.mux(video.encode(picture))
            if audio is not None:
                tone = (np.sin(np.arange(SAMPLES) / 20) * 8000).astype(np.int16)[None]
                samples = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
                samples.sample_rate, samples.pts = 44100, (number + start * RATE) * SAMPLES
                container.mux(audio.encode(samples))
        container.mux(video.encode())
        if audio is not None:
            container.mux(audio.encode())
    return path
