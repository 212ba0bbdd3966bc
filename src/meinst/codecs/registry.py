"""The registry of mask codecs, and codecs built from options, configurations and files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from meinst.codecs.autoencoder import AutoencoderCodec
from meinst.codecs.base import Codec
from meinst.codecs.codec_file import CodecFile, parse_codec_file, read_codec_file
from meinst.codecs.dct import DCTCodec
from meinst.codecs.grid import GridCodec
from meinst.codecs.options import CodecKind, CodecOptions
from meinst.codecs.pca import PCACodec

CODECS: dict[str, type[Codec]] = {
    codec.kind: codec for codec in (PCACodec, DCTCodec, GridCodec, AutoencoderCodec)
}
"""All codec classes by kind; the kinds are those of ``CodecKind``."""


def codec_from_options(options: CodecOptions, class_names: tuple[str, ...] | None = None) -> Codec:
    """Build the codec that the options describe, not yet fitted.

    Args:
        options: kind and hyper-parameters.
        class_names: names of the classes; used only if ``options.per_class``.

    Raises:
        ValueError: if an option is out of range, or the class names are missing.
    """
    return CODECS[checked_kind(options.kind)].from_options(options, class_names)


def codec_from_config(config: Mapping[str, Any]) -> Codec:
    """Build a codec, not yet fitted, from the result of its ``get_config``.

    Raises:
        ValueError: if the kind is unknown, or a value is unknown, missing or invalid.
    """
    return CODECS[checked_kind(config.get("kind"))].from_config(config)


def load_codec(path: str | Path) -> Codec:
    """Read a codec of any kind, or a matrix file of the published tool.

    Raises:
        FileNotFoundError: if the file does not exist.
        CodecFileError: if the file does not hold a codec.
    """
    return _from_file(read_codec_file(path))


def codec_from_bytes(content: bytes, path: Path) -> Codec:
    """Build a codec from the result of its ``to_bytes``.

    Args:
        content: the bytes.
        path: where they come from, for error messages.

    Raises:
        CodecFileError: if they do not hold a codec.
    """
    return _from_file(parse_codec_file(io.BytesIO(content), path, len(content)))


def _from_file(file: CodecFile) -> Codec:
    if file.kind is None:
        return PCACodec.from_file(file)
    if file.kind not in CODECS:
        raise file.error(f"its kind must be one of {', '.join(CODECS)}", repr(file.kind))
    return CODECS[file.kind].from_file(file)


def checked_kind(kind: object) -> CodecKind:
    """Check that a kind of codec exists, and return it.

    Raises:
        ValueError: listing the known kinds.
    """
    if not isinstance(kind, str) or kind not in CODECS:
        raise ValueError(f"A codec's kind must be one of {', '.join(CODECS)}, got {kind!r}.")
    return cast("CodecKind", kind)
