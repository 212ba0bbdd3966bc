"""``meinst models``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from meinst.cli.parser import parse_command

EXAMPLES = """
meinst models
meinst predict holiday.jpg --model photos
"""


@dataclass(frozen=True)
class ModelsArguments:
    """List the shipped models with their classes, size and validation AP (0 to 1)."""


def run(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parse_command(ModelsArguments, arguments, "models", EXAMPLES)

    from rich.console import Console
    from rich.table import Table

    from meinst.models.checkpoint import find_model, list_models, load_model, read_info

    table = Table()
    for heading in ("model", "classes"):
        table.add_column(heading, overflow="fold")
    for heading in ("size, MB", "parameters", "box AP", "mask AP"):
        table.add_column(heading, justify="right")
    for name in list_models():
        info = read_info(name)
        parameters = sum(parameter.numel() for parameter in load_model(name).parameters())
        table.add_row(
            name,
            ", ".join(info.class_names),
            f"{find_model(name).stat().st_size / 1e6:.1f}",
            f"{parameters / 1e6:.2f} M",
            *(
                f"{info.metrics[key]:.3f}" if key in info.metrics else "-"
                for key in ("val/bbox_AP", "val/segm_AP")
            ),
        )
    Console().print(table)
    return 0
