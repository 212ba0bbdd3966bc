"""Strategies that damage documents, bytes, archives and pickles the way hostile files would."""

from __future__ import annotations

import copy
import io
import json
import pickletools
import warnings
import zipfile
from typing import Any

from hypothesis import strategies as st

BRACKETS = "[" * 100_000
_RAW = {f"@raw{n}@": text for n, text in enumerate(("9" * 5000, "1e400", "-0", BRACKETS))}
_RAW |= {"@nested@": BRACKETS + "]" * 100_000, "@objects@": '{"a":' * 100_000}

NUMBERS = st.one_of(
    st.sampled_from(
        [
            *(0, -1, 1, 2, 3, 7, 0.5, -0.5, 1e-320, 1e9, 1e20, 1e308, -1e308, 2**15, 2**16, 2**24),
            *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64, 10**30),
            *(float("nan"), float("inf"), float("-inf"), True, False, 10_000, 100_000, 1_000_000),
        ]
    ),
    st.integers(-(2**70), 2**70),
    st.floats(),
)
STRINGS = st.one_of(
    st.sampled_from(
        [
            *("", " ", "a\nb", "\x1b[31mred\x1b[0m", "\ud800", "\udc80\ud800", "\x00", "\u202e"),
            *("../../etc/passwd", "/etc/passwd", "C:\\x", "\\\\host\\share", "é😀", "%s%n{0}{}"),
            *("__class__", "1", "NaN", "pca", "resnet50", "eval(1)", "~", "-", "\r\nerror: forged"),
            *("\x7f", "a" * 9999, "None"),
        ]
    ),
    st.text(max_size=12),
)
_SQUARE = [[0, 0, 9, 0, 9, 9, 0, 9]]
STRUCTURES = st.sampled_from(
    [
        *(None, [], {}, [[]], [None], [[[]]], [{}], {"a": {}}, [[None]], [1], ["a"], [[1, 2]]),
        *([0] * 1000, [1e9] * 8, [[1e9, 0, 1e9, 1e9, 0, 1e9]], [[0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]]),
        *([[0.5] * 7], [-1, 2], [2**40, 2**40], _SQUARE * 50, [32, 8], [8, 16, 32] * 10),
        *({"size": [64, 64], "counts": "PPPPP1"}, {"size": [64, 64], "counts": [4096]}),
        *({"size": [2**31, 2**31], "counts": [2**62]}, {"size": [64, 64], "counts": "\ud800é"}),
        *({"size": [1, 1], "counts": ""}, {"size": [0, 0], "counts": []}, {"counts": [1]}),
        *({"size": [64, 64], "counts": [-1, 4097]}, {"size": [64.5, "64"], "counts": [None]}),
        *({"size": 3}, *_RAW),
    ]
).map(copy.deepcopy)  # a further edit may change it
HOSTILE = st.one_of(NUMBERS, STRINGS, STRUCTURES)
_KEYS = st.one_of(st.sampled_from(["id", "", "kind", "size", "0", "\ud800", "a\nb"]), STRINGS)


