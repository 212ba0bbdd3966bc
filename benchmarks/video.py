"""Frames per second of ``meinst predict`` on a video, everything included, and where they go.

    python benchmarks/video.py ../shared/data/photos/val --seconds 20

The video (1280 x 720, 25 frames per second, H.264 with sound) is made of a folder's photographs,
over which the camera moves. Two threads. Each part is also timed by itself: decoding, the network
with selection, drawing, encoding; they overlap in the command, so the sum is larger than the whole.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import torch
from measure import peak_memory, versions
from numpy.typing import NDArray
from PIL import Image

import meinst
from meinst.cli.memory import keep_for_reuse
from meinst.detector.track import Tracker
from meinst.images.video import VideoReader
from meinst.inference.predict_video import predict_video
from meinst.inference.video_writer import VideoWriter

HEIGHT, WIDTH, RATE = 720, 1280, 25
SHOT = 50  # frames of a photograph


def frames(folder: Path, count: int) -> Iterator[NDArray[np.uint8]]:
    """Frames of a camera that moves over one photograph after the other."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".jpg", ".png"))
    for number in range(count):
        shot, place = divmod(number, SHOT)
        if place == 0:
            image = Image.open(paths[shot % len(paths)]).convert("RGB")
            scale = 1.15 * max(WIDTH / image.width, HEIGHT / image.height)
            image = image.resize((round(image.width * scale), round(image.height * scale)))
        share = place / SHOT
        left = round(share * (image.width - WIDTH))
        top = round((1 - share) * (image.height - HEIGHT))
        yield np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)))


def write_clip(folder: Path, path: Path, count: int) -> None:
    """Write the video with a tone."""
    samples = 44100 // RATE
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"crf": "23"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=44100, layout="mono")
        tone = (np.sin(np.arange(samples) / 20) * 8000).astype(np.int16)[None]
        for number, pixels in enumerate(frames(folder, count)):
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            sound = av.AudioFrame.from_ndarray(tone, format="s16", layout="mono")
            sound.sample_rate, sound.pts = 44100, number * samples
            container.mux(audio.encode(sound))
        container.mux(video.encode())
        container.mux(audio.encode())


def time_parts(model: meinst.Predictor, clip: Path, folder: Path, count: int) -> dict[str, float]:
    """Seconds per frame of each part by itself, on the first frames."""
    parts: dict[str, float] = {}

    def timed(name: str, run: Callable[[], None]) -> None:
        start = time.perf_counter()
        run()
        parts[name] = (time.perf_counter() - start) / count

    read = []
    with VideoReader(clip) as video:
        rate = video.rate
        reader = video.read()
        timed(
            "decoding",
            lambda: read.extend(frame for frame, _ in zip(reader, range(count), strict=False)),
        )
    tracker = Tracker(float(rate), model.class_names)
    selection = tracker.select(model.selection)
    found = []
    timed(
        "network and selection",
        lambda: found.extend(model.predict_batch([f.pixels], selection)[0] for f in read),
    )
    tracked = []
    timed("tracks", lambda: tracked.extend(map(tracker.update, found)))
    timed("COCO results", lambda: [json.dumps(each.to_coco(1)) for each in tracked].clear())
    drawn = []
    timed(
        "drawing",
        lambda: drawn.extend(d.draw(f.pixels) for d, f in zip(tracked, read, strict=True)),
    )
    with VideoWriter(folder / "parts.mp4", rate) as writer:
        timed(
            "encoding",
            lambda: [writer.write(p, f.seconds) for p, f in zip(drawn, read, strict=True)].clear(),
        )
    return parts


def main() -> None:
    """Print frames per second, parts and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("photographs", type=Path, help="folder of images")
    parser.add_argument("--seconds", type=float, default=20, help="length of the video")
    parser.add_argument("--model", default="photos")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    keep_for_reuse()
    torch.set_num_threads(2)
    print(versions("meinst", "torch", "av"), "2 threads")
    count = round(options.seconds * RATE)
    model = meinst.load(options.model).fuse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = folder / "clip.mp4"
        write_clip(options.photographs, clip, count)
        for _ in range(options.rounds):
            summary = predict_video(model, clip, folder / "found")
            speed = summary.frames / summary.seconds
            print(
                f"{speed:.1f} frames per second ({summary.frames} frames, "
                f"{summary.detections / summary.frames:.1f} objects each, {summary.tracks} tracks)"
            )
        memory = peak_memory(lambda: predict_video(model, clip, folder / "found"))
        print(f"peak memory beyond that of the loaded model: {memory:.0f} MB")
        for part, seconds in time_parts(model, clip, folder, min(count, 100)).items():
            print(f"{part}: {1000 * seconds:.1f} ms per frame")


if __name__ == "__main__":
    main()
