"""``meinst convert``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst.cli.arguments import parse_arguments

EXAMPLES = """
meinst convert MEInst_R_50_3x.pth r50_3x.safetensors
meinst convert hf://ZjuCv/AdelaiDet/MEInst_R_50_3x.pth r50_3x.safetensors
meinst convert MEInst_R_50_3x_512.pth r50_512.safetensors --recipe MEInst_R_50_3x_512
meinst convert R-50.pkl r50.safetensors
meinst convert r50_3x.safetensors back.pth --to adelaidet
"""


@dataclass(frozen=True)
class ConvertArguments:
    """Translate published weights to a file of meinst, or a model back.

    A MEInst checkpoint of AdelaiDet becomes a model for --model of predict and evaluate and for
    --init of train. A backbone of Detectron2 (ImageNet, MSRA: R-50.pkl) becomes a file for
    --backbone-weights of train. Nothing in a file is executed, every tensor has to fit, and the
    output is written whole or not at all.

    Attributes:
        source: a .pth or .pkl file, hf://OWNER/REPO/FILE on the Hugging Face hub, or, with --to,
            a model of meinst (a file or a shipped model's name).
        output: the file to write, .safetensors or, with --to adelaidet, .pth.
        recipe: a shipped recipe or a YAML file that the checkpoint was trained by; by default
            found from its tensors. Recipes with the same network cannot be told apart:
            MEInst_R_50_3x is taken, so name MEInst_R_50_1x and MEInst_R_50_3x_512.
        class_names: names of the classes, separated by commas, of a checkpoint trained on
            another data set; by default COCO's 80.
        to: adelaidet turns a model of meinst back to a checkpoint that AdelaiDet loads, the
            same tensors bit for bit; for models of the recipes MEInst_R_50_* and other such
            ResNets. By default the translation is to meinst.
    """

    source: str
    output: Path
    recipe: str | None = None
    class_names: str | None = None
    to: str | None = None


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_arguments(
        ConvertArguments, arguments, "convert", EXAMPLES, ("source", "output")
    )
    if options.to not in (None, "adelaidet"):
        raise ValueError(f"--to {options.to}: only adelaidet is known; see `meinst convert --help`")
    if options.to and (options.recipe or options.class_names):
        raise ValueError("--recipe and --class-names are for translating to meinst, not for --to.")

    from meinst.compat.convert import convert, convert_back

    if options.to:
        done = convert_back(options.source, options.output)
    else:
        names = [name.strip() for name in (options.class_names or "").split(",") if name.strip()]
        done = convert(options.source, options.output, options.recipe, names)
    print(f"found: {done.found}, {done.tensors} tensors, {done.recipe}")
    for note in done.notes:
        print("note:", note)
    print(f"written: {options.output}")
    return 0
