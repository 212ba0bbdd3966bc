"""Seconds for a picture, of a model and of a peer, in turns.

    cd benchmarks
    python pace.py photos ../../shared/data/photos /tmp/peer/ema.safetensors
    python pace.py nuclei ../../shared/data/nuclei plain.safetensors --no-sight

The peer is the Mask R-CNN that maskrcnn.py trained, or another model of this project. From the
decoded picture to run lengths, each at its own input size, with every detection that AP counts; of
each picture one untimed call of both sides, then one timed. Needs `pip install '.[train]'`.
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
from meinst.data.coco import read_coco
from meinst.data.images import Pixels, load_image
from meinst.detector.meinst import Predictor
from meinst.engine.checkpoint import ModelFileError
from meinst.engine.memory import keep_for_reuse


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("data", type=Path, help="folder of train/, val/ and annotations/")
    parser.add_argument("peer", help="what maskrcnn.py or `meinst train` wrote")
    parser.add_argument("--model", help="ours; the shipped one of this name by default")
    parser.add_argument("--no-sight", action="store_true", help="ours without this option")
    parser.add_argument("--pictures", type=int, default=20)
    options = parser.parse_args()
    keep_for_reuse()
    torch.set_num_threads(2)
    print(versions("meinst", "torch", "torchvision"), f"{torch.get_num_threads()} threads")

    setting = SETTINGS[options.setting]
    data = read_coco(options.data / "annotations" / "val.json", options.data / "val")
    model = meinst.load(options.model or options.setting)
    if options.no_sight:
        model.sight = model.refiner = None

    def run(side: Predictor, image: Pixels) -> object:
        return side.predict(image, score_threshold=0.0, max_detections=setting.limits[0]).rle()

    ours = partial(run, model)
    theirs: Callable[[Pixels], object]
    try:
        theirs = partial(run, meinst.load(options.peer))
    except ModelFileError:  # no model of this project
        peer = build(setting, len(data.class_names))
        peer.load_state_dict(load_file(options.peer))
        peer.eval()
        theirs = partial(find, peer, size=setting.test_size)

    rounds = []
    step = max(1, len(data.images) // options.pictures)
    for record in data.images[::step][: options.pictures]:
        assert record.path is not None
        image = load_image(record.path)
        for side in (ours, theirs):  # compiles the kernels for this size
            side(image)
        rounds.append(compare(partial(ours, image), partial(theirs, image), 1))
    speedups, mine, other = zip(*((*r.speedups, *r.ours, *r.theirs) for r in rounds), strict=True)
    print(options.setting, Ratio(speedups, mine, other))


if __name__ == "__main__":
    main()
