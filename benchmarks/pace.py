"""Seconds for a picture, of a model and of the Mask R-CNN that maskrcnn.py trained, in turns.

    python benchmarks/pace.py photos ../../shared/data/photos /tmp/peer/ema.safetensors

From the decoded picture to run lengths, each at its own input size, with every detection that AP
counts; of each picture one untimed call of both sides, then one timed. Needs
`pip install '.[train]'`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from maskrcnn import SETTINGS, build, find
from measure import Ratio, compare, versions
from safetensors.torch import load_file

import meinst
from meinst.data.coco import read_coco
from meinst.data.images import Pixels, load_image
from meinst.engine.memory import keep_for_reuse


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("data", type=Path, help="folder of train/, val/ and annotations/")
    parser.add_argument("weights", type=Path, help="what maskrcnn.py wrote")
    parser.add_argument("--model", help="ours; the shipped one of this name by default")
    parser.add_argument("--pictures", type=int, default=20)
    options = parser.parse_args()
    keep_for_reuse()
    torch.set_num_threads(2)
    print(versions("meinst", "torch", "torchvision"), f"{torch.get_num_threads()} threads")

    setting = SETTINGS[options.setting]
    data = read_coco(options.data / "annotations" / "val.json", options.data / "val")
    peer = build(setting, len(data.class_names))
    peer.load_state_dict(load_file(options.weights))
    peer.eval()
    model = meinst.load(options.model or options.setting)
    limit = setting.limits[0]

    def ours(image: Pixels) -> object:
        return model.predict(image, score_threshold=0.0, max_detections=limit).rle()

    def theirs(image: Pixels) -> object:
        return find(peer, image, setting.test_size)

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
