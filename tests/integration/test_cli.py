"""The command line: output, files and exit codes."""

from __future__ import annotations

import copy
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import SyntheticData
from processes import started

import meinst.cli.main as main_module
from meinst.cli.codec import COMMANDS as CODEC_COMMANDS
from meinst.cli.main import COMMANDS, main
from meinst.detector.meinst import MEInst

HEAVY = ("torch", "torchvision", "timm", "lightning", "numba", "numpy", "jsonargparse", "rich")

EVALUATE = ("--model", "MODEL", "--images", "DIR", "--annotations", "JSON")


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from meinst.cli.main import main\n"
        "try: main(['--help'])\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.endswith("[]\n")
    assert all(f"  {command} " in ran.stdout for command in COMMANDS)
    seconds = []
    for _ in range(3):  # the best of three, since other processes may be running
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "meinst", "--help"], capture_output=True, check=True, timeout=60
        )
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == version("meinst")


@pytest.mark.parametrize("command", [*COMMANDS, *(f"codec {name}" for name in CODEC_COMMANDS)])
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: meinst {command}" in shown
    assert f"examples:\n  meinst {command}" in shown
    options = re.split(r"\n  (?=-)", shown[shown.index("options:") : shown.index("examples:")])[2:]
    for option in options:
        switch = re.match(r"--\S+\s(?! )(?=\S)", option) is None  # no value follows its name
        assert switch or "default" in option or "(required)" in option, option


def one_line_error(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "unknown command 'fly'"),
        (["--fly"], "unrecognized arguments: --fly; see `meinst --help`"),
        (["predict"], "missing arguments: SOURCES; see `meinst predict --help`"),
        (["predict", "x.png", "--modle", "m"], "--modle; did you mean --model?"),
        (["predict", "x.png", "--model", "a", "--model", "b"], "--model is given twice"),
        (["predict", "x.png", "--max-detections", "many"], "--max-detections: expected int, got"),
        (["predict", "/nowhere/x.png"], "/nowhere/x.png"),
        (["predict", "FOLDER"], "no images"),
        (
            ["predict", "IMAGE", "--model", "unknown", "--output", "OUT"],
            "model 'unknown'",
        ),
        (["predict", "IMAGE", "--model", "IMAGE", "--output", "OUT"], "not a complete safetensors"),
        (["predict", "IMAGE", "--output", "IMAGE/below"], "cannot be written"),
        (
            ["predict", "IMAGE", "--model", "MODEL", "--output", "OUT", "--device", "abacus"],
            "abacus",
        ),
        (
            ["predict", "IMAGE", "--model", "MODEL", "--output", "OUT", "--score-threshold", "7"],
            "score_threshold must be between 0 and 1, got 7",
        ),
        (["evaluate", "--model", "MODEL"], "give the data once: either a data set (DATA), or both"),
        (["train"], "give the data once: either a data set (DATA), or all of --train-images"),
        (["evaluate", "--model", "MODEL", "--images", "OUT", "--annotations", "JSON"], "OUT"),
        (["evaluate", "--model", "MODEL", "--images", "DIR", "--annotations", "IMAGE"], "not JSON"),
        (["evaluate", *EVALUATE, "--output", "FOLDER"], "is a folder; give the name of a file"),
        (["evaluate", *EVALUATE, "--output", "IMAGE/metrics.json"], "cannot be written"),
        (
            ["evaluate", *EVALUATE, "--output", "JSON"],
            "would overwrite another file of this command",
        ),
        (
            ["evaluate", *EVALUATE, "--output", "MODEL"],
            "would overwrite another file of this command",
        ),
    ],
)
def test_known_errors_are_one_line(
    arguments: list[str],
    message: str,
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MEINST_TRACEBACK", raising=False)
    (tmp_path / "folder").mkdir()
    places = {
        "MODEL": tiny_model_file,
        "DIR": synthetic_data.images,
        "JSON": synthetic_data.annotations,
        "IMAGE": synthetic_data.images / "two.png",
        "FOLDER": tmp_path / "folder",
        "OUT": tmp_path / "out",
    }
    filled = []
    for argument in arguments:
        first, _, rest = argument.partition("/")
        whole = f"{places[first]}/{rest}".rstrip("/") if first in places else argument
        filled.append(whole)
    assert main(filled) == 2
    assert message.replace("OUT", str(places["OUT"])) in one_line_error(capsys)


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEINST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="fly"):
        main(["fly"])


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().err


