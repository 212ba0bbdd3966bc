"""Single-shot instance segmentation by mask encoding: every mask is a short vector.

>>> import meinst
>>> model = meinst.load("photos")  # doctest: +SKIP
>>> detections = model.predict("picture.jpg")  # doctest: +SKIP
>>> detections.masks()  # doctest: +SKIP

All names are imported on first use: torch takes seconds to import, and ``meinst --help`` does not
need it. The stub ``__init__.pyi`` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