class Twin(str):
    """A key of a dict that is written as its text but does not replace an equal key."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def to_json(document: Any) -> bytes:
    """JSON, with the raw texts (long numbers, nested brackets) that ``json`` would not write."""
    text = json.dumps(document)
    for name, raw in _RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text.encode()


@st.composite
def edited(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A copy of nested lists and dicts with one to ``most`` edits."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, most))):
        places = [*_places(document)]
        if not places:
            return draw(HOSTILE)
        _edit(draw, *draw(st.sampled_from(places)))
    return document


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a document."""
    found: list[tuple[Any, Any]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        found.append((value, key))
        if isinstance(value[key], (dict, list)):
            found += _places(value[key])
    return found


def _edit(draw: st.DrawFn, parent: Any, key: Any) -> None:
    kind = draw(
        st.sampled_from(("replace", "replace", "number", "delete", "copy", "rename", "wrap"))
    )
    if kind == "replace":
        parent[key] = draw(HOSTILE)
    elif kind == "number":
        parent[key] = draw(NUMBERS)
    elif kind == "delete":
        del parent[key]
    elif kind == "wrap":
        parent[key] = draw(st.sampled_from(([parent[key]], {"a": parent[key]})))
    elif isinstance(parent, list):
        parent.append(parent[key])
    elif kind == "copy":
        parent[Twin(key)] = draw(HOSTILE)
    else:
        parent[draw(_KEYS)] = parent.pop(key)


@st.composite
def byte_edits(draw: st.DrawFn, head: int = 256) -> list[list[Any]]:
    """One to four edits for :func:`apply_bytes`; half of them in the first ``head`` bytes."""
    edits: list[list[Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("set", "set", "number", "number", "cut", "delete", "insert")))
        place: Any = draw(st.one_of(st.integers(0, head), st.floats(0, 1)))
        data = draw(st.binary(min_size=1, max_size=8))
        if kind == "number":
            size = draw(st.sampled_from((1, 2, 4, 8)))
            value = draw(
                st.sampled_from((0, 1, 2, 3, 16, 255, 0x7FFF, 2**31 - 1, 2**32, 2**63, -1))
            )
            data = (value % 2 ** (8 * size)).to_bytes(
                size, draw(st.sampled_from(("big", "little")))
            )
        edits.append(["set" if kind == "number" else kind, place, data.hex()])
    return edits


def apply_bytes(content: bytes, edits: list[list[Any]]) -> bytes:
    """Apply edits: the place is an offset, or a share of the length if it is a float."""
    for kind, place, data in edits:
        start = int(place * len(content)) if isinstance(place, float) else min(place, len(content))
        new = bytes.fromhex(data)
        if kind == "cut":
            content = content[:start]
        elif kind == "delete":
            content = content[:start] + content[start + new[0] :]
        else:
            end = start + (len(new) if kind == "set" else 0)
            content = content[:start] + new + content[end:]
    return content


_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
_BOMB = bytes(80_000_000)


@st.composite
def zip_edits(draw: st.DrawFn, content: bytes, members: Any = None) -> bytes:
    """A zip archive of which members are edited, renamed, repeated, or compressed in another way.

    Args:
        draw: given by hypothesis.
        content: the archive.
        members: ``members(name, content)`` is a strategy of edited contents of a member.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    index = draw(st.integers(0, len(entries) - 1))
    kind = draw(
        st.sampled_from(("content",) * 6 + ("bytes", "delete", "copy", "rename", "bomb", "raw"))
    )
    method = draw(st.sampled_from((zipfile.ZIP_STORED,) * 5 + _METHODS))
    name, data = entries[index]
    if kind == "content" and members is not None:
        entries[index] = name, draw(members(name, data))
    elif kind in ("bytes", "content"):
        entries[index] = name, apply_bytes(data, draw(byte_edits(64)))
    elif kind == "delete":
        del entries[index]
    elif kind == "copy":
        entries.append((name, apply_bytes(data, draw(byte_edits(64)))))
    elif kind == "rename":
        new = draw(STRINGS).encode("utf-8", "replace").decode()
        entries[index] = new + draw(st.sampled_from(("", ".npy", "/data.pkl"))), data
    elif kind == "bomb":
        entries[index], method = (name, data + _BOMB), zipfile.ZIP_DEFLATED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of repeated names
        for each, value in entries:
            archive.writestr(zipfile.ZipInfo(each or "x"), value, method)
    result = buffer.getvalue()
    return apply_bytes(result, draw(byte_edits())) if kind == "raw" else result


MARK = "__import__('sys').audit('meinst.executed')"
_CODE = [f"c{m}\n{n}\n(S{a!r}\ntR".encode() for m, n, a in (
    ("os", "system", "true"), ("posix", "system", "true"), ("builtins", "eval", MARK),
    ("__builtin__", "eval", MARK), ("builtins", "exec", MARK), ("subprocess", "getoutput", "true"),
    ("socket", "gethostbyname", "localhost"), ("numpy", "load", "/etc/hostname"),
    ("torch", "load", "/etc/hostname"), ("collections", "OrderedDict", "ab"),
    ("numpy.core.multiarray", "_reconstruct", "a"), ("_codecs", "encode", "é"),
    ("torch._utils", "_rebuild_tensor_v2", "a"), ("importlib", "import_module", "this"),
)]  # fmt: skip
_OPCODES = [
    *_CODE,
    *(b"r\xff\xff\xff\xff", b"r\x00\x00\x00\x7f", b"p4294967295\n", b"j\xff\xff\xff\xff", b"h\xff"),
    *(b"\x8b\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\xff", b"0", b"."),
    *(b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"X\xff\xff\xff\x7f", b"\x8d" + b"\xff" * 8, b"("),
    *(
        b"\x96\xff\xff\xff\xff\xff\x00\x00\x00",
        b"L" + b"9" * 5000 + b"L\n",
        b"I" + b"9" * 5000 + b"\n",
    ),
    *(
        b"]" * 2000 + b"a" * 1999,
        b"K\x00",
        b"M\xff\xff",
        b"N",
        b"}",
        b"]",
        b")",
        b"\x85",
        b"t",
        b"b",
    ),
    *(b"R", b"\x81", b"\x93", b"Q", b"Pabc\n", b"s", b"u", b"\x88", b"F1e400\n", b"Fnan\n", b"2"),
    *(b"\x8c\x02\xed\xa0", b"S'\\xff'\n", b"V\\ud800\n", b"K\x00\x85", b"J\xff\xff\xff\xff\x85"),
]


@st.composite
def pickle_edits(draw: st.DrawFn, content: bytes) -> bytes:
    """A pickle with operations removed, repeated, exchanged or replaced by hostile ones."""
    starts = [place for _, _, place in pickletools.genops(content)]
    operations = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(1, max(1, len(operations) - 1)))
        kind = draw(st.sampled_from(("insert", "replace", "delete", "copy", "bytes")))
        if kind == "insert":
            operations.insert(index, draw(st.sampled_from(_OPCODES)))
        elif kind == "copy":
            operations.insert(index, draw(st.sampled_from(operations)))
        elif index < len(operations):
            new = {
                "replace": draw(st.sampled_from(_OPCODES)),
                "delete": b"",
                "bytes": apply_bytes(operations[index], draw(byte_edits(4))),
            }
            operations[index] = new[kind]
    return b"".join(operations)
