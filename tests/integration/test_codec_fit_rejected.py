"""``meinst codec fit`` and ``meinst codec merge``: errors and warnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_masks import (
    SMALL,
    assert_finite,
    masks_of,
    random_polygons,
    rectangle,
    run,
    write_annotations,
)

from meinst.codecs import ClassMoments, Moments, PCACodec, load_codec
from meinst.codecs.registry import CODECS


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "train.json", random_polygons(90))


def assert_rejected(
    arguments: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert shown.out == ""


SAME = [rectangle(n, 5 * n, 5, 20, 20) for n in range(9)]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([], "at least 2 masks, got 0"),
        (random_polygons(1), "at least 2 masks, got 1"),
        (SAME, "all 9 are the same"),
        (
            [rectangle(n, 5, 5, 9, 9, segmentation=[]) for n in range(5)],
            "at least 2 masks, got 0",
        ),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--per-class",), ("--kind", "dct")])
def test_rejects_too_few_or_equal_masks(
    annotations: list[dict[str, Any]],
    message: str,
    flags: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, output = write_annotations(tmp_path / "few.json", annotations), tmp_path / "codec.npz"
    assert run("fit", path, "--output", output, *SMALL, *flags) == 2
    *warnings, error = capsys.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {path}: cannot fit a codec: ")
    assert message in error
    assert all(line.startswith(f"warning: {path}: dropped: 5 x no mask") for line in warnings)
    assert len(warnings) == (len(annotations) == 5)
    assert not output.exists()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_autoencoder_rejects_too_few_or_equal_masks(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = write_annotations(tmp_path / "few.json", SAME[:count]), tmp_path / "codec.npz"
    arguments = ("fit", path, "--output", output, "--kind", "autoencoder", *SMALL)
    assert_rejected(arguments, f"got {count}" if count < 2 else "are the same", capsys)
    assert not output.exists()


def test_warns_of_fewer_directions_than_components(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_annotations(tmp_path / "few.json", random_polygons(100)[-3:] + SAME)
    for flags in ((), ("--no-whiten",), ("--no-sigmoid",), ("--per-class", "--shrinkage", "0")):
        output = tmp_path / "codec.npz"
        assert run("fit", path, "--output", output, *SMALL[2:], "--n-components", 9, *flags) == 0
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("warning: The 12 masks span 3 directions")
        assert "n_components=9" in line
        assert_finite(load_codec(output))


def test_warns_of_classes_without_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_annotations(
        tmp_path / "train.json", random_polygons(90), ("ant", "bee", "cow", "dog")
    )
    output, sums = tmp_path / "codec.npz", tmp_path / "all.moments"
    arguments = ("--output", output, "--moments", sums, "--per-class", *SMALL)
    assert run("fit", path, *arguments) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 2 of 4 classes have no masks")
    assert "cow, dog" in line
    codec = load_codec(output)
    assert codec.class_names == ("ant", "bee", "cow", "dog")
    assert_finite(codec)
    before = output.read_bytes()
    assert run("merge", sums, "--output", output, "--n-components", 4) == 0
    assert capsys.readouterr().err == f"{line}\n"
    assert output.read_bytes() == before


def test_faulty_annotations_are_printed_and_left_out(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected, output = tmp_path / "expected.npz", tmp_path / "codec.npz"
    assert run("fit", train, "--output", expected, *SMALL) == 0
    capsys.readouterr()
    nan, runs = float("nan"), {"size": [100, 100], "counts": [50, 60, 9891]}
    faulty = [
        rectangle(901, 5, 5, 20, 20, segmentation=[[5, 5, nan, 25, 5, 25]]),
        rectangle(902, 5, 5, 20, 20, iscrowd="0"),
        rectangle(904, 5, 5, 20, 20, segmentation=runs),
        rectangle(905, 5, 5, 20, 20, segmentation=[[5, 5, 10**400, 25, 5, 25]]),
    ]
    entries = random_polygons(90)
    path = write_annotations(tmp_path / "faulty.json", [*entries[:50], *faulty, *entries[50:]])
    assert run("fit", path, "--output", output, *SMALL) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        f"warning: {path}: dropped: 2 x polygon that is not a list of finite numbers "
        "(annotation 901, 905)",
        f"warning: {path}: dropped: 1 x iscrowd that is not 0 or 1 (annotation 902)",
        f"warning: {path}: dropped: 1 x broken RLE: the counts do not fill the image "
        "(annotation 904)",
    ]
    assert "fitted on 90 masks" in shown.out
    assert output.read_bytes() == expected.read_bytes()
    assert_finite(load_codec(output))


def test_rejects_files_that_are_not_annotations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "codec.npz"
    for content, message in (
        ("", "is not JSON"),
        ("[]", "contains a JSON list"),
        ("{}", "is not in COCO format: images is missing; annotations is missing"),
    ):
        path = tmp_path / "faulty.json"
        path.write_text(content)
        assert_rejected(("fit", path, "--output", output), f"{path} {message}", capsys)
    none = tmp_path / "none.json"
    assert_rejected(("fit", none, "--output", output), f"{none} does not exist", capsys)
    assert not output.exists()


def test_rejects_impossible_options(
    train: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Reported before the files are read, which may take an hour.
    none, output = tmp_path / "none.json", tmp_path / "codec.npz"
    for flags, message in (
        (("--n-components", 65, "--mask-size", 8), "(64), got 65"),
        (("--n-components", 65, "--mask-size", 8, "--kind", "dct"), "(64), got 65"),
        (("--n-components", 65, "--mask-size", 8, "--kind", "autoencoder"), "n_components=65"),
        (("--n-components", 0), "n_components must be at least 1, got 0"),
        (("--mask-size", 0), "mask_size must be between 1 and 512, got 0"),
        (("--kind", "grid"), "(784), got 60; use 49"),
        (("--kind", "grid", "--n-components", 49, "--moments", "a"), "--moments a: "),
        (("--kind", "dct", "--per-class"), "needs kind pca, got dct"),
        (("--per-class", "--shrinkage", "-3"), "shrinkage must be at least 0, got -3.0"),
        (("--kind", "wavelet"), "wavelet"),
        *((("--kind", "wavelet"), kind) for kind in CODECS),
        (("--n-components", "many"), "many"),
        (("--moments", tmp_path), f"--moments {tmp_path} is a folder"),
    ):
        assert_rejected(("fit", none, "--output", output, *flags), message, capsys)
    assert_rejected(("fit", none, "--output", tmp_path), "is a folder; give the name", capsys)
    assert_rejected(("fit", none), "output", capsys)
    assert_rejected(("fit", "--output", output), "missing arguments: ANNOTATIONS", capsys)
    below = train / "codec.npz"
    assert_rejected(("fit", none, "--output", below), "cannot be written", capsys)


def test_rejects_sums_that_cannot_be_merged(
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
        ((plain, other), f"{other}: Sums to merge must have equal mask sizes, got 8 and 4"),
        ((codec,), f"{codec} is not a valid mask codec file: it must hold sums over masks"),
        ((plain, train), f"{train} is not a valid mask codec file: it must be an .npz archive"),
        ((tmp_path / "none",), f"{tmp_path / 'none'} does not exist"),
        ((plain, "--kind", "grid", "--n-components", 4), "kind grid"),
        ((plain, "--n-components", 65), "(64), got 65"),
    ):
        assert_rejected(("merge", *sums, "--output", output), message, capsys)
    with np.load(plain) as file:
        content = {name: file[name] for name in file.files}
    np.savez(tmp_path / "later.npz", **(content | {"version": np.array(2)}))
    assert_rejected(
        ("merge", tmp_path / "later.npz", "--output", output), "version must be 1 ", capsys
    )
    assert_rejected(("merge", plain, "--output", tmp_path), "is a folder", capsys)
    assert not output.exists()
