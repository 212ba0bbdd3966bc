"""MATLAB files are read as scipy reads them, unless they state more than they hold."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from meinst.data.datasets.matlab import read_matlab

scipy_io = pytest.importorskip("scipy.io")
sparse = pytest.importorskip("scipy.sparse")

SEGMENTS = np.random.default_rng(0).integers(0, 3, (37, 50)).astype(np.uint8)


def write(path: Path, *, compressed: bool) -> Path:
    borders = np.empty((2, 1), object)
    borders[:, 0] = sparse.csc_matrix(SEGMENTS == 1), sparse.csc_matrix((4000, 5000), dtype=bool)
    content = {"Segmentation": SEGMENTS, "Categories": np.array([[3], [7]]), "Boundaries": borders}
    scipy_io.savemat(path, {"GTinst": content}, do_compression=compressed)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_files_are_read_as_scipy_reads_them(compressed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", compressed=compressed)
    content = read_matlab(path)["GTinst"][0, 0]
    np.testing.assert_array_equal(content["Segmentation"], SEGMENTS)
    np.testing.assert_array_equal(content["Categories"], [[3], [7]])
    assert content["Boundaries"][1, 0].shape == (4000, 5000)
    expected = scipy_io.loadmat(path)["GTinst"][0, 0]["Boundaries"][0, 0]
    assert (content["Boundaries"][0, 0] != expected).nnz == 0


def test_lengths_beyond_the_file_take_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mat", compressed=False)
    whole = path.read_bytes()
    tracemalloc.start()
    for place in (132, 156, 160, 164, 172):  # of the lengths and sides of the first matrix
        content = bytearray(whole)
        content[place : place + 4] = struct.pack("<I", 0x70000000)
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"longer than what it is in|has only") as caught:
            read_matlab(path)
        assert not isinstance(caught.value, MemoryError)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_compressed_zeros_are_not_unpacked(tmp_path: Path) -> None:
    header = write(tmp_path / "a.mat", compressed=False).read_bytes()[:128]
    zeros = zlib.compress(bytes(2**27))
    path = tmp_path / "bomb.mat"
    path.write_bytes(header + struct.pack("<II", 15, len(zeros)) + zeros)
    with pytest.raises(ValueError, match="it unpacks to more than 64 MB"):
        read_matlab(path)


def test_other_versions_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    scipy_io.savemat(path, {"a": SEGMENTS}, format="4")
    with pytest.raises(ValueError, match="version 5 to 7"):
        read_matlab(path)
