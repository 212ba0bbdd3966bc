import io
import json
import os
import pickle
import resource
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from meinst.codecs import CodecFileError, PCACodec, load_codec
from meinst.codecs.registry import CODECS


def masks() -> torch.Tensor:
    return torch.rand(200, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.5


def published_arrays() -> dict[str, np.ndarray]:
    """Arrays in the published layout, K = 3 and S = 6, made without this project."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(36, 3)))[0].T
    return {
        "components_c": basis[None].astype(np.float32),
        "mean_c": rng.normal(size=(1, 36)).astype(np.float32),
        "ratio_c": np.array([[0.5, 0.2, 0.1]], dtype=np.float32),
        "explained_variance_c": np.array([[9.0, 4.0, 1.0]], dtype=np.float32),
    }


def test_reads_published_file(tmp_path: Path) -> None:
    arrays = published_arrays()
    path = tmp_path / "coco_2017_train_class_agnosticTrue_whitenTrue_sigmoidTrue_60.npz"
    np.savez(path, **arrays)
    codec = PCACodec.load(path)
    assert (codec.n_components, codec.mask_size, codec.sigmoid, codec.whiten) == (3, 6, True, True)
    # The code (1, 0, 0) is one deviation, 3, along the first component.
    soft = codec.inverse_logits(torch.tensor([[1.0, 0, 0]])).flatten()
    expected = 3 * arrays["components_c"][0, 0] + arrays["mean_c"][0]
    np.testing.assert_allclose(soft.numpy(), expected, atol=1e-6)
    plain = PCACodec.load(path, sigmoid=False, whiten=False)
    assert (plain.sigmoid, plain.whiten) == (False, False)


def test_writes_published_arrays(tmp_path: Path) -> None:
    codec = PCACodec(4, 6).fit(masks())
    codec.save(tmp_path / "codec.npz")
    with np.load(tmp_path / "codec.npz", allow_pickle=False) as file:
        assert file["kind"] == "pca"
        assert file["version"] == 1
        arrays = {key: file[key] for key in file.files if key.endswith("_c")}
        shapes = {key: array.shape for key, array in arrays.items()}
        assert all(array.dtype == np.float32 for array in arrays.values())
    assert shapes == {
        "components_c": (1, 4, 36),
        "mean_c": (1, 36),
        "ratio_c": (1, 4),
        "explained_variance_c": (1, 4),
    }


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
def test_saved_codec_loads(tmp_path: Path, sigmoid: bool, whiten: bool) -> None:
    codec = PCACodec(4, 6, sigmoid=sigmoid, whiten=whiten).fit(masks())
    codec.save(tmp_path / "codec.bin")
    again = PCACodec.load(tmp_path / "codec.bin")
    assert again.get_config() == codec.get_config()
    for name, buffer in codec.state_dict().items():
        assert torch.equal(again.state_dict()[name], buffer), name
    assert torch.equal(again.transform(masks()), codec.transform(masks()))
    again.save(tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "codec.bin").read_bytes()


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "codec.npz"
    codec = PCACodec(4, 6).fit(masks())
    codec.save(path)
    before = path.read_bytes()

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        PCACodec(2, 6).fit(masks()).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_file_and_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        PCACodec.load(tmp_path / "none.npz")
    PCACodec(4, 6).fit(masks()).save(tmp_path / "made" / "codec.npz")
    assert PCACodec.load(tmp_path / "made" / "codec.npz").fitted


def changed(**arrays: np.ndarray) -> dict[str, np.ndarray]:
    return published_arrays() | arrays


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"weights": np.zeros(3)}, "components_c; found .*weights"),
        (changed(components_c=np.zeros((3, 36), np.float32)), r"\(1 or C, K, D\); found \(3, 36\)"),
        (
            changed(components_c=np.ones((80, 3, 36), np.float32)),
            r"mean_c must have the shape \(80, 36\); found \(1, 36\)",
        ),
        (changed(components_c=np.ones((1, 3, 35), np.float32)), "D a square number"),
        (changed(components_c=np.ones((1, 37, 36), np.float32)), "K from 1 to D"),
        (changed(components_c=np.zeros((1, 3, 36), np.float32)), "fitted codec; found zeros only"),
        (changed(mean_c=np.zeros((36,), np.float32)), r"mean_c .*\(1, 36\); found \(36,\)"),
        (changed(ratio_c=np.zeros((1, 4), np.float32)), r"ratio_c .*\(1, 3\); found \(1, 4\)"),
        (changed(mean_c=np.full((1, 36), np.nan, np.float32)), "mean_c must be finite"),
        (changed(mean_c=np.zeros((1, 36), np.int64)), "mean_c .*; found int64"),
        (
            changed(explained_variance_c=np.array([[1, 0, -1]], np.float32)),
            "variances must not be negative; found -1.0",
        ),
        (changed(sigmoid=np.array(True)), "sigmoid must be an array of numbers; found bool"),
        (changed(kind=np.array("pca")), r"config; found \['kind'\]"),
        (
            changed(kind=np.array("pca"), version=np.array(2), config=np.array("{}")),
            "version must be 1 .*; found 2",
        ),
        (
            changed(kind=np.array("pca"), version=np.array(1), config=np.array("{")),
            "config must be JSON",
        ),
        (
            changed(kind=np.array("dct"), version=np.array(1), config=np.array("{}")),
            "kind must be 'pca'; found 'dct'",
        ),
    ],
)
def test_faulty_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "faulty.npz", **arrays)
    with pytest.raises(CodecFileError, match=message) as caught:
        PCACodec.load(tmp_path / "faulty.npz")
    assert str(tmp_path / "faulty.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


class Trap:
    """Leaves a trace when unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trap-was-sprung",)


def test_does_not_unpickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    objects = np.array([[Trap()]], dtype=object)
    np.savez(tmp_path / "objects.npz", **changed(mean_c=objects))
    with pytest.raises(CodecFileError, match="arrays of numbers; found objects"):
        PCACodec.load(tmp_path / "objects.npz")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CodecFileError, match=r"an \.npz archive"):
        PCACodec.load(tmp_path / "pickle.npz")
    assert not (tmp_path / "trap-was-sprung").exists()


