"""Put a trained model into the package: float16, measured as it is shipped.

It shows detections from the score on that had the best F1.

    python scripts/ship_model.py runs/nuclei/best.safetensors nuclei val/ annotations/val.json
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import meinst
from meinst.engine.checkpoint import ZOO, load_model, read_info, save_model
from meinst.engine.memory import keep_for_reuse
from meinst.engine.trainee import NAMES

source, name, images, annotations = sys.argv[1:]
keep_for_reuse()
data = meinst.read_coco(annotations, images)
recipe = read_info(source).recipe
with tempfile.TemporaryDirectory() as folder:  # the shipped file stays until all is measured
    halved = Path(folder) / f"{name}.safetensors"
    save_model(load_model(source), halved, recipe, half=True)
    model = load_model(halved)
    found = meinst.evaluate(meinst.load(halved), data).to_dict()
threshold = found["segm"]["F1_50_threshold"]
model.selection = replace(model.selection, score_threshold=threshold)
metrics = {f"val/{kind}_{key}": found[kind][key] for kind in ("bbox", "segm") for key in NAMES}
target = ZOO / f"{name}.safetensors"
save_model(model, target, recipe, half=True, metrics=metrics)
print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", found)
