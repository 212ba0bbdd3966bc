"""Measure prediction on images that are much larger than the network's input.

    cd benchmarks
    python large.py mosaic ../../shared/data/nuclei             # AP: tiled, untiled, one by one
    python large.py write ../../shared/data/nuclei slide.tif    # 100,000 x 100,000 pixels
    python large.py predict slide.tif --region 0 0 8192 8192    # seconds, peak memory
    python large.py predict slide.tif --no-network              # memory and merging for all of it
    python large.py speed ../../shared/data/nuclei              # against SAHI and supervision

`mosaic` places the validation pictures side by side, each resized as for the network (or, with
`--native`, at its own size), and measures AP on the mosaic and on the same pictures alone. `write`
repeats a mosaic of the pictures at their own size over a slide: a tiled BigTIFF with a pyramid.
`predict` reads it in windows; with `--no-network`, random detections of as many objects per window
take the place of the network's, so that the rest can be measured for the whole slide. `speed` runs
this project, SAHI driving torchvision's Mask R-CNN and supervision's InferenceSlicer driving this
project's model in turns on a part of the mosaic. Needs `pip install sahi supervision`.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from measure import Ratio, seconds, versions
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

import meinst
from meinst.cli.memory import keep_for_reuse
from meinst.data.coco import CocoData, read_coco
from meinst.data.ground_truth import ground_truth
from meinst.data.images import load_image
from meinst.data.regions import RegionImage, TiffImage
from meinst.data.transforms import ResizedImage, resized_size
from meinst.detections import Detections
from meinst.detector.passes import Tile, TileOptions
from meinst.detector.predictor import Predictor
from meinst.detector.select import SelectOptions
from meinst.detector.tiled import predict_windows
from meinst.inference.evaluate import evaluate

Pixels = NDArray[np.uint8]
TILE, BASE, FACTORS = 256, 4096, (4, 16, 64)


def pack(sizes: Sequence[tuple[int, int]], width: int) -> list[tuple[int, int]]:
    """Place rectangles (height, width) in rows, the highest first; x and y of each."""
    order = sorted(range(len(sizes)), key=lambda n: -sizes[n][0])
    places = [(0, 0)] * len(sizes)
    x = y = row = 0
    for n in order:
        height, length = sizes[n]
        if x + length > width:
            x, y, row = 0, y + row, 0
        places[n] = x, y
        x, row = x + length, max(row, height)
    return places


def place_mask(
    mask: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]
) -> dict[str, Any]:
    """Uncompressed RLE of a mask in an image of ``size``, without the image."""
    x, y = corner
    padded = np.zeros((mask.shape[1], mask.shape[0] + 1), np.int8)
    padded[:, :-1] = mask.T
    flat = np.concatenate(([0], padded.ravel(), [0]))
    edges = np.flatnonzero(np.diff(flat))  # starts and ends, down the padded columns
    column, row = np.divmod(edges, mask.shape[0] + 1)
    places = (x + column) * size[0] + y + row
    ends = np.concatenate(([0], places, [size[0] * size[1]]))
    return {"size": list(size), "counts": np.diff(ends).tolist()}


class Pictures:
    """The validation pictures, resized, with their masks.

    Args:
        data: the pictures.
        scale_to: the model whose input size they are resized to; None for their own size.
    """

    def __init__(self, data: CocoData, scale_to: Predictor | None) -> None:
        self.pixels: list[Pixels] = []
        self.masks: list[list[tuple[int, NDArray[np.bool_]]]] = []
        by_image: dict[int, list[dict[str, Any]]] = {record.id: [] for record in data.images}
        for entry in ground_truth(data)["annotations"]:
            by_image[entry["image_id"]].append(entry)
        self.categories = ground_truth(data)["categories"]
        for record in data.images:
            assert record.path is not None
            pixels = load_image(record.path)
            size = pixels.shape[:2]
            if scale_to is not None:
                size = resized_size(*size, scale_to.resize_options)
                pixels = np.array(
                    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR)
                )
            self.pixels.append(pixels)
            stored = record.height, record.width
            self.masks.append(
                [
                    (entry["category_id"], _mask(entry, stored, size))
                    for entry in by_image[record.id]
                ]
            )

    def write_single(self, folder: Path) -> CocoData:
        """Each picture as a file of its own."""
        folder.mkdir(parents=True, exist_ok=True)
        images, annotations = [], []
        for n, (pixels, masks) in enumerate(zip(self.pixels, self.masks, strict=True), start=1):
            Image.fromarray(pixels).save(folder / f"{n}.png")
            size = pixels.shape[:2]
            images.append({"id": n, "file_name": f"{n}.png", "width": size[1], "height": size[0]})
            annotations += [_annotation(n, label, mask, (0, 0), size) for label, mask in masks]
        return self._write(folder, images, annotations)

    def write_mosaic(self, folder: Path, side: int) -> CocoData:
        """All pictures side by side in one file, the rest black."""
        folder.mkdir(parents=True, exist_ok=True)
        mosaic, places = self.mosaic(side)
        tifffile.imwrite(folder / "mosaic.tif", mosaic, photometric="rgb", tile=(TILE, TILE))
        annotations = [
            _annotation(1, label, mask, place, (side, side))
            for masks, place in zip(self.masks, places, strict=True)
            for label, mask in masks
        ]
        image = {"id": 1, "file_name": "mosaic.tif", "width": side, "height": side}
        return self._write(folder, [image], annotations)

    def mosaic(self, side: int) -> tuple[Pixels, list[tuple[int, int]]]:
        """All pictures side by side, and the place of each."""
        places = pack([each.shape[:2] for each in self.pixels], side)
        mosaic = np.zeros((side, side, 3), np.uint8)
        for pixels, (x, y) in zip(self.pixels, places, strict=True):
            if y + pixels.shape[0] > side:
                raise SystemExit(f"the pictures do not fit in {side} x {side} pixels.")
            mosaic[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        return mosaic, places

    def _write(
        self, folder: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
    ) -> CocoData:
        for n, entry in enumerate(annotations, start=1):
            entry["id"] = n
        content = {"images": images, "annotations": annotations, "categories": self.categories}
        (folder / "annotations.json").write_text(json.dumps(content))
        return read_coco(folder / "annotations.json", folder)


def _mask(
    entry: dict[str, Any], stored: tuple[int, int], size: tuple[int, int]
) -> NDArray[np.bool_]:
    runs = entry["segmentation"]
    if isinstance(runs, list):  # polygons
        runs = coco_mask.merge(coco_mask.frPyObjects(runs, *stored))
    elif isinstance(runs["counts"], list):
        runs = coco_mask.frPyObjects(runs, *stored)
    whole = coco_mask.decode(runs).astype(np.uint8) * 255
    resized = Image.fromarray(whole).resize(size[::-1], Image.Resampling.BILINEAR)
    mask: NDArray[np.bool_] = np.asarray(resized) >= 128
    return mask


def _annotation(
    image: int,
    label: int,
    mask: NDArray[np.bool_],
    corner: tuple[int, int],
    size: tuple[int, int],
) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):  # vanished when it was shrunk
        rows = columns = np.zeros(1, np.int64)
    box = columns[0] + corner[0], rows[0] + corner[1], np.ptp(columns) + 1, np.ptp(rows) + 1
    return {
        "image_id": image,
        "category_id": label,
        "segmentation": place_mask(mask, corner, size),
        "bbox": [float(each) for each in box],
        "area": float(mask.sum()),
        "iscrowd": 0,
    }


def mosaic(options: argparse.Namespace) -> None:
    """AP on a mosaic, tiled and untiled, and on the same pictures one by one."""
    model = meinst.load(options.model).fuse()
    pictures = Pictures(_validation(options.data), None if options.native else model)
    if options.limit:
        pictures.pixels = pictures.pixels[: options.limit]
        pictures.masks = pictures.masks[: options.limit]
    single = pictures.write_single(options.output / "single")
    whole = pictures.write_mosaic(options.output / "mosaic", options.side)
    tile = _tile(options.tile)
    runs = (
        ("one by one", single, TileOptions("off"), None),
        ("mosaic, untiled", whole, TileOptions("off"), 10_000),
        (f"mosaic, --tile {tile}", whole, TileOptions(tile), None),
    )
    print(
        "| | mask AP | AP50 | AP75 | box AP | detections | seconds |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for name, data, tiles, limit in runs:
        start = time.perf_counter()
        found = evaluate(model, data, tiles=tiles, max_detections=limit)
        took = time.perf_counter() - start
        segm = [
            f"{100 * (value or 0):.1f}"
            for value in (found.segm.ap, found.segm.ap50, found.segm.ap75)
        ]
        box = f"{100 * (found.bbox.ap or 0):.1f}"
        print(f"| {name} | {' | '.join(segm)} | {box} | {found.detections} | {took:.0f} |")


def _tile(text: str) -> Tile:
    return int(text) if text.isdigit() else text  # type: ignore[return-value]


def _validation(folder: Path) -> CocoData:
    return read_coco(folder / "annotations" / "val.json", folder / "val")


def write(options: argparse.Namespace) -> None:
    """Write a slide that repeats a mosaic, tile by tile; each tile is compressed once."""
    base, _ = Pictures(_validation(options.data), None).mosaic(BASE)
    start = time.perf_counter()
    with tifffile.TiffWriter(options.slide, bigtiff=True) as file:
        factors = [factor for factor in FACTORS if options.side // factor >= TILE]
        for factor in (1, *factors):
            level = np.array(Image.fromarray(base).reduce(factor)) if factor > 1 else base
            side = options.side // factor
            file.write(
                _tiles(level, side),
                shape=(side, side, 3),
                dtype=np.uint8,
                photometric="rgb",
                tile=(TILE, TILE),
                compression="zlib",
                subifds=len(factors) if factor == 1 else None,
                subfiletype=int(factor > 1),
                resolution=(40_000 / factor, 40_000 / factor),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    took = time.perf_counter() - start
    size = options.slide.stat().st_size / 1e9
    print(f"{options.slide}: {options.side}^2 pixels, {size:.2f} GB, {took:.0f} s")


def _tiles(base: Pixels, side: int) -> Iterator[bytes]:
    """Compressed tiles of a repeated picture, row by row."""
    repeat = max(len(base) // TILE, 1)
    if len(base) < TILE:  # coarse levels
        base = np.tile(base, (-(-TILE // len(base)), -(-TILE // len(base)), 1))
    known: dict[tuple[int, int], bytes] = {}
    count = -(-side // TILE)
    for row in range(count):
        for column in range(count):
            place = row % repeat, column % repeat
            if place not in known:
                y, x = place[0] * TILE, place[1] * TILE
                part = np.ascontiguousarray(base[y : y + TILE, x : x + TILE])
                known[place] = imagecodecs.zlib_encode(part)
            yield known[place]


class Part(RegionImage):
    """A part of an image as an image of its own."""

    def __init__(self, image: RegionImage, region: tuple[int, int, int, int]) -> None:
        self._image, self._region = image, region
        x1, y1, x2, y2 = region
        self.size = (min(y2, image.size[0]) - y1, min(x2, image.size[1]) - x1)
        self.name, self.stretch, self.pixel_size = image.name, image.stretch, image.pixel_size

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Only the original."""
        return [self.size]

    def read(
        self, region: tuple[int, int, int, int], level: int = 0, *, blank: bool = False
    ) -> Pixels:
        """Read a region of the part."""
        x, y = self._region[:2]
        x1, y1, x2, y2 = region
        return self._image.read((x + x1, y + y1, x + x2, y + y2), level, blank=blank)


