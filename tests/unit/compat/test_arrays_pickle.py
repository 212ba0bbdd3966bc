import contextlib
import os
import pickle
import resource
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meinst.compat import arrays_pickle
from meinst.compat.arrays_pickle import read_pickle
from meinst.compat.errors import ForeignFileError


def write(content: Any, folder: Path, protocol: int = 2) -> Path:
    path = folder / "file.pkl"
    path.write_bytes(
        content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol)
    )
    return path


@pytest.mark.parametrize("protocol", range(6))
def test_reads_arrays_of_all_protocols(protocol: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "empty": np.zeros((0, 3), np.float32),
        "scalar": np.array(2.5),
        "c": rng.normal(size=(3, 4, 5)).astype(np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "swapped": rng.normal(size=6).astype(">f4"),
        "integers": np.arange(-3, 3, dtype=np.int16),
        "booleans": np.array([True, False]),
    }
    path = write({"model": OrderedDict(arrays), "n": [1, (2.0, "x", None)]}, tmp_path, protocol)
    content = read_pickle(path)
    assert content["n"] == [1, (2.0, "x", None)]
    assert list(content["model"]) == list(arrays)
    for name, array in arrays.items():
        found = content["model"][name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array, strict=True)
        assert found.flags.writeable


def test_reads_pickles_of_python_2_and_numpy_1(tmp_path: Path) -> None:
    # Python 2 writes bytes as strings ("U", a length, the bytes); the names are those of NumPy 1.
    pickled = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R"
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + struct.pack("<ff", 1.0, -2.0)
        + b"tb."
    )
    found = read_pickle(write(pickled, tmp_path))
    assert found.dtype == np.float32
    assert found.tolist() == [1.0, -2.0]


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.mkdir, eval, Path.mkdir, torch.load])
def test_nothing_is_executed(function: Any, protocol: int, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    argument = f"__import__('os').mkdir({str(trap)!r})" if function is eval else str(trap)
    path = write({"w": np.zeros(2), "x": Call(function, argument)}, tmp_path, protocol)
    with pytest.raises(ForeignFileError, match=r"file\.pkl: .+nothing was executed"):
        read_pickle(path)
    assert not trap.exists()


def test_ordinary_unpickling_executes_the_call(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Call(os.mkdir, str(tmp_path / "trap"))))
    assert (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "content",
    [
        np.array([{"a": 1}], dtype=object),
        np.array(["text"]),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        np.zeros(2, dtype="M8[s]"),
        np.zeros(2, dtype="V8"),
    ],
)
def test_rejects_arrays_of_other_types(content: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match=r"file\.pkl"):
        read_pickle(write(content, tmp_path))


@pytest.mark.parametrize("content", [np.float32(3), {1, 2}, torch.zeros(2), Path("x"), 1j])
def test_rejects_other_objects(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ForeignFileError, match="nothing was executed"):
        read_pickle(write(content, tmp_path))


def test_rejects_an_array_with_too_few_values(tmp_path: Path) -> None:
    pickled = pickle.dumps(np.arange(6, dtype=np.float32), protocol=4)
    assert pickled.count(b"K\x06\x85") == 1  # the shape (6,)
    with pytest.raises(ForeignFileError, match=r"6 values .+\(7,\)"):
        read_pickle(write(pickled.replace(b"K\x06\x85", b"K\x07\x85"), tmp_path))


def test_rejects_damaged_pickles(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": np.arange(50.0), "b": [1, 2]}, protocol=2)
    for length in range(0, len(whole) - 1, 7):
        with pytest.raises(ForeignFileError, match="damaged"):
            read_pickle(write(whole[:length], tmp_path))


def test_stand_ins_cannot_be_changed(tmp_path: Path) -> None:
    # Push the stand-in, then BUILD it with a state that sets attributes.
    before = dict(vars(arrays_pickle._Bytes))
    state = b"N}X\x07\x00\x00\x00__new__N\x73\x86"  # (None, {"__new__": None})
    for name in (b"_codecs\nencode", b"numpy\ndtype", b"numpy\nndarray"):
        with pytest.raises(ForeignFileError, match="damaged"):
            read_pickle(write(b"\x80\x02c" + name + b"\n" + state + b"b.", tmp_path))
    assert dict(vars(arrays_pickle._Bytes)) == before


def test_repeated_objects_are_converted_once(tmp_path: Path) -> None:
    """Sixty lists, each containing the previous one twice, would be 2 ** 60 copies."""
    array = np.arange(3.0)
    nested: list[Any] = [array, array]
    for _ in range(60):
        nested = [nested, nested]
    content = read_pickle(write(nested, tmp_path))
    for _ in range(60):
        assert content[0] is content[1]
        content = content[0]
    np.testing.assert_array_equal(content[1], array)


@pytest.mark.parametrize(
    "operation",
    [
        pickle.LONG_BINPUT + struct.pack("<I", 2**24),  # an index of the memo
        pickle.NONE + pickle.BYTEARRAY8 + struct.pack("<Q", 2**28),
        pickle.NONE + pickle.BINBYTES8 + struct.pack("<Q", 2**28),
        pickle.NONE + pickle.FRAME + struct.pack("<Q", 2**28),
        pickle.NONE + pickle.LONG4 + struct.pack("<i", 2**28),
    ],
)
def test_declared_sizes_take_no_memory(operation: bytes, tmp_path: Path) -> None:
    path = write(pickle.PROTO + b"\x05" + pickle.EMPTY_DICT + operation + pickle.STOP, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with contextlib.suppress(ForeignFileError):
        read_pickle(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**14  # kilobytes
