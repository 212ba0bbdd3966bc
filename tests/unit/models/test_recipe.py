from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from meinst.models.recipe import RECIPES, Recipe, list_recipes, load_recipe
from meinst.options import options_from_dict, options_to_dict
from meinst.training.options import TrainOptions

MEASURED = Path(__file__).parents[3] / "benchmarks" / "recipes"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_empty_file_is_the_default_recipe(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, "")) == Recipe()


def test_missing_values_take_their_defaults(tmp_path: Path) -> None:
    text = "model: {strides: [4, 8], distance_limits: [32]}\noptimizer: {lr: 1e-3}\nbatch_size: 2"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.model.strides == (4, 8)
    assert recipe.optimizer.lr == 0.001
    assert recipe.batch_size == 2
    assert recipe.schedule == Recipe().schedule


def test_recipe_survives_writing_and_reading(tmp_path: Path) -> None:
    recipe = replace(Recipe(), batch_size=7)
    assert load_recipe(write(tmp_path, yaml.safe_dump(options_to_dict(recipe)))) == recipe


def test_yaml_merge_keys_are_no_repeated_keys(tmp_path: Path) -> None:
    text = "model: {head: &head {num_convs: 2}, channels: 64}\n"
    merged = "loss: {<<: &loss {box_weight: 3}, focal_alpha: 0.5}\n"
    recipe = load_recipe(write(tmp_path, text + merged))
    assert (recipe.model.head.num_convs, recipe.loss.box_weight) == (2, 3)
    assert recipe.loss.focal_alpha == 0.5


def test_recipe_overrides_its_base(tmp_path: Path) -> None:
    photos = load_recipe("photos")
    assert load_recipe(write(tmp_path, "base: photos")) == photos
    text = "base: photos\nschedule: {iterations: 5400}\naugment: {scale_jitter: [0.5, 1]}"
    schedule = replace(photos.schedule, iterations=5400)
    augment = replace(photos.augment, scale_jitter=(0.5, 1.0))
    mine = replace(photos, schedule=schedule, augment=augment)
    assert load_recipe(write(tmp_path, text)) == mine
    (tmp_path / "more").mkdir()
    nested = tmp_path / "more" / "nested.yaml"
    nested.write_text("base: ../mine.yaml\nbatch_size: 8")  # relative to its own folder
    assert load_recipe(nested) == replace(mine, batch_size=8)


