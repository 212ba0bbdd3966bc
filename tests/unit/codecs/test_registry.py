import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from meinst.codecs import (
    AutoencoderCodec,
    ClassMoments,
    Codec,
    CodecFileError,
    DCTCodec,
    GridCodec,
    Moments,
    NotFittedError,
    PCACodec,
    codec_from_config,
    load_codec,
)
from meinst.codecs.options import CodecKind, CodecOptions
from meinst.codecs.registry import CODECS, codec_from_options


def random_masks(count: int = 80, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 6, 6, generator=generator) < 0.5).to(torch.uint8)


LABELS = torch.arange(80) % 2

MAKE: dict[str, Callable[[], Codec]] = {
    "pca": lambda: PCACodec(4, 6).fit(random_masks()),
    "pca of classes": lambda: PCACodec(4, 6, class_names=["a", "b"]).fit(random_masks(), LABELS),
    "dct": lambda: DCTCodec(4, 6),
    "dct whitened": lambda: DCTCodec(4, 6, whiten=True).fit(random_masks()),
    "grid": lambda: GridCodec(4, 6),
    "autoencoder": lambda: AutoencoderCodec(4, 6, hidden=5, iterations=3).fit(random_masks()),
}


def test_registry_has_exactly_the_kinds_of_the_options() -> None:
    assert tuple(CODECS) == get_args(CodecKind)
    assert all(codec.kind == kind for kind, codec in CODECS.items())
    assert len({codec.title for codec in CODECS.values()}) == len(CODECS)


def test_documentation_of_the_options_names_every_kind() -> None:
    assert all(f"{kind} (" in (CodecOptions.__doc__ or "") for kind in CODECS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (CodecOptions(), PCACodec()),
        (
            CodecOptions("pca", 4, 6, sigmoid=False, whiten=False),
            PCACodec(4, 6, sigmoid=False, whiten=False),
        ),
        (
            CodecOptions("pca", 4, 6, per_class=True, shrinkage=7),
            PCACodec(4, 6, class_names=["a", "b"], shrinkage=7),
        ),
        (CodecOptions("dct"), DCTCodec(whiten=True)),
        (
            CodecOptions("dct", 4, 6, sigmoid=False, whiten=False),
            DCTCodec(4, 6, sigmoid=False),
        ),
        (CodecOptions("grid", 4, 6), GridCodec(4, 6)),
        (CodecOptions("autoencoder"), AutoencoderCodec()),
        (CodecOptions("autoencoder", 4, 6, seed=3), AutoencoderCodec(4, 6, seed=3)),
    ],
)
def test_each_kind_from_options(options: CodecOptions, expected: Codec) -> None:
    codec = codec_from_options(options, class_names=("a", "b"))
    assert type(codec) is type(expected)
    assert codec.get_config() == expected.get_config()
    assert codec.class_names == (("a", "b") if options.per_class else None)
    assert codec.get_config() == type(expected).from_options(options, ("a", "b")).get_config()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (CodecOptions("grid"), "found 60; use 49"),
        (CodecOptions("pca", 65, 8), r"\(64\), found 65"),
        (CodecOptions("dct", 65, 8), r"\(64\), found 65"),
        (CodecOptions("autoencoder", 65, 8), "n_components=65"),
        (CodecOptions("pca", per_class=True), "names of the classes, found None"),
        (CodecOptions("wavelet"), "pca, dct, grid, autoencoder, found 'wavelet'"),  # type: ignore[arg-type]
    ],
)
def test_options_that_describe_no_codec(options: CodecOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codec_from_options(options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_components": 0}, "n_components .* 0"),
        ({"mask_size": -1}, "mask_size .* -1"),
        ({"shrinkage": -1.0}, "shrinkage .* -1"),
        ({"kind": "dct", "per_class": True}, "per_class .* pca, got dct"),
    ],
)
def test_options_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodecOptions(**values)


