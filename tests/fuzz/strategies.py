"""Strategies of damaged inputs, by target."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from fuzz.arrays import array_edits
from fuzz.edits import (
    HOSTILE,
    NUMBERS,
    STRINGS,
    apply_bytes,
    byte_edits,
    edited,
    pickle_edits,
    to_json,
    zip_edits,
)
from fuzz.pool import Case
from fuzz.specs import split_safetensors

Cases = st.SearchStrategy[Case]


def annotations(bases: Path) -> Cases:
    """Annotation files: a structural edit of four in five, an edit of bytes of the others."""
    content = (bases / "data" / "annotations.json").read_bytes()
    document = json.loads(content)
    small = {**document, "images": document["images"][:2]}
    small["annotations"] = document["annotations"][:4]
    texts = st.one_of(*[edited(small, 4).map(to_json)] * 4, _bytes(to_json(small)))
    return texts.map(lambda text: Case("annotations", "fuzzed.json", text))


def pictures(bases: Path) -> Cases:
    """Picture files, edited, or truncated at any byte."""

    def case(path: Path) -> Cases:
        content = path.read_bytes()
        cut = st.floats(0, 1).map(lambda share: content[: int(share * len(content))])
        texts = st.one_of(*[_bytes(content)] * 3, cut)
        return texts.map(lambda text: Case("pictures", f"fuzzed{path.suffix}", text))

    return st.sampled_from(sorted((bases / "pictures").iterdir())).flatmap(case)


def models(bases: Path) -> Cases:
    """Model files and recipes."""
    recipe = json.loads((bases / "recipe.json").read_text())
    edits = [edited(recipe, 2).map(to_json)] * 4 + [_bytes(to_json(recipe)), _YAML]
    recipes = st.one_of(*edits).map(lambda text: Case("models", "fuzzed.yaml", text))
    name = "model.safetensors"
    content = (bases / name).read_bytes()
    files = _specs(content).map(lambda spec: _case("models", "fuzzed.safetensors", spec, base=name))
    return st.one_of(files, files, recipes)


_YAML = st.sampled_from(
    [
        b"!!python/object/apply:os.system ['true']",
        b"model: !!python/name:os.system",
        b"a: &a [*a]",
        b"model: &m {head: *m}",
        b"base: fuzzed.yaml",
        b"base: /etc",
        b"base: " + b"x" * 5000,
        b"base: [default]",
        b"? [a, b]\n: 1",
        b"? {a: 1}\n: 1",
        b"{1: 2, null: 3}",
        b"batch_size: 2026-01-01",
        b"batch_size: 1:30:30",
        b"batch_size: !!binary aGFsbG8=",
        b"batch_size: !!set {a, b}",
        b"batch_size: 0x" + b"f" * 5000,
        b"<<: 1",
        b"model: {<<: [1, 2]}",
        b"---\na: 1\n---\nb: 1",
        b"%YAML 9.9\n---\n{}",
        b"\xff\xfe{\0}\0",
        b"a: \xed\xa0\x80",
        b"- " * 5000,
        b"l0: &l0 [a]\n"
        + b"".join(
            b"l%d: &l%d [%s]\n" % (n, n, b", ".join([b"*l%d" % (n - 1)] * 9)) for n in range(1, 12)
        ),
    ]
)


def codecs(bases: Path) -> Cases:
    """Codec files of all kinds, published ones and sums over masks."""

    def case(path: Path) -> Cases:
        kind = "moments.npz" if path.name.startswith("moments") else "fuzzed.npz"
        texts = zip_edits(path.read_bytes(), array_edits)
        return texts.map(lambda text: Case("codecs", kind, text))

    return st.sampled_from(sorted(bases.glob("*.npz"))).flatmap(case)


def weights(bases: Path) -> Cases:
    """Files of torch.save, pickles of arrays, and backbone files."""

    def case(path: Path) -> Cases:
        content = path.read_bytes()
        if path.suffix == ".pkl":
            texts = st.one_of(pickle_edits(content), pickle_edits(content), _bytes(content))
        elif path.name == "legacy.pth":
            texts = _bytes(content)
        else:
            texts = zip_edits(content, _members)
        return texts.map(lambda text: Case("weights", f"fuzzed{path.suffix}", text))

    name = "backbone.safetensors"
    backbones = _specs((bases / name).read_bytes()).map(
        lambda spec: _case("weights", "backbone-fuzzed.safetensors", spec, base=name)
    )
    files = [*sorted(bases.glob("*.pth")), *sorted(bases.glob("*.pkl"))]
    return st.one_of(st.sampled_from(files).flatmap(case), backbones)


def exports(bases: Path) -> Cases:
    """Exports with a damaged description or graph."""

    def case(path: Path) -> Cases:
        own = {"engine": path.parent.name, "file": path.name}
        content = path.read_bytes()
        if path.suffix == ".safetensors":
            specs = _specs(content)
        else:
            specs = byte_edits(2000).map(lambda edits: {"bytes": edits})
        return specs.map(lambda spec: _case("exports", "fuzzed.json", spec, **own))

    files = sorted(path for path in (bases / "exports").glob("*/*") if path.is_file())
    return st.sampled_from(files).flatmap(case) if files else st.nothing()


@st.composite
def _detections(draw: st.DrawFn) -> Case:
    count = draw(st.integers(0, 4))
    components = draw(st.sampled_from((1, 3)))
    near = st.floats(-40, 80, width=32)
    value = draw(
        st.sampled_from((near, st.floats(width=32), st.floats(-(2.0**24), 2.0**24, width=32)))
    )
    number = draw(st.sampled_from((near, st.floats(width=32))))
    names = draw(st.lists(STRINGS, min_size=draw(st.sampled_from((0, 1, 1, 1))), max_size=4))
    sides = st.one_of(st.integers(1, 60), st.sampled_from((1, 2, 4000, 2**15, 2**20, 0, -1)))
    spec: dict[str, Any] = {
        "boxes": [draw(st.lists(value, min_size=4, max_size=4)) for _ in range(count)],
        "scores": draw(st.lists(number, min_size=count, max_size=count)),
        "labels": [draw(st.integers(0, max(0, len(names) - 1))) for _ in range(count)],
        "codes": [draw(st.lists(number, min_size=components, max_size=components))] * count,
        "components": components,
        "class_names": names,
        "image_size": draw(st.one_of(st.tuples(sides, sides), st.lists(sides, max_size=3))),
        "dtypes": {},
        "columns": draw(st.sampled_from((None,) * 20 + (2, 1))),
    }
    if draw(st.integers(0, 9)) == 0:
        key = draw(st.sampled_from(("scores", "boxes", "codes")))
        spec["dtypes"][key] = draw(st.sampled_from(("float16", "float64", "bfloat16", "complex64")))
    if draw(st.integers(0, 9)) == 0:
        spec["labels"] = draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
    return Case("detections", "fuzzed.json", json.dumps(spec).encode())


def detections(bases: Path) -> Cases:  # noqa: ARG001
    """Descriptions of hand-made detections."""
    return _detections()


def datasets(bases: Path) -> Cases:
    """Data sets of every layout in which a file is damaged, missing or has another name."""
    root = bases / "layouts"

    def case(path: Path) -> Cases:
        own = {"layout": path.relative_to(root).parts[0]}
        own["file"] = str(path.relative_to(root / own["layout"]))
        content = path.read_bytes()
        edits = [_bytes(content).map(lambda new: {"content": new.hex()})] * 2
        if path.suffix == ".json":
            texts = edited(json.loads(content), 3).map(to_json)
            edits += [texts.map(lambda new: {"content": new.hex()})] * 6
        elif path.suffix in (".txt", ".yaml", ".xml"):
            words = _words(content.decode()).map(str.encode)
            edits += [words.map(lambda new: {"content": new.hex()})] * 4
        edits += [st.just({"content": None}), _NAMES.map(lambda name: {"name": name})]
        return st.one_of(*edits).map(lambda spec: _case("datasets", "fuzzed.json", spec, **own))

    files = sorted(path for path in root.rglob("*") if path.is_file())
    return st.sampled_from(files).flatmap(case)


def videos(bases: Path) -> Cases:
    """Videos, edited or cut off."""
    files = sorted((bases / "videos").glob("*"))

    def case(path: Path) -> Cases:
        content = path.read_bytes()
        cut = st.floats(0, 1).map(lambda share: content[: int(share * len(content))])
        texts = st.one_of(*[_bytes(content)] * 4, cut)
        return texts.map(lambda text: Case("videos", f"fuzzed{path.suffix}", text))

    return st.sampled_from(files).flatmap(case) if files else st.nothing()


def parquet(bases: Path) -> Cases:
    """Stored detections: other bytes, or other rows and metadata."""
    path = bases / "detections.parquet"
    if not path.exists():
        return st.nothing()
    import pyarrow as pa
    import pyarrow.parquet as pq

    content, table = path.read_bytes(), pq.read_table(path)
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}

    def write(edits: tuple[Any, Any]) -> bytes:
        rows, texts = edits
        try:
            kept = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in texts.items()}
            try:
                new = pa.Table.from_pylist(rows, table.schema)
            except (pa.ArrowException, TypeError, ValueError):
                new = pa.Table.from_pylist(rows)
            file = io.BytesIO()
            pq.write_table(new.replace_schema_metadata(kept), file)
            return file.getvalue()
        except Exception:  # of what no Parquet file can hold
            return content[:-1]

    rows, same = edited(table.to_pylist(), 3), st.just(table.to_pylist())
    pairs = st.one_of(st.tuples(rows, st.just(metadata)), st.tuples(same, edited(metadata, 1)))
    texts = st.one_of(_bytes(content), pairs.map(write), pairs.map(write))
    return texts.map(lambda text: Case("parquet", "fuzzed.parquet", text))


_NAMES = st.sampled_from(
    ["a", "a.json", "a.txt", "a.tif", "A.PNG", "data.yaml", "é.png", "x" * 200, " ", "a\nb.png"]
)


@st.composite
def _words(draw: st.DrawFn, text: str) -> str:
    """A text of which one to three words are replaced, deleted or repeated."""
    words = re.split(r"(\s+|[,:])", text)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(words) - 1))
        new = draw(st.one_of(NUMBERS.map(str), STRINGS, st.just(""), st.just(words[place] * 2)))
        words[place] = new.encode("utf-8", "replace").decode()
    return "".join(words)


# Cases are neither stored nor made smaller: a faulty one is saved as it is.
GENERATE = settings(
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)

STRATEGIES: dict[str, Callable[[Path], Cases]] = {
    "annotations": annotations,
    "pictures": pictures,
    "models": models,
    "codecs": codecs,
    "weights": weights,
    "exports": exports,
    "detections": detections,
    "datasets": datasets,
    "videos": videos,
    "parquet": parquet,
}


def _bytes(content: bytes) -> st.SearchStrategy[bytes]:
    return byte_edits().map(lambda edits: apply_bytes(content, edits))


def _members(name: str, content: bytes) -> st.SearchStrategy[bytes]:
    return pickle_edits(content) if name.endswith("data.pkl") else _bytes(content)


def _case(target: str, name: str, spec: dict[str, Any], **more: str) -> Case:
    return Case(target, name, json.dumps(spec | more).encode())


_TENSOR_EDITS = st.one_of(
    st.tuples(st.integers(0, 999), st.sampled_from(("delete", "flatten")), st.none()),
    st.tuples(st.integers(0, 999), st.just("rename"), STRINGS),
    st.tuples(st.integers(0, 999), st.just("fill"), st.sampled_from((0, 1, 127, 255))),
    st.tuples(
        st.integers(0, 999),
        st.just("dtype"),
        st.sampled_from(
            ("F32", "F64", "I8", "I64", "BF16", "BOOL", "F8_E4M3", "U16", "C64", "x", 7)
        ),
    ),
    st.tuples(st.integers(0, 999), st.sampled_from(("shape", "data_offsets")), HOSTILE),
)


@st.composite
def _specs(draw: st.DrawFn, content: bytes) -> dict[str, Any]:
    """Edits of a safetensors file: of its description, of its tensors, of its bytes."""
    known = split_safetensors(content)[0]["__metadata__"]
    spec: dict[str, Any] = {"metadata": {}, "tensors": [], "bytes": []}
    kind = draw(st.sampled_from(("metadata",) * 6 + ("tensors", "tensors", "bytes")))
    if kind == "tensors":
        spec["tensors"] = draw(st.lists(_TENSOR_EDITS, min_size=1, max_size=3))
    elif kind == "bytes":
        spec["bytes"] = draw(byte_edits(4000))
    else:
        key = draw(st.sampled_from(sorted(known)))
        spec["metadata"][key] = draw(_texts(known[key]))
    return spec


def _texts(text: str) -> st.SearchStrategy[str | None]:
    try:
        document = json.loads(text)
    except ValueError:
        return st.one_of(st.none(), STRINGS)
    structural = edited(document, 2).map(lambda value: to_json(value).decode())
    return st.one_of(*[structural] * 8, st.none(), STRINGS, NUMBERS.map(str))
