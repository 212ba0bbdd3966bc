"""Rasterising masks and fitting a codec, compared with the published code in the same run.

    python benchmarks/codecs.py ANNOTATIONS.json [--repeat-to 400000]

The published procedure is rebuilt from its parts: masks are rasterised one by one with pycocotools,
all are kept as float32, and scikit-learn's IncrementalPCA(60, whiten=True, batch_size=1024) is
fitted to them. Both are timed alternately; the median and range of the ratios are printed.
Needs `pip install -r benchmarks/requirements.txt`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Ratio, compare, peak_memory, versions
from pycocotools import mask as coco_mask

from meinst.codecs import Moments, PCACodec
from meinst.data.annotations.coco_file import image_sizes, load_document
from meinst.data.annotations.instance_batch import BatchReader, InstanceBatch
from meinst.data.mask_stream import MaskStream

K, S = 60, 28
_SMALLEST_SIDE = 0.1


def published_masks(batch: InstanceBatch) -> np.ndarray:
    """Rasterise masks one by one with pycocotools: ``(N, S, S)`` uint8."""
    masks = np.zeros((len(batch), S, S), dtype=np.uint8)
    for n, (x1, y1, x2, y2) in enumerate(batch.boxes):
        scale = np.array([S / max(x2 - x1, _SMALLEST_SIDE), S / max(y2 - y1, _SMALLEST_SIDE)])
        first, last = batch.instance_starts[n : n + 2]
        polygons = []
        for part in range(first, last):
            start, end = batch.part_starts[part : part + 2]
            points = batch.coordinates[start:end].reshape(-1, 2)
            polygons.append(((points - (x1, y1)) * scale).ravel().tolist())
        masks[n] = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, S, S)))
    return masks


def published_fit(batches: Sequence[InstanceBatch]) -> None:
    """Rasterise all masks one by one, then fit IncrementalPCA."""
    from sklearn.decomposition import IncrementalPCA

    flat = np.concatenate([published_masks(batch) for batch in batches]).reshape(-1, S * S)
    IncrementalPCA(K, whiten=True, batch_size=1024).fit(flat.astype(np.float32))


def fit(document: dict[str, Any]) -> PCACodec:
    """Fit this project's codec to a parsed annotation file, checks included."""
    moments = Moments(S)
    for batch in MaskStream(document):
        moments.add(torch.from_numpy(batch.masks(S)))
    return PCACodec(K, S).fit_moments(moments)


_batches: list[InstanceBatch] = []  # inherited by forked workers


def _rasterise_share(share: tuple[int, int]) -> None:
    first, step = share
    for batch in (4 * _batches)[first::step]:  # much longer than starting a process
        batch.masks(S)


def process_scaling(rounds: int) -> Ratio:
    """Compare one process per CPU with a single process, rasterising all masks ten times."""
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count, mp_context=get_context("fork")) as pool:

        def spread(processes: int) -> None:
            shares = [(first, processes) for first in range(processes)]
            for _ in range(10):
                list(pool.map(_rasterise_share, shares))

        spread(count)
        return compare(lambda: spread(count), lambda: spread(1), rounds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--repeat-to", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    print(versions("meinst", "torch", "numpy", "numba", "pycocotools", "scikit-learn"))

    document = load_document(options.annotations, None)
    fit({**document, "annotations": document["annotations"][:100]})  # compiles the kernels
    print(f"peak memory above the parsed file: {peak_memory(lambda: fit(document)):.0f} MB")
    _batches.extend(MaskStream(document))
    count = sum(map(len, _batches))
    equal = sum(int((b.masks(S) == published_masks(b)).all(axis=(1, 2)).sum()) for b in _batches)
    print(f"{count} masks; equal to pycocotools: {equal}")
    print(
        "rasterising in one thread, against pycocotools one by one:",
        compare(
            lambda: [batch.masks(S) for batch in _batches],
            lambda: [published_masks(batch) for batch in _batches],
            options.rounds,
        ),
    )
    print(
        f"rasterising in {os.cpu_count()} processes, against one:", process_scaling(options.rounds)
    )
    print(
        "rasterising and fitting, against the published procedure:",
        compare(lambda: fit(document), lambda: published_fit(_batches), options.rounds),
    )

    times = -(-options.repeat_to // count)
    many = {**document, "annotations": document["annotations"] * times}
    repeated = _batches * times
    print(
        f"the same at {count * times} masks:",
        compare(lambda: fit(many), lambda: published_fit(repeated), 1),
    )
    print(f"peak memory above the parsed file: {peak_memory(lambda: fit(many)):.0f} MB")
    _quality(document)


def _quality(document: dict[str, Any]) -> None:
    """Print the reconstruction quality, and check that any shards give the same bytes."""
    masks = torch.from_numpy(np.concatenate([batch.masks(S) for batch in _batches])).bool()
    codec = PCACodec(K, S).fit(masks)
    decoded = codec.inverse_transform(codec.transform(masks)) >= 0.5
    shared = (masks & decoded).flatten(1).sum(1).double()
    either = (masks | decoded).flatten(1).sum(1).double()
    ious = torch.where(either > 0, shared / either.clamp(min=1), 1.0)
    both = float(shared.sum() / either.sum())
    neither = float((~masks & ~decoded).sum() / (~(masks & decoded)).sum())
    print(f"K = {K}, S = {S}: pooled mIoU {(both + neither) / 2:.5f}, mean IoU {ious.mean():.5f}")

    reader = BatchReader(image_sizes(document), [entry["id"] for entry in document["categories"]])
    files = set()
    for shards in (1, 2, 7):
        for order in (range(shards), range(shards - 1, -1, -1)):
            moments = Moments(S)
            for shard in order:
                batch = reader.read(document["annotations"][shard::shards])
                moments.merge(Moments(S).add(torch.from_numpy(batch.masks(S))))
            path = Path(f"/tmp/meinst-benchmark-{os.getpid()}.moments")
            moments.save(path)
            files.add(path.read_bytes())
            path.unlink()
    print(
        f"different files from 1, 2 and 7 shards merged in both orders: {len(files)} (expected 1)"
    )


if __name__ == "__main__":
    main()
