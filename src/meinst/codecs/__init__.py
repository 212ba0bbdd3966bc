"""Mask codecs: binary masks to short vectors and back."""

from meinst.codecs.autoencoder import AutoencoderCodec
from meinst.codecs.base import Codec, NotFittedError
from meinst.codecs.codec_file import CodecFileError
from meinst.codecs.dct import DCTCodec
from meinst.codecs.grid import GridCodec
from meinst.codecs.kinds import codec_from_config, load_codec
from meinst.codecs.linear import LinearCodec
from meinst.codecs.moments import ClassMoments, Moments, load_moments
from meinst.codecs.pca import PCACodec

__all__ = [
    "AutoencoderCodec",
    "ClassMoments",
    "Codec",
    "CodecFileError",
    "DCTCodec",
    "GridCodec",
    "LinearCodec",
    "Moments",
    "NotFittedError",
    "PCACodec",
    "codec_from_config",
    "load_codec",
    "load_moments",
]