def test_files_of_other_kinds(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(CodecFileError, match=r"an \.npz archive"):
        PCACodec.load(tmp_path / "array.npy")
    for name, content in (("empty", b""), ("text", b"hello"), ("zip", b"PK\x03\x04 broken")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CodecFileError, match=r"an \.npz archive"):
            PCACodec.load(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        PCACodec.load(tmp_path)


def npz(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def npy_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()


def test_archives_that_would_fill_the_memory_are_not_unpacked(tmp_path: Path) -> None:
    zeros = npy_header((2**25,)) + bytes(2**27)
    bomb = npz(tmp_path / "bomb.npz", {"mean_c.npy": zeros}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 2**20
    claim = npz(tmp_path / "claim.npz", {"mean_c.npy": npy_header((2**40,)) + bytes(100)})
    packed = npz(tmp_path / "packed.npz", {"mean_c.npy": zeros[:1000]}, zipfile.ZIP_LZMA)
    tracemalloc.start()
    for path, found in ((bomb, "would unpack"), (claim, "shape"), (packed, "deflate")):
        with pytest.raises(CodecFileError, match=rf"{path.name}.*found.*{found}"):
            PCACodec.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**24


def test_text_of_impossible_characters_is_an_error(tmp_path: Path) -> None:
    text = np.array([0x7FFFFFFF, 0x20], dtype="<u4").view("<U2").reshape(())
    np.savez(tmp_path / "text.npz", kind=np.array("pca"), version=np.array(1), config=text)
    with pytest.raises(CodecFileError, match=r"text\.npz.*text that is not Unicode"):
        PCACodec.load(tmp_path / "text.npz")


@pytest.mark.parametrize("config", ["[" * 100_000, "9" * 5000])
def test_config_that_python_cannot_parse(config: str, tmp_path: Path) -> None:
    tags = {"kind": np.array("pca"), "version": np.array(1), "config": np.array(config)}
    np.savez(tmp_path / "deep.npz", **tags)
    with pytest.raises(CodecFileError, match="its config must be JSON"):
        PCACodec.load(tmp_path / "deep.npz")


@pytest.mark.parametrize(
    "fields",
    [
        "(" * 300,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 5000},), }}",
        "{'descr': None, 'fortran_order': None, 'shape': None}",
    ],
)
def test_headers_that_numpy_cannot_parse(fields: str, tmp_path: Path) -> None:
    header = b"\x93NUMPY\x01\x00" + len(fields).to_bytes(2, "little") + fields.encode()
    path = npz(tmp_path / "header.npz", {"mean_c.npy": header + bytes(64)})
    with pytest.raises(CodecFileError, match=r"header\.npz.*arrays of numbers") as caught:
        PCACodec.load(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 2000


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("pca", {"n_components": 60_000, "mask_size": 300}),
        ("dct", {"n_components": 60_000, "mask_size": 300}),
        ("pca", {"n_components": 1, "mask_size": 10**6}),
        ("dct", {"n_components": 1, "mask_size": 2**70}),
        ("grid", {"n_components": 1, "mask_size": 2**40}),
        ("autoencoder", {"n_components": 1, "mask_size": 2**70}),
        ("autoencoder", {"n_components": 1, "mask_size": 8, "hidden": 10**8}),
        ("autoencoder", {"n_components": 1, "mask_size": 8, "hidden": 2**70}),
    ],
)
def test_declared_sizes_take_no_memory(kind: str, sizes: dict[str, int], tmp_path: Path) -> None:
    config = CODECS[kind](1, 8).get_config() | sizes
    tags = {"kind": np.array(kind), "version": np.array(1), "config": np.array(json.dumps(config))}
    path = tmp_path / "large.npz"
    np.savez(path, **tags)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CodecFileError, match=r"large\.npz"):
        load_codec(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kilobytes


def test_a_damaged_archive(tmp_path: Path) -> None:
    path = tmp_path / "codec.npz"
    PCACodec(4, 6).fit(masks()).save(path)
    content = bytearray(path.read_bytes())
    content[300] ^= 0xFF  # within the first array; its checksum fails
    path.write_bytes(content)
    with pytest.raises(CodecFileError, match="damaged archive"):
        PCACodec.load(path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(CodecFileError, match=r"an \.npz archive"):
        PCACodec.load(path)
