"""Mask codecs: encode binary masks as short vectors, and decode them.

Names are imported on first use, so that command lines can read ``CodecOptions`` without importing
torch. The stub ``__init__.pyi`` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