def test_interrupted_command_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_module, "_run", interrupt)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_predict_prints_one_line_per_image(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    good = [str(synthetic_data.images / "two.png"), str(synthetic_data.images / "s*.png")]
    options = ["--model", str(tiny_model_file), "--output", str(tmp_path / "out")]
    options += ["--max-detections", "3", "--device", "cpu"]
    assert main(["predict", *good, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{good[0]}: ")
    assert lines[0].endswith(f" ms) -> {tmp_path / 'out' / 'two.jpg'}")
    assert lines[2] == f"results of 2 of 2 images: {tmp_path / 'out' / 'predictions.json'}"

    assert main(["predict", str(broken), *good, *options]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {broken} is not an image")
    assert "2 of 3 images" in captured.out

    assert main(["predict", str(broken), *options]) == 2
    assert str(broken) in one_line_error(capsys)


def test_evaluate_prints_and_writes_metrics(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "new" / "metrics.json"
    arguments = [
        "evaluate",
        "--model",
        str(tiny_model_file),
        "--images",
        str(synthetic_data.images),
    ]
    arguments += ["--annotations", str(synthetic_data.annotations), "--output", str(output)]
    assert main([*arguments, "--max-detections", "7"]) == 0
    captured = capsys.readouterr()
    assert "at most 7 detections per image" in captured.out
    assert "6 images, 9 instances, 2 classes" in captured.out
    assert ": star" in captured.err
    content = json.loads(output.read_text())
    assert content["model"] == str(tiny_model_file)
    assert (content["max_detections"], content["images"], content["failures"]) == (7, 6, [])
    assert content["bbox"].keys() == content["segm"].keys()
    assert 0 < content["bbox"]["AP"] < content["bbox"]["AP50"] <= 1
    assert content["bbox"]["per_class"].keys() == {"box", "disc"}
    assert f"{content['segm']['AP50']:.3f}" in captured.out


def test_class_names_in_brackets_are_printed_unchanged() -> None:
    from rich.console import Console

    from meinst.cli.evaluate import class_table
    from meinst.data.ground_truth import ClassMatch
    from meinst.data.metrics import APSummary
    from meinst.inference.evaluate import Metrics

    figures = APSummary(*[0.5] * 9)
    summary = replace(figures, per_class={"nut [m8]": figures, "a[/b]": figures})
    metrics = Metrics(summary, summary, 100, 1, 1, 1, ClassMatch((1, 2), (), ()), ())
    console = Console(width=100)
    with console.capture() as shown:
        console.print(class_table(metrics))
    assert "nut [m8]" in shown.get()
    assert "a[/b]" in shown.get()


def test_evaluate_reports_unreadable_images(
    synthetic_data: SyntheticData,
    tiny_model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = synthetic_data.content()
    images = tmp_path / "images"
    images.mkdir()
    for image in content["images"]:
        data = (synthetic_data.images / image["file_name"]).read_bytes()
        (images / image["file_name"]).write_bytes(data[:50] if image["id"] == 11 else data)
    del content["annotations"][1]["bbox"]
    content["annotations"][2]["segmentation"] = [[900, 900, 905, 900, 905, 905]]
    annotations = tmp_path / "some.json"
    annotations.write_text(json.dumps(content))
    arguments = ["evaluate", "--model", str(tiny_model_file), "--images", str(images)]
    assert main([*arguments, "--annotations", str(annotations)]) == 1
    captured = capsys.readouterr()
    assert "two.png is damaged" in captured.err
    assert "error: 1 of 6 images could not be read" in captured.err
    assert "some.json: dropped: 1 x mask outside the image" in captured.err
    assert "COCO metrics" in captured.out


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_terminated_command_writes_finished_results(
    synthetic_data: SyntheticData, tiny_model_file: Path, tmp_path: Path, sent: str, code: int
) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for index in range(300):
        shutil.copy(synthetic_data.images / "two.png", pictures / f"{index:03}.png")
    command = [sys.executable, "-m", "meinst", "predict", str(pictures)]
    command += ["--model", str(tiny_model_file), "--output", str(out)]
    with started(command, stdout=subprocess.PIPE) as process:
        assert b"000.png" in process.stdout.readline()
        process.send_signal(getattr(signal, sent))
        process.communicate(timeout=60)
    assert process.returncode == code
    images = json.loads((out / "images.json").read_text())["images"]
    assert 1 <= len(images) < 300
    assert {image["overlay"] for image in images} <= {path.name for path in out.glob("*.jpg")}
    assert (out / "predictions.journal").is_file()


def test_models_are_listed(
    tiny_model: MEInst,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from meinst.models import checkpoint

    monkeypatch.setattr(checkpoint, "ZOO", tmp_path)
    metrics = {"val/segm_AP": 0.4321}
    checkpoint.save_model(tiny_model, tmp_path / "tiny.safetensors", metrics=metrics)
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    parameters = sum(p.numel() for p in tiny_model.parameters())
    for part in ("tiny", "box, disc", "0.432", f"{parameters / 1e6:.2f} M"):
        assert part in shown


def test_demo_runs_both_models(
    tiny_model: MEInst,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from meinst.models import load as loading

    pytest.importorskip("skimage")
    loaded: list[str] = []

    def load(name: str) -> MEInst:
        loaded.append(name)
        return copy.deepcopy(tiny_model)

    monkeypatch.setattr(loading, "load", load)
    assert main(["demo", "--output", str(tmp_path)]) == 0
    assert loaded == ["photos", "nuclei"]
    overlays = [tmp_path / "photos/astronaut.jpg", tmp_path / "nuclei/immunohistochemistry.jpg"]
    shown = capsys.readouterr().out
    for overlay in overlays:
        assert overlay.stat().st_size > 1000
        assert f"\n  {overlay}" in shown


def test_demo_without_scikit_image(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert main(["demo"]) == 2
    assert "pip install 'meinst[demo]'" in one_line_error(capsys)


def test_train_passes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from meinst.models.recipe import load_recipe
    from meinst.training.options import TrainOptions

    calls: list[Any] = []
    fake = ModuleType("meinst.training.train")

    def train(options: TrainOptions) -> Path:
        calls.append(options)
        return options.output / "best.safetensors"

    fake.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "meinst.training.train", fake)
    arguments = "train --train-images a --train-annotations b --val-images c --val-annotations d"
    more = " --output e --recipe photos --seed 3 --resume --images-per-device 2"
    assert main((arguments + more).split()) == 0
    paths = [Path(letter) for letter in "abcde"]
    assert calls == [
        TrainOptions(None, *paths, load_recipe("photos"), seed=3, resume=True, images_per_device=2)
    ]


TRAIN = "train --train-images a --train-annotations b --val-images c --val-annotations d --output e"


@pytest.mark.parametrize(
    ("arguments", "key_facts"),
    [
        ("--recipe.schedule.revised_at [1500]", "revised_at must be increasing updates"),
        ("--minutes -3", "minutes must be at least 0, got -3"),
        ("--plan-only", "plan_only needs the time of a new run to plan; give --minutes"),
        ("--minutes 3 --devices 2", "minutes plans a run of one process, got 2"),
        ("--patience 0", "patience must be at least 1, got 0"),
        ("--recipe.typo 1", "--recipe.typo"),
        ("--recipe.schedule.iteratoins 1", "did you mean --recipe.schedule.iterations?"),
        ("--recipe.schedule.iterations ten", "--recipe.schedule.iterations: expected int, got ten"),
        ("--recipe photos --recipe nuclei", "--recipe is given twice"),
        ("--recipe.batch_size 2 --recipe.batch_size 4", "--recipe.batch_size is given twice"),
        ("--recipe old.yaml", "unknown key model.sight_channels; did you mean model."),
        ("--recipe older.yaml", "unknown key image_size; did you mean resize?"),
        ("--recipe twice.yaml", "the key model is given twice"),
        ("--recipe", "--recipe: expected one argument; see `meinst train --help`"),
        ("--recipe section.yaml", "schedule must be a section of options, got 500"),
    ],
)
def test_recipe_faults_are_one_line(
    arguments: str,
    key_facts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("lightning")
    monkeypatch.delenv("MEINST_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("old.yaml").write_text("base: photos\nmodel: {sight_channels: 8}\n")
    Path("older.yaml").write_text("base: photos\nimage_size: {shorter_side: 8}\n")
    Path("section.yaml").write_text("schedule: 500\n")
    Path("twice.yaml").write_text("model: {channels: 8}\nmodel: {channels: 9}\n")
    assert main(f"{TRAIN} {arguments}".split()) == 2
    assert key_facts in one_line_error(capsys)


def test_recipe_values_change_the_base_recipe() -> None:
    pytest.importorskip("lightning")
    from meinst.cli.train import parse_options
    from meinst.models.recipe import load_recipe

    arguments = f"{TRAIN} --recipe photos --recipe.schedule.iterations 2000".split()[1:]
    recipe, photos = parse_options(arguments).recipe, load_recipe("photos")
    assert recipe == replace(photos, schedule=replace(photos.schedule, iterations=2000))
    assert parse_options(TRAIN.split()[1:]).recipe is None
    own = parse_options([*TRAIN.split()[1:], "--init", "nuclei", "--recipe.batch_size", "8"]).recipe
    assert own is not None
    assert (own.batch_size, own.model.strides) == (8, (4, 8, 16, 32))
    assert (
        own.selection.score_threshold is None
    )  # the threshold of nuclei does not apply to other data


def test_train_without_its_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, "meinst.training.train", raising=False)
    arguments = "train --train-images a --train-annotations b --val-images c --val-annotations d"
    assert main([*arguments.split(), "--output", "e"]) == 2
    assert "lightning: pip install 'meinst[train]'" in one_line_error(capsys)