@pytest.mark.parametrize("which", MAKE)
def test_every_codec_loads_from_its_file(which: str, tmp_path: Path) -> None:
    codec = MAKE[which]()
    path = tmp_path / "any.codec"
    codec.save(path)
    again = load_codec(str(path))
    assert type(again) is type(codec)
    assert again.fitted
    assert again.get_config() == codec.get_config()
    assert json.loads(json.dumps(codec.get_config())) == codec.get_config()
    codes = codec.transform(random_masks(80, seed=1), labels=LABELS)
    assert torch.equal(again.transform(random_masks(80, seed=1), labels=LABELS), codes)
    assert torch.equal(again.inverse_logits(codes, LABELS), codec.inverse_logits(codes, LABELS))
    again.save(tmp_path / "again.codec")
    assert (tmp_path / "again.codec").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("which", MAKE)
def test_every_codec_is_built_from_its_configuration(which: str) -> None:
    source = MAKE[which]()
    codec = codec_from_config(json.loads(json.dumps(source.get_config())))
    assert type(codec) is type(source)
    shapes = {name: array.shape for name, array in source.state_dict().items()}
    assert {name: array.shape for name, array in codec.state_dict().items()} == shapes
    if which not in ("dct", "grid"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            codec.transform(random_masks(), labels=LABELS)
    codec.load_state_dict(source.state_dict())
    expected = source.transform(random_masks(), labels=LABELS)
    assert torch.equal(codec.transform(random_masks(), labels=LABELS), expected)
    assert not list(codec.parameters())  # a detector does not train its codec


@pytest.mark.parametrize("which", MAKE)
def test_every_codec_follows_the_interface(which: str) -> None:
    codec, masks = MAKE[which](), random_masks(80, seed=1)
    none = torch.zeros(0, dtype=torch.int64)
    assert codec.transform(masks[:0], labels=none).shape == (0, 4)
    codes = codec.transform(masks, labels=LABELS)
    assert (codes.shape, codes.dtype) == ((80, 4), torch.float32)
    logits = codec.inverse_logits(codes, LABELS)
    soft = codec.inverse_transform(codes, LABELS)
    assert (soft.shape, soft.dtype, logits.dtype) == ((80, 6, 6), torch.float32, torch.float32)
    assert soft.min() >= 0
    assert soft.max() <= 1
    # They may differ only by rounding.
    assert ((soft >= 0.5) == (logits >= 0))[logits.abs() > 1e-4].all()
    assert ((soft >= 0.5) == masks.bool()).float().mean() > 0.5
    wild = torch.full((1, 4), 1e4)
    assert codec.inverse_transform(wild, LABELS[:1]).isfinite().all()
    grown = codes.clone().requires_grad_()
    codec.inverse_logits(grown, LABELS).square().sum().backward()
    assert grown.grad is not None
    assert grown.grad.isfinite().all()
    assert grown.grad.any(0).all()
    for faulty in (torch.zeros(1, 5, 6), torch.full((1, 6, 6), torch.nan), torch.zeros(6, 6)):
        with pytest.raises(ValueError, match=r"shape \(N, 6, 6\)|must be finite"):
            codec.transform(faulty, labels=LABELS[:1])
    with pytest.raises(ValueError, match=r"shape \(N, 4\), found \(1, 9\)"):
        codec.inverse_transform(torch.zeros(1, 9), LABELS[:1])
    if which not in ("pca", "pca of classes", "dct", "dct whitened"):
        with pytest.raises(ValueError, match="logits='random'"):
            codec.transform(masks, logits="random", generator=torch.Generator())


def published() -> dict[str, np.ndarray]:
    codec = PCACodec(4, 6).fit(random_masks())
    return {
        "components_c": codec.components_.numpy(),
        "mean_c": codec.mean_.numpy(),
        "explained_variance_c": codec.explained_variance_.numpy(),
        "ratio_c": codec.explained_variance_ratio_.numpy(),
    }


@pytest.mark.parametrize("sigmoid", [True, False])
@pytest.mark.parametrize("whiten", [True, False])
def test_name_of_a_published_file_determines_its_options(
    sigmoid: bool, whiten: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"coco_class_agnosticTrue_whiten{whiten}_sigmoid{sigmoid}_60.npz"
    np.savez(path, **published())
    codec = load_codec(path)
    assert isinstance(codec, PCACodec)
    assert (codec.sigmoid, codec.whiten) == (sigmoid, whiten)
    overridden = PCACodec.load(path, sigmoid=not sigmoid, whiten=not whiten)
    assert (overridden.sigmoid, overridden.whiten) == (not sigmoid, not whiten)


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", "<f2", "g"])
def test_a_published_file_of_any_float(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "published.npz"
    np.savez(path, **{name: array.astype(kind) for name, array in published().items()})
    codec = load_codec(path)
    assert isinstance(codec, PCACodec)
    assert all(array.dtype == torch.float32 for array in codec.state_dict().values())
    expected = PCACodec(4, 6).fit(random_masks()).transform(random_masks())
    torch.testing.assert_close(codec.transform(random_masks()), expected, atol=0.02, rtol=0)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        load_codec(tmp_path / "none.npz")


def test_files_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.npz"
    Moments(6).add(random_masks()).save(path)
    with pytest.raises(CodecFileError, match=r"must be one of pca, dct, .*; found 'moments'"):
        load_codec(path)
    ClassMoments(6, ["a", "b"]).add(random_masks(), LABELS).save(path)
    with pytest.raises(CodecFileError, match=r"must be one of .*; found 'class moments'"):
        load_codec(path)
    np.savez(path, weights=np.zeros((3, 3), dtype=np.float32))
    with pytest.raises(CodecFileError, match=r"components_c; found \['weights'\]"):
        load_codec(path)
    np.savez(path, **(published() | {"mean_c": np.array([[{}]], dtype=object)}))
    with pytest.raises(CodecFileError, match="arrays of numbers; found objects"):
        load_codec(path)
    path.write_text("{}")
    with pytest.raises(CodecFileError, match=r"an \.npz archive"):
        load_codec(path)


def changed(path: Path, **arrays: np.ndarray) -> None:
    """Put other arrays in place of a file's own; its checksums fit."""
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    np.savez(path, **(content | arrays))


@pytest.mark.parametrize("which", MAKE)
def test_files_of_another_kind_or_version(which: str, tmp_path: Path) -> None:
    path = tmp_path / "codec.npz"
    MAKE[which]().save(path)
    changed(path, version=np.array(7))
    with pytest.raises(CodecFileError, match=r"version must be 1 .*; found 7"):
        load_codec(path)
    changed(path, version=np.array(1), kind=np.array("wavelet"))
    with pytest.raises(CodecFileError, match="one of pca, dct, grid, autoencoder; found 'wavelet'"):
        load_codec(path)
    other = "dct" if which.startswith("pca") else "pca"
    changed(path, kind=np.array(other))
    with pytest.raises(CodecFileError, match=f"config .*kind '{other}'"):
        load_codec(path)
    changed(path, kind=np.array(["pca", "dct"]))
    with pytest.raises(CodecFileError, match="kind, a version and a config"):
        load_codec(path)


@pytest.mark.parametrize("which", [name for name in MAKE if name != "grid"])
def test_faulty_arrays(which: str, tmp_path: Path) -> None:
    path = tmp_path / "codec.npz"
    MAKE[which]().save(path)
    with np.load(path) as file:
        name = next(key for key in file.files if file[key].dtype.kind == "f")
        array = file[name]
    for value, message in (
        (np.full_like(array, np.nan), f"{name} must be finite; found NaN"),
        (array[..., :-1], f"{name} must have the shape"),
        (array.astype(np.int64), f"{name} .*; found int64"),
        (array > 0, f"{name} must be an array of numbers; found bool"),
    ):
        changed(path, **{name: value})
        with pytest.raises(CodecFileError, match=message) as caught:
            load_codec(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    MAKE["pca"]().save(tmp_path / "whole.npz")
    whole = (tmp_path / "whole.npz").read_bytes()
    expected = MAKE["pca"]().state_dict()
    rng = np.random.default_rng(0)
    rejected = 0
    for n in range(200):
        content = bytearray(whole)
        if n % 4:
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        else:
            del content[rng.integers(len(content)) :]
        (tmp_path / "damaged.npz").write_bytes(content)
        try:
            codec = load_codec(tmp_path / "damaged.npz")
        except CodecFileError:
            rejected += 1
        else:  # a byte without effect, such as that of a date
            assert all(torch.equal(expected[k], array) for k, array in codec.state_dict().items())
    assert rejected > 150


@pytest.mark.parametrize(
    "config",
    [{}, {"kind": "wavelet"}, {"kind": None}, {"kind": ["pca"]}, {"n_components": 4}],
)
def test_configurations_of_no_codec(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be one of pca, dct, grid, autoencoder, found"):
        codec_from_config(config)
