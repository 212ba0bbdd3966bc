"""Single-shot instance segmentation by mask encoding: every mask is a short vector.

>>> import meinst
>>> model = meinst.load("photos")  # doctest: +SKIP
>>> found = model.predict("picture.jpg")  # doctest: +SKIP
>>> found.masks()  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meinst.codecs import Codec, PCACodec
    from meinst.data.coco import CocoData, read_coco
    from meinst.data.images import load_image
    from meinst.detections import Detections
    from meinst.detector.meinst import MEInst
    from meinst.engine.checkpoint import list_models, save_model
    from meinst.engine.evaluate import evaluate
    from meinst.engine.runtime import load

__version__ = "0.1.0"
__all__ = [
    "CocoData",
    "Codec",
    "Detections",
    "MEInst",
    "PCACodec",
    "evaluate",
    "list_models",
    "load",
    "load_image",
    "read_coco",
    "save_model",
]

_PLACES = {
    "CocoData": ("meinst.data.coco", "CocoData"),
    "Codec": ("meinst.codecs", "Codec"),
    "Detections": ("meinst.detections", "Detections"),
    "MEInst": ("meinst.detector.meinst", "MEInst"),
    "PCACodec": ("meinst.codecs", "PCACodec"),
    "evaluate": ("meinst.engine.evaluate", "evaluate"),
    "list_models": ("meinst.engine.checkpoint", "list_models"),
    "load": ("meinst.engine.runtime", "load"),
    "load_image": ("meinst.data.images", "load_image"),
    "read_coco": ("meinst.data.coco", "read_coco"),
    "save_model": ("meinst.engine.checkpoint", "save_model"),
}


def __getattr__(name: str) -> Any:
    # On demand (PEP 562): torch takes seconds to import, and `meinst --help` needs none of it.
    if name not in _PLACES:
        raise AttributeError(f"module 'meinst' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
