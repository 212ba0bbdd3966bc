"""Mask codecs: binary masks to short vectors and back."""

from meinst.codecs.base import Codec, CodecFileError, NotFittedError
from meinst.codecs.moments import Moments
from meinst.codecs.pca import PCACodec

__all__ = ["Codec", "CodecFileError", "Moments", "NotFittedError", "PCACodec"]
