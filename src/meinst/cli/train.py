"""``meinst train``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meinst.cli.parser import CommandParser, build

if TYPE_CHECKING:
    from meinst.training.options import TrainOptions

DESCRIPTION = """\
Train a model on your own data: a folder in any common layout, or COCO files.

The output folder then contains best.safetensors (for `meinst predict --model`) and
last.safetensors, the recipe, the codec, checkpoints, logs (CSV and TensorBoard), curves.png and
overlays.jpg (validation images). A stopped run continues with --resume.

With --minutes the run is planned: start, input size, crops, batch, rates and number of updates
follow from the data and from the speed of this machine, which is measured first. The plan is
printed with the reason of each choice. It is saved as recipe.yaml, for further runs with --recipe,
and as plan.json. While the run lasts, the number of updates is corrected to keep to the time."""

EXAMPLES = """
meinst train my-data --minutes 30 --output runs/mine
meinst train my-data --init photos --output runs/mine
meinst train --init photos --output runs/mine \\
    --train-images train --train-annotations train.json \\
    --val-images val --val-annotations val.json
meinst train --recipe photos --recipe.schedule.iterations 2000 --output runs/short ...
meinst train --resume --output runs/mine ...
meinst train --recipe.help
"""

RECIPE_HELP = (
    "a shipped recipe (default, photos, nuclei, or a published one: MEInst_R_50_1x, "
    "MEInst_R_50_1x_none, MEInst_R_50_3x, MEInst_R_50_3x_512) or a YAML file; by default that of "
    "--init, or default. --recipe.SECTION.KEY VALUE changes a value of it; --recipe.help lists them"
)


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    from meinst.cli.memory import keep_for_reuse

    options = parse_options(arguments)
    try:
        from meinst.training.train import train
    except ModuleNotFoundError as error:
        raise ImportError(
            f"training needs the package {error.name}: pip install 'meinst[train]'"
        ) from error
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("meinst").setLevel(logging.INFO)
    keep_for_reuse()
    train(options)
    return 0


class _PrintableFormatter(logging.Formatter):
    """Escapes control characters, which file names and class names may contain."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, in as many lines as it has."""
        from meinst.options import printable

        return "\n".join(map(printable, super().format(record).split("\n")))


def parse_options(arguments: Sequence[str]) -> TrainOptions:
    """The options of a training run.

    ``--recipe NAME|FILE`` chooses a recipe and ``--recipe.SECTION.KEY VALUE`` changes it.

    Raises:
        ValueError: if an option or the recipe is invalid.
        SystemExit: for ``--help`` and ``--recipe.help``, after printing.
    """
    from meinst.models.recipe import Recipe, load_recipe
    from meinst.options import options_to_dict
    from meinst.training.initialize import base_recipe
    from meinst.training.options import TrainOptions

    parser = CommandParser("train", DESCRIPTION, EXAMPLES)
    parser.add_dataclass(TrainOptions, positional=("data",), skip=("recipe",))
    parser.add_class_arguments(Recipe, "recipe")
    _format_recipe_help(parser, hide_keys="--recipe.help" not in arguments)
    if "--recipe.help" in arguments:
        parser.print_help()
        raise SystemExit(0)

    start, rest = _split_recipe(arguments)
    changed = any(each.startswith("--recipe.") for each in rest)
    if start.recipe is None and not changed:
        return build(TrainOptions, parser.parse(rest) | {"recipe": None})
    if start.recipe is not None:
        recipe = load_recipe(start.recipe)
        written = Path(start.output, "recipe.yaml")
        if not start.resume and Path(start.recipe).resolve() == written.resolve():
            raise ValueError(
                f"--recipe {start.recipe}: the run would overwrite it; choose another --output."
            )
    else:
        recipe = base_recipe(start.init, start.resume, Path(start.output))
    parser.set_defaults({"recipe": options_to_dict(recipe)})
    return build(TrainOptions, parser.parse(rest))


def _split_recipe(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that determine the recipe, and the arguments without ``--recipe``."""
    from meinst.training.options import TrainOptions

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--recipe", action="append")
    try:
        known, rest = parser.parse_known_args(arguments)
        parser.add_argument("--init")
        parser.add_argument("--output", default=TrainOptions.output)
        parser.add_argument("--resume", action="store_true")
        start, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        text = str(error).removeprefix("argument ")
        raise ValueError(f"{text}; see `meinst train --help`") from error
    if len(known.recipe or []) > 1:
        raise ValueError("--recipe is given twice; keep one; see `meinst train --help`")
    start.recipe = known.recipe[0] if known.recipe else None
    return start, rest


def _format_recipe_help(parser: CommandParser, *, hide_keys: bool) -> None:
    """Describe ``--recipe``, and hide its many keys from ``--help``."""
    parser.add_argument("--recipe.help", action="help", help="list all recipe options and exit")
    for action in parser._actions:
        if action.option_strings == ["--recipe"]:
            action.help, action.metavar = RECIPE_HELP, "NAME|FILE"
        elif hide_keys and action.dest.startswith("recipe."):
            action.help = argparse.SUPPRESS
