"""Time and memory of reading large data sets: many YOLO label files, one large COCO file.

    python benchmarks/reading.py yolo --count 100000
    python benchmarks/reading.py coco --gigabytes 1

The data are made in a temporary folder. The peak is that of the whole process, with its imports.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

OBJECTS, CORNERS = 5, 30  # of an image and of an object


def main() -> None:
    """Make the data, read them once and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layout", choices=("yolo", "coco"))
    parser.add_argument("--count", type=int, default=100_000, help="images (yolo)")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of the file (coco)")
    options = parser.parse_args()
    from meinst import open_dataset, read_coco

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if options.layout == "yolo":
            make_yolo(root, options.count)
        else:
            make_coco(root / "large.json", options.gigabytes * 1e9)
        start = time.perf_counter()
        if options.layout == "yolo":
            data = open_dataset(root).read("all")
        else:
            data = read_coco(root / "large.json")
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    objects = sum(map(len, data.instances))
    print(
        f"{options.layout}: {len(data)} images, {objects} objects: {seconds:.1f} s, {peak:.2f} GB"
    )


def make_yolo(root: Path, count: int) -> None:
    """Images of 64 x 48 pixels, with five objects each."""
    (root / "images").mkdir()
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(buffer, "JPEG")
    texts = ["".join(map(_yolo_line, rng.random((OBJECTS, 2)))) for _ in range(500)]
    for number in range(count):
        (root / "images" / f"{number:06d}.jpg").write_bytes(buffer.getvalue())
        (root / "labels" / f"{number:06d}.txt").write_text(texts[number % len(texts)])
    (root / "classes.txt").write_text("thing\n")


def _yolo_line(centre: np.ndarray) -> str:
    outline = _ring() * 0.08 + 0.1 + 0.8 * centre
    return f"0 {' '.join(f'{value:.6f}' for value in outline.ravel())}\n"


def _ring() -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    return np.stack((np.cos(angles), np.sin(angles)), axis=1)


def make_coco(path: Path, size: float) -> None:
    """A file of ``size`` bytes with polygons of 20 to 90 corners."""
    rng = np.random.default_rng(0)
    shapes = []
    for _ in range(200):
        angles = np.linspace(0, 2 * np.pi, rng.integers(20, 90), endpoint=False)
        ring = 200 + 60 * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        shapes.append(json.dumps([np.round(ring.ravel(), 2).tolist()]))
    images = int(size / 8500)
    entries = [
        {"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(images)
    ]
    with path.open("w") as file:
        file.write(f'{{"images": {json.dumps(entries)}, "annotations": [')
        number = 0
        while file.tell() < size:
            comma = ", " if number else ""
            file.write(
                f'{comma}{{"id": {number}, "image_id": {number % images}, "category_id": 1, '
                f'"bbox": [140, 140, 120, 120], "segmentation": {shapes[number % 200]}}}'
            )
            number += 1
        file.write('], "categories": [{"id": 1, "name": "thing"}]}')


if __name__ == "__main__":
    main()