class NoNetwork:
    """Random detections of a fixed density instead of a network's; windows are still read."""

    def __init__(self, model: Predictor, density: float) -> None:
        self._model, self._density = model, density
        self.options, self.resize_options = model.options, model.resize_options
        self.input_options, self.selection = model.input_options, model.selection
        picture = np.full((512, 512, 3), 90, np.uint8)
        self._rng = np.random.default_rng(0)
        self._template = model.predict_batch([picture])[0]

    def predict_batch(
        self,
        images: Sequence[ResizedImage],
        selection: SelectOptions | None = None,  # noqa: ARG002
    ) -> list[Detections]:
        """Discs of 20 pixels at random places."""
        return [self._random(image) for image in images]

    def _random(self, image: ResizedImage) -> Detections:
        height, width = image.original.shape[:2]
        count = int(image.resized.shape[0] * image.resized.shape[1] * self._density)
        shrink = height / image.resized.shape[0]
        corners = self._rng.uniform(0, (width, height), (count, 2))
        boxes = np.concatenate((corners, corners + 20 * shrink), axis=1).clip(
            0, (width, height) * 2
        )
        template = self._template
        codes = torch.full((count, template.codec.n_components), 255, dtype=torch.uint8)
        return replace(
            template,
            boxes=torch.from_numpy(boxes.astype(np.float32)),
            scores=torch.from_numpy(
                np.sort(self._rng.uniform(0.4, 1, count))[::-1].astype(np.float32)
            ),
            labels=torch.zeros(count, dtype=torch.int64),
            codes=codes,
            image_size=(height, width),
        )