@pytest.mark.parametrize(
    ("base", "error", "words"),
    [
        ("nowhere", FileNotFoundError, r"mine\.yaml: base 'nowhere'"),
        ("x" * 9000, FileNotFoundError, r"mine\.yaml: base 'xxx"),
        ("mine.yaml", ValueError, r"mine\.yaml: base "),
    ],
)
def test_invalid_base_is_an_error(
    tmp_path: Path, base: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        load_recipe(write(tmp_path, f"base: {base}"))


# 9 ** 11 values in half a kilobyte
ALIASES = "l0: &l0 [a]\n" + "".join(
    f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimiser: {lr: 1}", ["optimiser"]),
        ("optimizer: {learning_rate: 1}", ["learning_rate"]),
        ("optimizer: {lr: fast}", ["lr", "fast"]),
        ("schedule: {decay: linear}", ["decay", "linear"]),
        ("selection: {candidate_threshold: 2}", ["candidate_threshold", "got 2"]),
        ("- 1", ["mapping", "list"]),
        ("optimizer: [1e-4]", ["optimizer", "must be a section", "lr, "]),
        ("base: photos\nschedule: 500", ["schedule", "must be a section", "got 500"]),
        ("a: [", ["not a YAML file"]),
        ("batch_size: 2026-13-45", ["not a YAML file", "month"]),
        ("batch_size: " + "9" * 5000, ["not a YAML file", "digits"]),
        ("- " * 5000, ["not a YAML file", "recursion"]),
        ("? {a: 1}\n: 1", ["not a YAML file", "unhashable"]),
        ('loss: {"\\udc80\\n": 1}', ["unknown key", "udc80"]),
        ('"\\ud800": {"\\e[31m": 1}', ["ud800"]),
        (f"model: {'x' * 9000}", ["must be a section", "Its keys are"]),
        ("model: &m {head: *m}", ["aliases"]),
        (ALIASES, ["at most", "aliases"]),
    ],
)
def test_faults_name_the_file_and_the_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=str(path)) as caught:
        load_recipe(path)
    for word in words:
        assert word in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) <= 2000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "schedule: {iterations: 10, revised_at: [4], revised_from: [3]}",
            r"revised_at .+got \(4,\) and \(3,\) for iterations = 10",
        ),
        ("schedule: {iterations: 10, revised_at: [10], revised_from: [12]}", "revised_at"),
        ("schedule: {iterations: 10, revised_at: [4, 4], revised_from: [8, 9]}", "revised_at"),
        ("schedule: {iterations: 10, revised_at: [4]}", "revised_at"),
        ("schedule: {iterations: 0}", "iterations must be at least 1, got 0"),
        ("batch_size: 0", "batch_size must be at least 1, got 0"),
        ("selection: {nms_threshold: 60}", "nms_threshold must be between 0 and 1, got 60"),
        ("loss: {refine_samples: -1}", "refine_samples must be at least 0, got -1"),
        ("loss: {dice_weight: .nan}", "dice_weight must be at least 0, got nan"),
        ("loss: {focal_alpha: 7}", "focal_alpha must be between 0 and 1, got 7"),
        ("model: {head: {num_convs: -1}}", "num_convs must be between 0 and 64, got -1"),
        ("model: {channels: 1000000}", "channels must be between 1 and 4096, got 1000000"),
        ("model: {refine_channels: 5000}", "refine_channels must be between 0 and 4096, got 5000"),
        ("codec: {mask_size: 10000}", "mask_size must be between 1 and 512, got 10000"),
        ("optimizer: {ema_decay: 2}", "ema_decay must be between 0 and 1, got 2"),
        ("optimizer: {lr: -0.1}", "lr must be at least 0, got -0.1"),
        ("schedule: {warmup_iterations: -5}", "warmup_iterations must be at least 0, got -5"),
        (
            "model: {backbone_levels: []}",
            r"backbone_levels .+got \(\)",
        ),
        ("model: {pixel_std: [1, 0, 1]}", r"pixel_std .+got \(1.0, 0.0, 1.0\)"),
        ("augment: {hue: 0.7}", "hue must be between 0 and 0.5, got 0.7"),
    ],
)
def test_rejects_impossible_numbers(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_recipe(write(tmp_path, text))


@pytest.mark.parametrize("base", ["", "base: photos\n"])
def test_empty_section_keeps_the_values_of_the_base(tmp_path: Path, base: str) -> None:
    text = base + "schedule:\n  # iterations: 2000\n"
    text += "model: {head: , channels: 64, pyramid_norm_groups: 8}\n"
    recipe = load_recipe(write(tmp_path, text))
    expected = load_recipe("photos") if base else Recipe()
    assert recipe.schedule == expected.schedule
    assert recipe.model.head == expected.model.head
    assert recipe.model.channels == 64


def test_train_options_are_checked() -> None:
    paths = [None, *[Path("x")] * 5]
    for name in ("devices", "num_nodes", "images_per_device", "checkpoint_every"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            TrainOptions(*paths, **{name: 0})
    with pytest.raises(ValueError, match=r"seed .+got -1"):
        TrainOptions(*paths, seed=-1)
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        TrainOptions(*paths, workers=-1)
    for wrong in ([], [Path("x")] * 5, [None, Path("x")]):
        with pytest.raises(ValueError, match="give the data once: either a data set"):
            TrainOptions(*wrong)
    assert TrainOptions(Path("x")).output == Path("runs/train")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(FileNotFoundError, match=r"'nowhere' .*nuclei"):
        load_recipe("nowhere")


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipes_are_complete_and_contain_their_command(name: str) -> None:
    recipe = load_recipe(name)
    assert options_from_dict(Recipe, options_to_dict(recipe), name) == recipe
    assert f"meinst train --recipe {name} " in (RECIPES / f"{name}.yaml").read_text()


@pytest.mark.parametrize("path", sorted(MEASURED.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_benchmarks_can_be_read(path: Path) -> None:
    recipe = load_recipe(path)
    assert options_from_dict(Recipe, options_to_dict(recipe), path.name) == recipe


@pytest.mark.parametrize("data", ["nuclei", "photos"])
def test_published_method_is_compared_with_equal_options(data: str) -> None:
    own = load_recipe(MEASURED / f"{data}_25.yaml")
    plain = load_recipe(MEASURED / f"plain_{data}.yaml")
    for part in ("augment", "resize", "codec", "selection"):
        assert getattr(plain, part) == getattr(own, part)
    optimizer = replace(own.optimizer, ema_decay=plain.optimizer.ema_decay)
    assert plain.optimizer == optimizer
    assert plain.model.backbone == own.model.backbone
