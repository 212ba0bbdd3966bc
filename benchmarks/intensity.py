"""Measure whether images of more than 8 bits give what the same images in 8 bits give.

    python benchmarks/intensity.py /data/nuclei/val [--model nuclei] [--limit 30]

Takes 8-bit images, transforms their values (16 bits, offsets, hot pixels, floats, ...) or writes
them to files of 16 bits, segments both, and prints a Markdown table: the share of the objects of
the 8-bit image that are found again with a mask IoU of at least 0.5, and all objects that are
found. For images without objects (noise only) it prints the number of objects found.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

import meinst
from meinst.detections import Detections
from meinst.detector.predictor import Predictor
from meinst.images.intensity import InputOptions
from meinst.images.search import find_images

Values = NDArray[Any]


def with_defects(values: Values, bright: int, dark: int) -> Values:
    """Values with hot pixels (the type's maximum) and dead pixels (its minimum or 0)."""
    changed = values.copy()
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, side, bright + dark) for side in values.shape[:2])
    changed[rows[:bright], columns[:bright]] = np.iinfo(values.dtype).max
    changed[rows[bright:], columns[bright:]] = 0
    return changed


def with_gaps(values: Values) -> Values:
    """Floats of which some are NaN or infinite."""
    changed = values.copy()
    rng = np.random.default_rng(0)
    rows, columns = (rng.integers(0, side, 40) for side in values.shape[:2])
    changed[rows[:30], columns[:30]] = np.nan
    changed[rows[30:], columns[30:]] = np.inf
    return changed


def camera(values: Values) -> Values:
    """12 bits of a camera: a pedestal of 100 counts, shot noise and read noise."""
    rng = np.random.default_rng(0)
    light = rng.poisson(values.astype(np.float64) * 8)
    return np.rint(light + 100 + rng.normal(0, 3, values.shape)).clip(0, 4095).astype(np.uint16)


def dim_camera(values: Values) -> Values:
    """A camera with little light: at most 128 photons, a pedestal of 100 counts and read noise."""
    rng = np.random.default_rng(0)
    light = rng.poisson(values.astype(np.float64) / 2)
    return np.rint(light + 100 + rng.normal(0, 2, values.shape)).clip(0, 4095).astype(np.uint16)


def wide(values: Values, factor: int = 1, offset: int = 0, dtype: type = np.uint16) -> Values:
    """Integers ``values * factor + offset``."""
    return (values.astype(np.int64) * factor + offset).astype(dtype)


ARRAYS: dict[str, Callable[[Values], Values]] = {
    "16 bit, the same values": lambda v: wide(v),
    "16 bit, x 257": lambda v: wide(v, 257),
    "12 bit in 16, x 16": lambda v: wide(v, 16),
    "16 bit, the same values + 2,000": lambda v: wide(v, 1, 2000),
    "16 bit, x 16 + 2,000": lambda v: wide(v, 16, 2000),
    "16 bit, x 16, one hot pixel": lambda v: with_defects(wide(v, 16), 1, 0),
    "16 bit, x 16 + 2,000, 20 hot and 20 dead": lambda v: with_defects(wide(v, 16, 2000), 20, 20),
    "16 bit, a camera: pedestal and noise": camera,
    "16 bit, a camera with little light": dim_camera,
    "int16, x 16 - 1,000": lambda v: wide(v, 16, -1000, np.int16),
    "uint32, x 1,000,000": lambda v: wide(v, 1_000_000, 0, np.uint32),
    "float 0 to 1": lambda v: (v / 255).astype(np.float32),
    "float 0 to 255": lambda v: v.astype(np.float32),
    "float, divided by 65,535": lambda v: (v / 65535).astype(np.float32),
    "float 0 to 65,535": lambda v: (v * 257.0).astype(np.float32),
    "float 0 to 1, with NaN and infinity": lambda v: with_gaps((v / 255).astype(np.float32)),
    "float -0.5 to 0.5": lambda v: (v / 255 - 0.5).astype(np.float32),
}


def write_tiff(**options: Any) -> Callable[[Path, Values], None]:
    """A function that writes an RGB image as TIFF."""

    def write(path: Path, values: Values) -> None:
        planar = options.get("planarconfig") == "separate"
        stored = np.moveaxis(values, -1, 0) if planar else values
        tifffile.imwrite(path, stored, photometric="rgb", **options)

    return write


FILES: dict[str, tuple[str, Callable[[Path, Values], Any]]] = {
    "16-bit RGB PNG": (".png", lambda path, v: path.write_bytes(imagecodecs.png_encode(v))),
    "16-bit RGB TIFF, interleaved": (".tif", write_tiff()),
    "16-bit RGB TIFF, planar, LZW": (
        ".tif",
        write_tiff(planarconfig="separate", compression="lzw"),
    ),
    "16-bit RGB BigTIFF, planar, tiled, Deflate, big-endian": (
        ".tif",
        write_tiff(
            planarconfig="separate", tile=(64, 64), compression="zlib", byteorder=">", bigtiff=True
        ),
    ),
}


