"""``meinst codec fit`` and ``meinst codec merge``: the files they write."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SyntheticData
from synthetic_masks import (
    SMALL,
    SmallAutoencoder,
    assert_finite,
    masks_of,
    random_polygons,
    rectangle,
    run,
    write_annotations,
)

from meinst.codecs import (
    Codec,
    DCTCodec,
    GridCodec,
    PCACodec,
    load_codec,
    load_moments,
)
from meinst.codecs.options import CodecOptions
from meinst.codecs.registry import CODECS
from meinst.data import mask_stream


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_annotations(tmp_path / "train.json", random_polygons(90))


@pytest.mark.parametrize("command", ["fit", "merge"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(command, "--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: meinst codec {command}" in shown
    assert "--no-whiten" in shown
    assert f"examples:\n  meinst codec {command}" in shown


def test_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 2
    assert "meinst codec fit train.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run("--help")
    assert stopped.value.code == 0
    assert "meinst codec fit train.json" in capsys.readouterr().out
    assert run("forge") == 2
    assert "'codec forge'; choose one of fit, merge," in capsys.readouterr().err


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
def test_rejects_output_that_overwrites_an_input(
    command: tuple[str, ...],
    option: str,
    train: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(train.parent)
    before = train.read_bytes()
    assert run(*command) == 2
    shown = capsys.readouterr().err
    assert f"error: {option} " in shown
    assert "would overwrite another file of this command" in shown
    assert train.read_bytes() == before


def test_writes_sums_even_if_the_fit_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = write_annotations(tmp_path / "one.json", random_polygons(1))
    sums = tmp_path / "one.moments"
    assert run("fit", single, "--output", tmp_path / "one.npz", "--moments", sums, *SMALL) == 2
    assert "cannot fit a codec" in capsys.readouterr().err
    assert load_moments(sums).count == 1


def test_prints_faulty_annotations_for_an_autoencoder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CODECS, "autoencoder", SmallAutoencoder)
    faulty = write_annotations(
        tmp_path / "f.json", [*random_polygons(20), rectangle(99, 5, 5, 9, 9, bbox=[5, 5, 0, 9])]
    )
    output = tmp_path / "ae.npz"
    assert run("fit", faulty, "--output", output, "--kind", "autoencoder", *SMALL) == 0
    assert f"warning: {faulty}: " in capsys.readouterr().err


def test_class_sums_fit_codecs_without_classes(train: Path, tmp_path: Path) -> None:
    sums = tmp_path / "classes.moments"
    fitted, merged = tmp_path / "fitted.npz", tmp_path / "merged.npz"
    assert run("fit", train, "--output", fitted, "--per-class", "--moments", sums, *SMALL) == 0
    assert run("merge", sums, "--output", merged, "--kind", "dct", "--n-components", 4) == 0
    assert run("fit", train, "--output", fitted, "--kind", "dct", *SMALL) == 0
    assert fitted.read_bytes() == merged.read_bytes()


def test_fits_each_kind(
    train: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(CODECS, "autoencoder", SmallAutoencoder)
    masks, _ = masks_of(train)
    expected: dict[str, Codec] = {
        "pca": PCACodec(4, 8).fit(masks),
        "dct": DCTCodec(4, 8, whiten=True).fit(masks),
        "grid": GridCodec(4, 8),
        "autoencoder": SmallAutoencoder.from_options(CodecOptions("autoencoder", 4, 8, seed=3)).fit(
            masks
        ),
    }
    for kind, codec in expected.items():
        path = tmp_path / "made" / f"{kind}.npz"
        assert run("fit", train, "--output", path, "--kind", kind, *SMALL, "--seed", 3) == 0
        shown = capsys.readouterr()
        source = "" if kind == "grid" else ", fitted on 90 masks"  # a grid learns nothing
        assert shown.out == f"{kind} codec with 4 components for 8 x 8 masks{source}: {path}\n"
        assert "warning" not in shown.err
        codec.save(tmp_path / "expected.npz")
        assert path.read_bytes() == (tmp_path / "expected.npz").read_bytes()
        assert_finite(load_codec(path))


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
def test_codec_has_the_options(
    flags: tuple[str, ...], codec: Codec, train: Path, tmp_path: Path
) -> None:
    assert run("fit", train, "--output", tmp_path / "codec.npz", *SMALL, *flags) == 0
    codec.fit(*masks_of(train)).save(tmp_path / "expected.npz")
    assert (tmp_path / "codec.npz").read_bytes() == (tmp_path / "expected.npz").read_bytes()


def test_mask_filter(synthetic_data: SyntheticData, tmp_path: Path) -> None:
    def count(*flags: object) -> int:
        sums, codec = tmp_path / "a.moments", tmp_path / "codec.npz"
        few = ("--n-components", 1, "--mask-size", 8)
        arguments = ("--output", codec, "--moments", sums, *few, *flags)
        assert run("fit", synthetic_data.annotations, *arguments) == 0
        return load_moments(sums).count

    assert count() == 9
    assert count("--crowd-as-instances") == 10
    assert count("--min-size", 30) == 6


def test_order_and_number_of_files_and_workers_do_not_matter(train: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    assert run("fit", train, "--output", whole, *SMALL, "--per-class") == 0
    entries = random_polygons(90)
    shards = [
        write_annotations(tmp_path / f"{n}.json", part)
        for n, part in enumerate((entries[:11], entries[11:80], entries[80:]))
    ]
    # A file may list its categories in another order.
    renamed = [{**entry, "category_id": 3 - entry["category_id"]} for entry in entries[:11]]
    write_annotations(shards[0], renamed, ("bee", "ant"))
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
        shard = write_annotations(tmp_path / f"{n}.json", random_polygons(90)[part])
        sums.append(tmp_path / f"{n}.moments")
        part_codec = tmp_path / "part.npz"
        assert run("fit", shard, "--output", part_codec, "--moments", sums[-1], *SMALL, *flags) == 0
    capsys.readouterr()
    rest = ("--n-components", 4, *(flag for flag in flags if flag != "--per-class"))
    for order in itertools.permutations(sums):
        assert run("merge", *order, "--output", tmp_path / "merged.npz", *rest) == 0
        assert (tmp_path / "merged.npz").read_bytes() == whole.read_bytes()
        assert run("merge", *order, "--output", tmp_path / "merged.moments") == 0
        assert (tmp_path / "merged.moments").read_bytes() == all_sums.read_bytes()
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == f"merged 3 files with 90 masks: {tmp_path / 'merged.npz'}"
    assert shown.err == ""
    # In two steps, and from a single file.
    assert run("merge", sums[2], sums[0], "--output", tmp_path / "two.moments") == 0
    assert run("merge", tmp_path / "two.moments", sums[1], "--output", whole, *rest) == 0
    assert whole.read_bytes() == (tmp_path / "merged.npz").read_bytes()
    assert run("merge", all_sums, "--output", whole, *rest) == 0
    assert whole.read_bytes() == (tmp_path / "merged.npz").read_bytes()


# Several processes


def output_of(command: list[str], environment: dict[str, str]) -> str:
    """Output of a Python process; it is killed with its children after two minutes."""
    with subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            shown, errors = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its workers, which have their own sessions
            time.sleep(5)
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, errors
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--per-class",)])
def test_torchrun_gives_the_same_bytes(flags: tuple[str, ...], tmp_path: Path) -> None:
    # Three batches, so that both processes count masks.
    path = write_annotations(tmp_path / "many.json", random_polygons(2 * mask_stream._BATCH + 5))
    single = ("--output", tmp_path / "one.npz", "--moments", tmp_path / "one.moments")
    assert run("fit", path, *single, *SMALL, *flags) == 0
    distributed = ("--output", tmp_path / "two.npz", "--moments", tmp_path / "two.moments")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [
        "-m",
        "meinst",
        "codec",
        "fit",
        str(path),
        *map(str, (*distributed, *SMALL, *flags)),
    ]
    shown = output_of(command, {**os.environ, "OMP_NUM_THREADS": "1"})
    assert shown.count("fitted on 8,197 masks") == 1  # only the first process prints
    for name in ("npz", "moments"):
        expected = (tmp_path / f"one.{name}").read_bytes()
        assert (tmp_path / f"two.{name}").read_bytes() == expected


@pytest.mark.slow
def test_forked_workers_do_not_hang_on_torch_threads(tmp_path: Path) -> None:
    # Torch starts threads before the fork, and each worker has enough masks to use them.
    for name in "ab":
        write_annotations(tmp_path / f"{name}.json", random_polygons(mask_stream._BATCH))
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from meinst.codec_tools.count import count_masks\n"
        "torch.set_num_threads(2)\n"
        "(torch.randn(4_000_000) >= 0).sum()\n"
        "counts = count_masks([Path(name) for name in sys.argv[1:]], [28], workers=2)\n"
        "print(counts.moments[28].count)\n"
    )
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    shown = output_of(["-c", code, *files], environment)
    assert shown.strip() == str(2 * mask_stream._BATCH)
