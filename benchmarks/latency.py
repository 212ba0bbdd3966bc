"""Seconds per image of a model and a peer, timed alternately.

    cd benchmarks
    python latency.py photos ../../shared/data/photos /tmp/peer/ema.safetensors
    python latency.py nuclei ../../shared/data/nuclei plain.safetensors --no-refinement

The peer is the Mask R-CNN that maskrcnn.py trained, or another model of this project. The time
covers everything from a decoded image to COCO RLE, each model at its own input size, with all
detections that AP counts. For each image, both are called once without timing and once with. Needs
`pip install '.[train]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from maskrcnn import SETTINGS, build, find
from measure import Ratio, compare, versions
from safetensors.torch import load_file

import meinst
from meinst.cli.memory import keep_for_reuse
from meinst.data.coco import read_coco
from meinst.data.images import load_image
from meinst.detector.predictor import Predictor
from meinst.images.rgb import Pixels
from meinst.models.model_file import ModelFileError


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("data", type=Path, help="folder of train/, val/ and annotations/")
    parser.add_argument("peer", help="file written by maskrcnn.py or `meinst train`")
    parser.add_argument(
        "--model", help="model to measure; by default the shipped one of the setting"
    )
    parser.add_argument("--no-refinement", action="store_true", help="without mask refinement")
    parser.add_argument("--images", type=int, default=20)
    options = parser.parse_args()
    keep_for_reuse()
    torch.set_num_threads(2)
    print(versions("meinst", "torch", "torchvision"), f"{torch.get_num_threads()} threads")

    setting = SETTINGS[options.setting]
    data = read_coco(options.data / "annotations" / "val.json", options.data / "val")
    model = meinst.load(options.model or options.setting).fuse()
    if options.no_refinement:
        model.refinement = model.refiner = None

    def run(predictor: Predictor, image: Pixels) -> object:
        return predictor.predict(image, score_threshold=0.0, max_detections=setting.limits[0]).rle()

    tested = partial(run, model)
    reference: Callable[[Pixels], object]
    try:
        reference = partial(run, meinst.load(options.peer).fuse())
    except ModelFileError:  # a Mask R-CNN
        peer = build(setting, len(data.class_names))
        peer.load_state_dict(load_file(options.peer))
        peer.eval()
        reference = partial(find, peer, size=setting.test_size)

    rounds = []
    step = max(1, len(data.images) // options.images)
    for record in data.images[::step][: options.images]:
        assert record.path is not None
        image = load_image(record.path)
        for predict in (tested, reference):  # compiles the kernels for this size
            predict(image)
        rounds.append(compare(partial(tested, image), partial(reference, image), 1))
    times = zip(*((*r.speedups, *r.tested, *r.reference) for r in rounds), strict=True)
    print(options.setting, Ratio(*times))


if __name__ == "__main__":
    main()
