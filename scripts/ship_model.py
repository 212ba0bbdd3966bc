"""Put a trained model into the package: float16, with the figures that were measured.

It shows detections from the score on that had the best F1.

    meinst evaluate --model runs/nuclei/best.safetensors --images val --annotations val.json \
        --output metrics.json
    python scripts/ship_model.py runs/nuclei/best.safetensors nuclei metrics.json
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

from meinst.engine.checkpoint import ZOO, load_model, read_info, save_model
from meinst.engine.trainee import NAMES

source, name, measured = sys.argv[1:]
content = json.loads(Path(measured).read_text())
metrics = {f"val/{kind}_{key}": content[kind][key] for kind in ("bbox", "segm") for key in NAMES}
target = ZOO / f"{name}.safetensors"
model = load_model(source)
threshold = content["segm"]["F1_50_threshold"]
model.selection = replace(model.selection, score_threshold=threshold)
save_model(model, target, read_info(source).recipe, half=True, metrics=metrics)
print(f"{target}: {target.stat().st_size / 1e6:.1f} MB", metrics)
