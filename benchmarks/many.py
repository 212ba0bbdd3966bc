"""Memory of `predict` over many small pictures, which must not grow with their number.

    cd benchmarks
    python many.py --images 100000

Links `--images` names to a few drawn pictures of 64 x 64 pixels and predicts them in all formats
that have one file for all images. Random detections take the place of the network's, so that the
rest can be measured in minutes. Prints the resident memory after 1,000 images and after all.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from large import NoNetwork
from measure import versions
from PIL import Image

import meinst
from meinst.inference.predict import ImageResult, predict_files

_EARLY = 1000  # images after which memory is compared
_DENSITY = 1 / 60_000  # objects per pixel of the network's input


def resident() -> float:
    """Resident memory of this process in GB."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+)", status)
    assert found is not None
    return int(found[1]) / 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--save", default="coco,parquet,csv")
    options = parser.parse_args()
    model: Any = meinst.load("nuclei").fuse()
    model.predict_batch = NoNetwork(model, _DENSITY).predict_batch
    samples: dict[int, float] = {}
    done = 0
    start = time.perf_counter()

    def watch(result: ImageResult) -> None:  # noqa: ARG001
        nonlocal done
        done += 1
        if done == _EARLY or done % 10_000 == 0 or done == options.images:
            samples[done] = resident()
            print(
                f"{done}: {samples[done]:.3f} GB, {time.perf_counter() - start:.0f} s", flush=True
            )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        for n in range(20):
            picture = Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8))
            picture.save(folder / f"base{n}.png")
        sources = []
        for n in range(options.images):
            path = folder / f"{n:06}.png"
            os.link(folder / f"base{n % 20}.png", path)
            sources.append(path)
        summary = predict_files(
            model, sources, folder / "found", formats=options.save, on_image=watch
        )
    print(versions("meinst", "torch"))
    first, last = samples[_EARLY], samples[options.images]
    print(f"{summary.images:,} images, {summary.detections:,} objects, --save {options.save}")
    more = f"{last / first - 1:+.1%}"
    print(f"resident after {_EARLY:,}: {first:.3f} GB, at the end: {last:.3f} GB ({more})")


if __name__ == "__main__":
    main()
