"""``meinst convert``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meinst.cli.parser import parse_command

EXAMPLES = """
meinst convert MEInst_R_50_3x.pth r50_3x.safetensors
meinst convert hf://ZjuCv/AdelaiDet/MEInst_R_50_3x.pth r50_3x.safetensors
meinst convert MEInst_R_50_3x_512.pth r50_512.safetensors --recipe MEInst_R_50_3x_512
meinst convert R-50.pkl r50.safetensors
meinst convert r50_3x.safetensors back.pth --to adelaidet
"""


@dataclass(frozen=True)
class ConvertArguments:
    """Convert published weights to a file of meinst, or a model to a published checkpoint.

    A MEInst checkpoint of AdelaiDet becomes a model file for predict, evaluate and train --init. A
    Detectron2 backbone (ImageNet, MSRA: R-50.pkl) becomes a file for train --backbone-weights. Code
    in a file is never executed, every tensor must match, and the output is written completely or
    not at all.

    Attributes:
        source: a .pth or .pkl file, hf://OWNER/REPO/FILE on the Hugging Face hub, or, with --to,
            a model of meinst (a file or a shipped model's name).
        output: the file to write, .safetensors or, with --to adelaidet, .pth.
        recipe: the shipped recipe or YAML file that the checkpoint was trained with; by default it
            is derived from the tensors. Some recipes have the same network: of these,
            MEInst_R_50_3x is assumed, so give MEInst_R_50_1x or MEInst_R_50_3x_512 explicitly.
        class_names: comma-separated names of the classes of a checkpoint trained on another data
            set; by default COCO's 80.
        to: adelaidet converts a model of meinst back to a checkpoint for AdelaiDet, with the same
            tensors bit for bit; for models of the recipes MEInst_R_50_* and similar ResNets. By
            default the conversion is to meinst.
    """

    source: str
    output: Path
    recipe: str | None = None
    class_names: str | None = None
    to: str | None = None


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    options = parse_command(ConvertArguments, arguments, "convert", EXAMPLES, ("source", "output"))
    if options.to not in (None, "adelaidet"):
        raise ValueError(
            f"--to {options.to}: the only choice is adelaidet; see `meinst convert --help`"
        )
    if options.to and (options.recipe or options.class_names):
        raise ValueError("--recipe and --class-names cannot be combined with --to; leave them out.")

    from meinst.compat.convert import convert, convert_back

    if options.to:
        done = convert_back(options.source, options.output)
    else:
        names = [name.strip() for name in (options.class_names or "").split(",") if name.strip()]
        done = convert(options.source, options.output, options.recipe, names)
    print(f"source: {done.found}, {done.tensors} tensors, {done.recipe}")
    for note in done.notes:
        print("note:", note)
    print(f"written: {options.output}")
    return 0
