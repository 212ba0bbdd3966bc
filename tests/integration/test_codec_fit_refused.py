"""``meinst codec fit`` and ``meinst codec merge``: what they refuse, and what they tell of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_masks import SMALL, assert_sound, drawn, masks_of, rectangle, run, written

from meinst.codecs import (
    ClassMoments,
    Moments,
    PCACodec,
    load_codec,
)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return written(tmp_path / "train.json", drawn(90))


def assert_refused(
    arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    told = capsys.readouterr()
    (line,) = told.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert told.out == ""


SAME = [rectangle(n, 5 * n, 5, 20, 20) for n in range(9)]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "at least 2 masks, found 0"),
        (drawn(1), "at least 2 masks, found 1"),
        (SAME, "all 9 are the same"),
        (
            [rectangle(n, 5, 5, 9, 9, bbox=[5, 5, 0, 9]) for n in range(5)],
            "at least 2 masks, found 0",
        ),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--per-class",), ("--kind", "dct")])
def test_masks_that_no_codec_can_be_fitted_on(
    annotations: list[dict[str, Any]],
    message: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = written(tmp_path / "few.json", annotations), tmp_path / "codec.npz"
    assert run("fit", path, "--output", output, *SMALL, *flags) == 2
    *warnings, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {path}: no codec can be fitted: ")
    assert message in error
    assert all(line.startswith(f"warning: {path}: left out: 5 x box of") for line in warnings)
    assert len(warnings) == (len(annotations) == 5)
    assert not output.exists()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_an_autoencoder_needs_masks_that_differ(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = written(tmp_path / "few.json", SAME[:count]), tmp_path / "codec.npz"
    arguments = ("fit", path, "--output", output, "--kind", "autoencoder", *SMALL)
    assert_refused(arguments, f"found {count}" if count < 2 else "are the same", capsys)
    assert not output.exists()


def test_fewer_directions_than_components(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "few.json", drawn(100)[-3:] + SAME)
    for flags in ((), ("--no-whiten",), ("--no-sigmoid",), ("--per-class", "--shrinkage", "0")):
        output = tmp_path / "codec.npz"
        assert run("fit", path, "--output", output, *SMALL[2:], "--components", 9, *flags) == 0
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line == (
            "warning: The 12 masks span 3 directions, fewer than n_components=9: the other "
            "coefficients are always 0. Fit on more masks or ask for fewer components."
        )
        assert_sound(load_codec(output))


def test_a_class_without_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "train.json", drawn(90), ("ant", "bee", "cow", "dog"))
    output, sums = tmp_path / "codec.npz", tmp_path / "all.moments"
    arguments = ("--output", output, "--moments", sums, "--per-class", *SMALL)
    assert run("fit", path, *arguments) == 0
    line = "warning: 2 of 4 classes have no masks and get the basis of all: cow, dog.\n"
    assert capsys.readouterr().err == line
    codec = load_codec(output)
    assert codec.class_names == ("ant", "bee", "cow", "dog")
    assert_sound(codec)
    before = output.read_bytes()
    assert run("merge", sums, "--output", output, "--components", 4) == 0
    assert capsys.readouterr().err == line
    assert output.read_bytes() == before


def test_faulty_annotations_are_told_and_left_out(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, output = tmp_path / "wanted.npz", tmp_path / "codec.npz"
    assert run("fit", train, "--output", wanted, *SMALL) == 0
    capsys.readouterr()
    nan, runs = float("nan"), {"size": [100, 100], "counts": [50, 60, 9891]}
    faulty = [
        rectangle(901, 5, 5, 20, 20, segmentation=[[5, 5, nan, 25, 5, 25]]),
        rectangle(902, 5, 5, 20, 20, bbox=[5, 5, 20, nan]),
        rectangle(903, 5, 5, 20, 20, bbox=[5, 5, 20, 0]),
        rectangle(904, 5, 5, 20, 20, segmentation=runs),
        rectangle(905, 5, 5, 20, 20, segmentation=[[5, 5, 10**400, 25, 5, 25]]),
    ]
    entries = drawn(90)
    path = written(tmp_path / "faulty.json", [*entries[:50], *faulty, *entries[50:]])
    assert run("fit", path, "--output", output, *SMALL) == 0
    told = capsys.readouterr()
    assert told.err.splitlines() == [
        f"warning: {path}: left out: 2 x polygon that is no list of finite numbers "
        "(annotation 901, 905)",
        f"warning: {path}: left out: 1 x box that is not four finite numbers (annotation 902)",
        f"warning: {path}: left out: 1 x box of no area (annotation 903)",
        f"warning: {path}: left out: 1 x broken RLE: the RLE's counts do not fill its image "
        "(annotation 904)",
    ]
    assert "from 90 masks" in told.out
    assert output.read_bytes() == wanted.read_bytes()
    assert_sound(load_codec(output))


def test_files_that_are_no_annotations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "codec.npz"
    for content, message in (
        ("", "is not JSON"),
        ("[]", "holds a JSON list"),
        ("{}", "is not in COCO format: images is missing; annotations is missing"),
    ):
        path = tmp_path / "faulty.json"
        path.write_text(content)
        assert_refused(("fit", path, "--output", output), f"{path} {message}", capsys)
    none = tmp_path / "none.json"
    assert_refused(("fit", none, "--output", output), f"{none} does not exist", capsys)
    assert not output.exists()


def test_impossible_options(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Told before the files are read: that may take an hour.
    none, output = tmp_path / "none.json", tmp_path / "codec.npz"
    for flags, message in (
        (("--components", 65, "--mask-size", 8), "from 1 to mask_size squared (64), found 65"),
        (("--components", 65, "--mask-size", 8, "--kind", "dct"), "(64), found 65"),
        (("--components", 65, "--mask-size", 8, "--kind", "autoencoder"), "found mask_size=8"),
        (("--components", 0), "found 0"),
        (("--mask-size", 0), "at least 1, found 0"),
        (("--kind", "grid"), "square number of components, from 1 to mask_size squared (784)"),
        (("--kind", "grid", "--components", 49, "--moments", "a"), "--moments holds what pca and"),
        (("--kind", "dct", "--per-class"), "for kind pca, found kind dct"),
        (("--per-class", "--shrinkage", "-3"), "number of masks from 0, found -3.0"),
        (("--kind", "wavelet"), "wavelet"),
        (("--components", "many"), "many"),
        (("--moments", tmp_path), f"--moments {tmp_path} is a folder"),
    ):
        assert_refused(("fit", none, "--output", output, *flags), message, capsys)
    assert_refused(("fit", none, "--output", tmp_path), "is a folder; give the name", capsys)
    assert_refused(("fit", none), "output", capsys)
    assert_refused(("fit", "--output", output), "annotations", capsys)
    below = train / "codec.npz"
    assert_refused(("fit", none, "--output", below), "cannot be written", capsys)


def test_sums_that_cannot_be_merged(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks, labels = masks_of(train)
    plain, apart, other, codec = (
        tmp_path / name for name in ("plain.moments", "apart.moments", "other.moments", "codec.npz")
    )
    Moments(8).add(masks).save(plain)
    ClassMoments(8, ["ant", "bee"]).add(masks, labels).save(apart)
    Moments(4).add(masks[:, ::2, ::2]).save(other)
    PCACodec(4, 8).fit(masks).save(codec)
    output = tmp_path / "out.npz"
    for sums, message in (
        ((plain, apart), f"{apart} holds class moments, {plain} holds moments"),
        ((plain, other), f"{other}: Moments of one mask size can be merged; found 8 and 4"),
        ((codec,), f"{codec} is no usable mask codec file: it must hold sums of masks"),
        ((plain, train), f"{train} is no usable mask codec file: it must be an .npz archive"),
        ((tmp_path / "none",), f"{tmp_path / 'none'}: there is no such file"),
        ((plain, "--components", 65), "from 1 to mask_size squared (64), found 65"),
    ):
        assert_refused(("merge", *sums, "--output", output), message, capsys)
    with np.load(plain) as file:
        content = {name: file[name] for name in file.files}
    np.savez(tmp_path / "later.npz", **(content | {"version": np.array(2)}))
    assert_refused(
        ("merge", tmp_path / "later.npz", "--output", output), "must be 1 (a later", capsys
    )
    assert_refused(("merge", plain, "--output", tmp_path), "is a folder", capsys)
    assert not output.exists()
