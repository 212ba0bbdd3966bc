"""``meinst codec fit`` and ``meinst codec merge``: what they write, and what they refuse."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DrawnData

from meinst.cli.main import main
from meinst.codecs import (
    AutoencoderCodec,
    ClassMoments,
    Codec,
    DCTCodec,
    GridCodec,
    Moments,
    PCACodec,
    load_codec,
    load_moments,
)
from meinst.data import mask_stream
from meinst.data.coco import read_coco
from meinst.engine import codec_fit

SMALL = ("--components", 4, "--mask-size", 8)


def run(*arguments: object) -> int:
    return main(["codec", *map(str, arguments)])


def rectangle(
    number: int, x: float, y: float, w: float, h: float, **changes: Any
) -> dict[str, Any]:
    """An annotation of the lower left half of a box."""
    plain = {
        "id": number,
        "image_id": 1,
        "category_id": 1 + number % 2,
        "bbox": [x, y, w, h],
        "segmentation": [[x, y, x + w, y + h, x, y + h]],
        "iscrowd": 0,
    }
    return plain | changes


def drawn(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Polygons of four random points; boxes of ten pixels and more."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        (x, y), (w, h) = rng.uniform(0, 60, 2).tolist(), rng.uniform(10, 40, 2).tolist()
        points = rng.uniform([x, y], [x + w, y + h], (4, 2)).flatten().tolist()
        found.append(rectangle(number, x, y, w, h, segmentation=[points]))
    return found


def written(
    path: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("ant", "bee")
) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "categories": [{"id": 1 + n, "name": name} for n, name in enumerate(names)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(content))  # NaN too, as Python's JSON has it
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return written(tmp_path / "train.json", drawn(90))


def masks_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    data = read_coco(path)
    masks = [one.select(np.flatnonzero(~one.crowd)).masks(8) for one in data.instances]
    labels = [one.labels[~one.crowd] for one in data.instances]
    return torch.from_numpy(np.concatenate(masks)), torch.from_numpy(np.concatenate(labels))


def assert_sound(codec: Codec) -> None:
    """Nothing that the codec holds or says of any mask is NaN or infinite."""
    assert all(array.isfinite().all() for array in codec.state_dict().values())
    size = codec.mask_size
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(50, size, size, generator=generator) < torch.rand(50, 1, 1)
    masks[0], masks[1] = False, True
    labels = torch.arange(50) % len(codec.class_names or ("all",))
    codes = codec.transform(masks, labels=labels)
    assert codes.isfinite().all()
    assert codec.inverse_transform(codes, labels).isfinite().all()


# What is written


@pytest.mark.parametrize("command", ["fit", "merge"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: meinst codec {command}" in shown
    assert "--no-whiten" in shown
    assert f"examples:\n  meinst codec {command}" in shown


def test_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "meinst codec fit train.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    assert "meinst codec fit train.json" in capsys.readouterr().out
    assert run("forge") == 2
    assert "no command `codec forge`; choose of fit, merge," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("fit", "train.json", "--output", "train.json"), "--output"),
        (("fit", "train.json", "--output", "a.npz", "--moments", "a.npz"), "--moments"),
        (("fit", "train.json", "--output", "a.npz", "--moments", "./train.json"), "--moments"),
        (("merge", "a.moments", "--output", "a.moments"), "--output"),
        (("show", "a.npz", "--output", "a.npz"), "--output"),
    ],
)
def test_no_file_of_the_command_is_overwritten(
    command: tuple[str, ...],
    option: str,
    train: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(train.parent)
    before = train.read_bytes()
    assert run(*command) == 2
    told = capsys.readouterr().err
    assert f"error: {option} " in told
    assert "would overwrite a file of this command; give another." in told
    assert train.read_bytes() == before


def test_sums_are_kept_where_they_alone_make_no_codec(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, sums = written(tmp_path / "one.json", drawn(1)), tmp_path / "one.moments"
    assert run("fit", one, "--output", tmp_path / "one.npz", "--moments", sums, *SMALL) == 2
    assert "no codec can be fitted" in capsys.readouterr().err
    assert load_moments(sums).count == 1


def test_what_an_autoencoder_is_not_fitted_on_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(AutoencoderCodec, hidden=6, iterations=4)
    monkeypatch.setattr(codec_fit, "AutoencoderCodec", small)
    faulty = written(
        tmp_path / "f.json", [*drawn(20), rectangle(99, 5, 5, 9, 9, bbox=[5, 5, 0, 9])]
    )
    output = tmp_path / "ae.npz"
    assert run("fit", faulty, "--output", output, "--kind", "autoencoder", *SMALL) == 0
    assert f"warning: {faulty}: " in capsys.readouterr().err


def test_class_sums_serve_codecs_without_classes(train: Path, tmp_path: Path) -> None:
    sums = tmp_path / "classes.moments"
    one, other = tmp_path / "one.npz", tmp_path / "other.npz"
    assert run("fit", train, "--output", one, "--per-class", "--moments", sums, *SMALL) == 0
    assert run("merge", sums, "--output", other, "--kind", "dct", "--components", 4) == 0
    assert run("fit", train, "--output", one, "--kind", "dct", *SMALL) == 0
    assert one.read_bytes() == other.read_bytes()


def test_each_kind(
    train: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = partial(AutoencoderCodec, hidden=6, iterations=4)
    monkeypatch.setattr(codec_fit, "AutoencoderCodec", small)
    masks, _ = masks_of(train)
    wanted: dict[str, Codec] = {
        "pca": PCACodec(4, 8).fit(masks),
        "dct": DCTCodec(4, 8, whiten=True).fit(masks),
        "grid": GridCodec(4, 8),
        "autoencoder": small(4, 8, seed=3).fit(masks),
    }
    for kind, codec in wanted.items():
        path = tmp_path / "made" / f"{kind}.npz"
        assert run("fit", train, "--output", path, "--kind", kind, *SMALL, "--seed", 3) == 0
        told = capsys.readouterr()
        source = "" if kind == "grid" else " from 90 masks"  # a grid learns nothing
        assert told.out == f"{kind} codec of 4 numbers for masks of 8 x 8{source}: {path}\n"
        assert "warning" not in told.err
        codec.save(tmp_path / "wanted.npz")
        assert path.read_bytes() == (tmp_path / "wanted.npz").read_bytes()
        assert_sound(load_codec(path))


@pytest.mark.parametrize(
    ("flags", "codec"),
    [
        (("--no-sigmoid",), PCACodec(4, 8, sigmoid=False)),
        (("--no-whiten",), PCACodec(4, 8, whiten=False)),
        (("--per-class",), PCACodec(4, 8, class_names=("ant", "bee"))),
        (
            ("--per-class", "--shrinkage", "7", "--no-whiten"),
            PCACodec(4, 8, whiten=False, class_names=("ant", "bee"), shrinkage=7.0),
        ),
        (("--kind", "dct", "--no-sigmoid"), DCTCodec(4, 8, sigmoid=False, whiten=True)),
        (("--kind", "dct", "--no-whiten"), DCTCodec(4, 8)),
    ],
)
def test_options_reach_the_codec(
    flags: tuple[str, ...], codec: Codec, train: Path, tmp_path: Path
) -> None:
    assert run("fit", train, "--output", tmp_path / "codec.npz", *SMALL, *flags) == 0
    codec.fit(*masks_of(train)).save(tmp_path / "wanted.npz")
    assert (tmp_path / "codec.npz").read_bytes() == (tmp_path / "wanted.npz").read_bytes()


def test_which_masks_count(drawn_data: DrawnData, tmp_path: Path) -> None:
    def count(*flags: object) -> int:
        sums, codec = tmp_path / "a.moments", tmp_path / "codec.npz"
        few = ("--components", 1, "--mask-size", 8)
        arguments = ("--output", codec, "--moments", sums, *few, *flags)
        assert run("fit", drawn_data.annotations, *arguments) == 0
        return load_moments(sums).count

    assert count() == 9
    assert count("--no-exclude-crowd") == 10
    assert count("--min-size", 30) == 6


def test_any_order_and_number_of_files_and_workers(train: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    assert run("fit", train, "--output", whole, *SMALL, "--per-class") == 0
    entries = drawn(90)
    shards = [
        written(tmp_path / f"{n}.json", part)
        for n, part in enumerate((entries[:11], entries[11:80], entries[80:]))
    ]
    # A file may know its categories in another order.
    turned = [{**one, "category_id": 3 - one["category_id"]} for one in entries[:11]]
    written(shards[0], turned, ("bee", "ant"))
    for order, workers in itertools.product(itertools.permutations(shards), (1, 2)):
        path = tmp_path / "codec.npz"
        flags = ("--per-class", "--workers", workers)
        assert run("fit", *order, "--output", path, *SMALL, *flags) == 0
        assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("flags", [(), ("--per-class",), ("--kind", "dct"), ("--no-whiten",)])
def test_merged_sums_give_the_same_bytes_as_one_fit(
    flags: tuple[str, ...],
    train: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole, all_sums = tmp_path / "whole.npz", tmp_path / "whole.moments"
    assert run("fit", train, "--output", whole, "--moments", all_sums, *SMALL, *flags) == 0
    sums = []
    for n, part in enumerate((slice(0, 40), slice(40, 43), slice(43, 90))):
        shard = written(tmp_path / f"{n}.json", drawn(90)[part])
        sums.append(tmp_path / f"{n}.moments")
        part_codec = tmp_path / "part.npz"
        assert run("fit", shard, "--output", part_codec, "--moments", sums[-1], *SMALL, *flags) == 0
    capsys.readouterr()
    rest = ("--components", 4, *(flag for flag in flags if flag != "--per-class"))
    for order in itertools.permutations(sums):
        assert run("merge", *order, "--output", tmp_path / "merged.npz", *rest) == 0
        assert (tmp_path / "merged.npz").read_bytes() == whole.read_bytes()
        assert run("merge", *order, "--output", tmp_path / "merged.moments") == 0
        assert (tmp_path / "merged.moments").read_bytes() == all_sums.read_bytes()
    told = capsys.readouterr()
    assert told.out.splitlines()[0] == f"3 files, 90 masks: {tmp_path / 'merged.npz'}"
    assert told.err == ""
    # In two steps, and of one file alone.
    assert run("merge", sums[2], sums[0], "--output", tmp_path / "two.moments") == 0
    assert run("merge", tmp_path / "two.moments", sums[1], "--output", whole, *rest) == 0
    assert whole.read_bytes() == (tmp_path / "merged.npz").read_bytes()
    assert run("merge", all_sums, "--output", whole, *rest) == 0
    assert whole.read_bytes() == (tmp_path / "merged.npz").read_bytes()


# What is refused, and what is told


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


# Several processes


def output_of(command: list[str], environment: dict[str, str]) -> str:
    """What a Python process prints; no process of its outlives it, nor the two minutes it has."""
    with subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its own, which have sessions of theirs
            time.sleep(5)
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    return told


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--per-class",)])
def test_torchrun_gives_the_same_bytes(flags: tuple[str, ...], tmp_path: Path) -> None:
    # Three batches, so that both processes have something to count.
    path = written(tmp_path / "many.json", drawn(2 * mask_stream._BATCH + 5))
    one = ("--output", tmp_path / "one.npz", "--moments", tmp_path / "one.moments")
    assert run("fit", path, *one, *SMALL, *flags) == 0
    two = ("--output", tmp_path / "two.npz", "--moments", tmp_path / "two.moments")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "meinst", "codec", "fit", str(path), *map(str, (*two, *SMALL, *flags))]
    told = output_of(command, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert told.count("from 8,197 masks") == 1  # the first process alone tells
    for name in ("npz", "moments"):
        wanted = (tmp_path / f"one.{name}").read_bytes()
        assert (tmp_path / f"two.{name}").read_bytes() == wanted


@pytest.mark.slow
def test_workers_do_not_wait_for_threads_that_a_fork_has_lost(tmp_path: Path) -> None:
    # Torch has several threads before the fork, and each worker's masks are enough to use them.
    for name in "ab":
        written(tmp_path / f"{name}.json", drawn(mask_stream._BATCH))
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from meinst.engine.codec_fit import count_masks\n"
        "torch.set_num_threads(2)\n"
        "(torch.randn(4_000_000) >= 0).sum()\n"
        "counts = count_masks([Path(name) for name in sys.argv[1:]], [28], workers=2)\n"
        "print(counts.moments[28].count)\n"
    )
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    told = output_of(["-c", code, *files], environment)
    assert told.strip() == str(2 * mask_stream._BATCH)