def empty_images() -> dict[str, Values]:
    """Images of noise without any object."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, (512, 512))
    return {
        "8 bit: 20 +- 3": (noise * 3 + 20).clip(0, 255).astype(np.uint8),
        "16 bit: 100 +- 3": (noise * 3 + 100).astype(np.uint16),
        "16 bit: 2,000 +- 40": (noise * 40 + 2000).astype(np.uint16),
        "16 bit: 30,000 +- 1,000": (noise * 1000 + 30000).astype(np.uint16),
        "float: 0.01 +- 0.002": (noise * 0.002 + 0.01).astype(np.float32),
        "16 bit: 400": np.full((512, 512), 400, np.uint16),
    }


def sparse(pixels: Values, found: Detections) -> Values:
    """The first object, with a margin, on a ground of the image's most common value and noise."""
    x1, y1, x2, y2 = (int(side) for side in found.boxes[0].tolist())
    part = pixels[max(0, y1 - 8) : y2 + 8, max(0, x1 - 8) : x2 + 8]
    ground = np.bincount(pixels[..., 0].ravel(), minlength=256).argmax()
    canvas = np.full((900, 900, 3), ground, np.float64)
    canvas += np.random.default_rng(0).normal(0, 2, (900, 900, 1))
    canvas[400 : 400 + part.shape[0], 400 : 400 + part.shape[1]] = part
    return np.rint(canvas).clip(0, 255).astype(np.uint8)


def refound(reference: Detections, found: Detections) -> int:
    """Objects of the reference with a mask IoU of at least 0.5 to an object that is found."""
    if not len(reference) or not len(found):
        return 0
    first, second = reference.rle(), found.rle()
    overlaps = coco_mask.iou(first, second, [0] * len(second))
    count = 0
    for row in overlaps:  # greedy, best objects first
        best = int(row.argmax())
        if row[best] >= 0.5:
            count += 1
            overlaps[:, best] = 0
    return count


def grey_if_grey(pixels: Values) -> Values:
    """``(H, W)`` if the three channels are equal."""
    equal = (pixels == pixels[..., :1]).all()
    return np.ascontiguousarray(pixels[..., 0]) if equal else pixels


def measure(model: Predictor, images: list[Path]) -> dict[str, list[int]]:
    """For each variant: objects in 8 bits, refound ones, all that are found."""
    rows: dict[str, list[int]] = {}

    def add(name: str, reference: Detections, image: Any) -> None:
        found = model.predict(image)
        row = rows.setdefault(name, [0, 0, 0])
        for place, count in enumerate((len(reference), refound(reference, found), len(found))):
            row[place] += count

    with tempfile.TemporaryDirectory() as folder:
        for path in images:
            pixels = meinst.load_image(path)
            reference = model.predict(pixels)
            values = grey_if_grey(pixels)
            add("8 bit", reference, pixels)
            for name, transform in ARRAYS.items():
                add(name, reference, transform(values))
            for name, (suffix, write) in FILES.items():
                file = Path(folder, f"image{suffix}")
                write(file, wide(pixels, 16))
                add(name, reference, file)
            if len(reference) and values.ndim == 2:
                single = sparse(pixels, reference)
                add("one object on dark ground, 8 bit", model.predict(single), single)
                add("... 16 bit, x 257", model.predict(single), wide(single, 257))
                add("... 16 bit, x 16 + 2,000", model.predict(single), wide(single, 16, 2000))
                add("... float 0 to 1", model.predict(single), single / 255)
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("images", help="folder of 8-bit images")
    parser.add_argument("--model", default="nuclei", help="a shipped model's name or a model file")
    parser.add_argument("--limit", type=int, help="use this many images, evenly spaced")
    parser.add_argument("--intensity", default="percentile", help="percentile, full or LOW:HIGH")
    options = parser.parse_args()
    model = meinst.load(options.model).fuse()
    model.input_options = InputOptions(options.intensity)
    images = find_images([options.images])
    if options.limit:
        images = images[:: -(-len(images) // options.limit)]
    print(f"{len(images)} images, rule {options.intensity}\n")
    print("| image | objects in 8 bit | refound | share | found |\n|---|--:|--:|--:|--:|")
    for name, (objects, again, found) in measure(model, images).items():
        share = f"{100 * again / objects:.1f} %" if objects else "-"
        print(f"| {name} | {objects} | {again} | {share} | {found} |")
    print("\n| image without objects | found |\n|---|--:|")
    for name, values in empty_images().items():
        print(f"| {name} | {len(model.predict(values))} |")


if __name__ == "__main__":
    main()
