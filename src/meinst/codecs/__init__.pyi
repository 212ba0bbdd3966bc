from .autoencoder import AutoencoderCodec
from .base import Codec, NotFittedError
from .codec_file import CodecFileError
from .dct import DCTCodec
from .grid import GridCodec
from .linear import LinearCodec
from .moments import ClassMoments, Moments, load_moments
from .options import CodecKind, CodecOptions
from .pca import PCACodec
from .registry import codec_from_config, codec_from_options, load_codec

__all__ = [
    "AutoencoderCodec",
    "ClassMoments",
    "Codec",
    "CodecFileError",
    "CodecKind",
    "CodecOptions",
    "DCTCodec",
    "GridCodec",
    "LinearCodec",
    "Moments",
    "NotFittedError",
    "PCACodec",
    "codec_from_config",
    "codec_from_options",
    "load_codec",
    "load_moments",
]