class Memory:
    """Resident memory of this process, sampled twice a second."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    self.samples.append(int(line.split()[1]) / 1e6)


def predict(options: argparse.Namespace) -> None:
    """Predict a slide or a region of it; print time, detections and memory."""
    model: Any = meinst.load(options.model).fuse()
    if options.no_network:
        model = NoNetwork(model, 1 / 5000)
    image: RegionImage = TiffImage(options.slide)
    if options.region:
        image = Part(image, tuple(options.region))
    tile = _tile(options.tile)
    start = time.perf_counter()

    def report(done: int, total: int) -> None:
        if done % 200 == 0 or done == total:
            print(f"{done} of {total} windows, {time.perf_counter() - start:.0f} s", flush=True)

    with Memory() as memory:
        found, notes = predict_windows(model, image, TileOptions(tile), on_window=report)
    took = time.perf_counter() - start
    megapixels = image.size[0] * image.size[1] / 1e6
    bytes_each = sum(
        tensor.element_size() * tensor[:1].numel()
        for tensor in (found.boxes, found.scores, found.labels, found.codes)
    )
    samples = memory.samples or [0.0]
    half = samples[len(samples) // 2]
    print(versions("meinst", "torch", "tifffile"))
    print(f"{len(found):,} objects in {megapixels:,.0f} megapixels, {notes.windows:,} windows")
    print(f"{took:.1f} s, {took / megapixels:.4f} s a megapixel")
    print(
        f"memory: peak {max(samples):.2f} GB, half-way {half:.2f} GB, {bytes_each} bytes an object"
    )


def speed(options: argparse.Namespace) -> None:
    """Seconds a megapixel in turns: this project, and the peers that are installed."""
    keep_for_reuse()
    torch.set_num_threads(2)
    model = meinst.load(options.model).fuse()
    picture, _ = Pictures(_validation(options.data), None).mosaic(BASE)
    picture = np.ascontiguousarray(picture[: options.side, : options.side])
    megapixels = options.side**2 / 1e6
    runs = {
        "meinst": lambda: len(model.predict(picture, tile=_tile(options.tile))),
        "InferenceSlicer, our model": _slicer(model, picture, options),
        "SAHI, torchvision's Mask R-CNN": _sahi(picture, options),
    }
    print(versions("meinst", "torch", "torchvision", "supervision", "sahi"))
    counts = {name: run() for name, run in runs.items()}  # compiles the kernels
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    for name, found in times.items():
        each = np.median(found) / megapixels
        print(f"{name}: {each:.3f} s a megapixel, {counts[name]} objects")
        if name != "meinst":
            pairs = zip(times["meinst"], found, strict=True)
            print(" ", Ratio([slow / fast for fast, slow in pairs], times["meinst"], found))


def _slicer(model: Predictor, picture: Pixels, options: argparse.Namespace) -> Any:
    """Supervision's InferenceSlicer driving this project's model, with windows of 512 pixels."""
    import supervision

    slicer = supervision.InferenceSlicer(
        callback=lambda part: model.predict(part, tile="off").to_supervision(),
        slice_wh=(512, 512),
        overlap_wh=(options.overlap, options.overlap),
        thread_workers=1,  # two threads are in torch
        compact_masks=True,
    )
    return lambda: len(slicer(picture))


def _sahi(picture: Pixels, options: argparse.Namespace) -> Any:
    """SAHI driving torchvision's Mask R-CNN (ResNet-50), with windows of 512 pixels.

    Without `--peer`, the network has random weights and finds nothing, which spares SAHI the masks.
    """
    from sahi import AutoDetectionModel
    from sahi.predict import get_sliced_prediction
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    torch.manual_seed(0)
    network = maskrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=2,
        min_size=512,
        max_size=512,
        box_score_thresh=1.0 if options.peer is None else 0.3,
    )
    if options.peer is not None:
        network.load_state_dict(torch.load(options.peer, weights_only=True))
    peer = AutoDetectionModel.from_pretrained(
        model_type="torchvision",
        model=network.eval(),
        confidence_threshold=0.3,
        device="cpu",
        category_mapping={"0": "background", "1": "nucleus"},
        load_at_init=True,
    )
    overlap = options.overlap / 512

    def run() -> int:
        result = get_sliced_prediction(
            picture,
            peer,
            slice_height=512,
            slice_width=512,
            overlap_height_ratio=overlap,
            overlap_width_ratio=overlap,
            perform_standard_pred=False,
            verbose=0,
        )
        return len(result.object_prediction_list)

    return run


def main() -> None:
    """Run one of the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    for function in (mosaic, write, predict, speed):
        each = commands.add_parser(function.__name__, help=function.__doc__)
        each.set_defaults(run=function)
        if function is not predict:
            each.add_argument("data", type=Path, help="folder of val/ and annotations/")
        if function in (write, predict):
            each.add_argument("slide", type=Path)
        each.add_argument("--model", default="nuclei")
        each.add_argument("--tile", default="auto")
        if function is mosaic:
            each.add_argument("--side", type=int, default=8000)
            each.add_argument("--native", action="store_true", help="pictures at their own size")
            each.add_argument("--limit", type=int, help="the first few pictures only")
            each.add_argument("--output", type=Path, default=Path("/tmp/mosaic"))
        if function is write:
            each.add_argument("--side", type=int, default=100_000)
        if function is predict:
            each.add_argument("--region", type=int, nargs=4, metavar=("X1", "Y1", "X2", "Y2"))
            each.add_argument("--no-network", action="store_true")
        if function is speed:
            each.add_argument("--side", type=int, default=2048)
            each.add_argument("--rounds", type=int, default=3)
            each.add_argument("--overlap", type=int, default=128)
            each.add_argument("--peer", type=Path, help="weights of torchvision's Mask R-CNN")
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
