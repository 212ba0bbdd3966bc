"""Edits of safetensors files as small descriptions, so that the corpus holds no weights."""

from __future__ import annotations

import json
import struct
from typing import Any

from fuzz.edits import apply_bytes

_LENGTH = 8  # bytes before the header


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the values of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:_LENGTH])
    header: dict[str, Any] = json.loads(content[_LENGTH : _LENGTH + length])
    return header, content[_LENGTH + length :]


def damaged_safetensors(content: bytes, spec: dict[str, Any]) -> bytes:
    """Apply edits to a safetensors file.

    Args:
        content: the valid file.
        spec: ``metadata`` (new texts by key; None removes one), ``tensors`` (number of a tensor,
            kind of the edit, a value) and ``bytes`` (edits of the result).
    """
    if not (spec["metadata"] or spec["tensors"]):
        return apply_bytes(content, spec["bytes"])
    header, values = split_safetensors(content)
    names = sorted(header.keys() - {"__metadata__"})
    for key, text in spec["metadata"].items():
        header["__metadata__"][key] = text
        if text is None:
            del header["__metadata__"][key]
    for number, kind, value in spec["tensors"]:
        # Each tensor is edited at most once, and none that an edit has added.
        values = _edit_tensor(header, values, names.pop(number % len(names)), kind, value)
    text = json.dumps(header).encode()
    return apply_bytes(struct.pack("<Q", len(text)) + text + values, spec["bytes"])


def _edit_tensor(header: dict[str, Any], values: bytes, name: str, kind: str, value: Any) -> bytes:
    tensor = header[name]
    if kind == "delete":
        del header[name]
    elif kind == "rename":
        header[value] = header.pop(name)
    elif kind == "fill":  # the same byte everywhere: 255 gives NaN
        start, end = tensor["data_offsets"]
        values = values[:start] + bytes([value]) * (end - start) + values[end:]
    elif kind == "flatten":
        size = 1
        for side in tensor["shape"]:
            size *= side
        tensor["shape"] = [size]
    else:  # dtype, shape, data_offsets
        tensor[kind] = value
    return values
