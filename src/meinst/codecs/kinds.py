"""Codecs by the kind that files and configurations name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meinst.codecs.autoencoder import AutoencoderCodec
from meinst.codecs.base import Codec
from meinst.codecs.codec_file import read_codec_file
from meinst.codecs.dct import DCTCodec
from meinst.codecs.grid import GridCodec
from meinst.codecs.pca import PCACodec

KINDS: dict[str, type[Codec]] = {
    kind.kind: kind for kind in (PCACodec, DCTCodec, GridCodec, AutoencoderCodec)
}


def load_codec(path: str | Path) -> Codec:
    """Read a codec of any kind, a published matrix included.

    Raises:
        FileNotFoundError: there is no such file.
        CodecFileError: the file holds no codec.
    """
    file = read_codec_file(path)
    if file.kind is None:
        return PCACodec.from_file(file)
    if file.kind not in KINDS:
        raise file.error(f"its kind must be one of {', '.join(KINDS)}", repr(file.kind))
    return KINDS[file.kind].from_file(file)


def codec_from_config(config: Mapping[str, Any]) -> Codec:
    """Build an unfitted codec from what its ``get_config`` returned.

    Raises:
        ValueError: an unknown kind, or an unknown, missing or wrong value.
    """
    kind = config.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"A codec's kind must be one of {', '.join(KINDS)}, found {kind!r}.")
    return KINDS[kind].from_config(config)
