"""Strategies of damaged ``.npy`` members of codec files."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzz.edits import HOSTILE, apply_bytes, byte_edits, edited, to_json

_DTYPES = ("<f8", ">f4", "<f2", "<i8", "<u1", "?", "<c8", "<U4", "S3", "<M8[s]", "V4")
_DESCRIPTIONS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 99999999999999999999), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': 1, 'shape': (), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<U999999999', 'fortran_order': False, 'shape': (), }",
    "{'descr': '<f4', 'shape': (True,), 'fortran_order': False}",
    "{'descr': None, 'fortran_order': None, 'shape': None}",
    "__import__('sys').audit('meinst.executed')",
    "(" * 300,
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",), }",
)


def array_edits(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    """Edited contents of a member of a codec file."""
    array = np.load(io.BytesIO(content))
    tags = st.sampled_from((b"", b"\x93NUMPY", content[:20]))
    raw = st.one_of(byte_edits(80).map(lambda edits: apply_bytes(content, edits)), tags)
    headers = st.sampled_from(_DESCRIPTIONS).map(_with_header)
    if array.dtype.kind != "U":
        return st.one_of(_values(array), _values(array), raw, headers)
    text = str(array)
    if name.startswith("config"):
        document = json.loads(text)
        configs = st.one_of(edited(document, 2), HOSTILE)
        texts = configs.map(lambda value: to_json(value).decode())
    else:
        texts = HOSTILE.map(str)
    return st.one_of(*[texts.map(_save)] * 4, HOSTILE.map(_save), raw, headers)


@st.composite
def _values(draw: st.DrawFn, array: np.ndarray[Any, Any]) -> bytes:
    kind = draw(st.sampled_from(("dtype", "shape", "value", "value", "fill")))
    if kind == "dtype":
        try:
            return _save(array.astype(draw(st.sampled_from(_DTYPES))))
        except (ValueError, TypeError):
            return b""
    if kind == "shape":
        sides = draw(st.lists(st.integers(0, 20), max_size=4))
        return _save(np.resize(array, sides))
    number = draw(st.sampled_from((0, -1, 2**62, 1e30, -1e30, float("nan"), float("inf"), 3e38)))
    with np.errstate(all="ignore"):
        values = array.astype(array.dtype, copy=True).reshape(-1)
        place = slice(None) if kind == "fill" else draw(st.integers(0, max(0, values.size - 1)))
        new = np.array(number, np.float64).astype(values.dtype)
        if values.size:
            values[place] = new
    return _save(values.reshape(array.shape))


def _save(value: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        array = np.array(value)
        np.save(buffer, array, allow_pickle=array.dtype.hasobject)
    except Exception:  # lone surrogates, ragged lists
        np.save(buffer, np.array(ascii(value)))
    return buffer.getvalue()


def _with_header(text: str) -> bytes:
    return (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text.encode() + b"\n" + bytes(64)
    )
