"""The command ``meinst``: finds the subcommand, turns known errors into one line.

Nothing heavy is imported here: a subcommand's module is, when that subcommand is called.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from types import FrameType
from typing import Any, NoReturn

COMMANDS = {
    "demo": "try the shipped models on two pictures (of scikit-image)",
    "predict": "segment images: overlays and COCO results",
    "models": "list the shipped models",
    "train": "train on your own COCO-format data",
    "evaluate": "measure a model: COCO box and mask AP",
    "codec": "fit, compare and look at mask codecs",
    "export": "convert a model for OpenVINO or ONNX Runtime, 8 bits if wished",
    "convert": "use the published MEInst weights, or an ImageNet backbone",
}

EXAMPLES = """\
examples:
  meinst demo
  meinst predict holiday.jpg scans/ --model photos --output found
  meinst train --recipe photos --init photos --output runs/mine \\
      --train-images train --train-annotations train.json \\
      --val-images val --val-annotations val.json
  meinst evaluate --model runs/mine/best.safetensors --images val --annotations val.json
  meinst convert MEInst_R_50_3x.pth r50_3x.safetensors

`meinst COMMAND --help` tells a command's options. Exit code: 0 all done; 1 part of it failed
(the rest is done); 2 bad arguments or input; 130 interrupted; 143 told to stop (SIGTERM).
MEINST_TRACEBACK=1 in the environment shows where in the code an error was raised."""

# What the engine raises with a message for users; anything else is a fault of this program.
KNOWN_ERRORS = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, ``sys.argv`` by default, and return its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may hold what a terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata; only pixels count here
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as stop:
        print("interrupted", *stop.args, file=sys.stderr, sep=": ")
        return 130
    except KNOWN_ERRORS as error:
        if os.environ.get("MEINST_TRACEBACK"):
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the work as Ctrl-C does: what was done is written first."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has not both
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(arguments: list[str]) -> int:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{what}" for name, what in COMMANDS.items())
    parser = _Parser(
        prog="meinst",
        usage="meinst [--help] [--version] COMMAND ...",
        description="Instance segmentation in which every mask is a short vector.",
        epilog=f"commands:\n{commands}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("--help", "-h", action="help", help="show this and exit")
    parser.add_argument(
        "--version", action="version", version=version("meinst"), help="show the version and exit"
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help(sys.stderr)
        return 2
    if parsed.command not in COMMANDS:
        raise ValueError(f"there is no command {parsed.command!r}; choose of {', '.join(COMMANDS)}")
    module = importlib.import_module(f"meinst.cli.{parsed.command}")
    # Training saves its state first, and would be ended before.
    with nullcontext() if parsed.command == "train" else _ended_by_signals():
        code: int = module.run(parsed.rest)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Leave the printing to :func:`main`."""
        raise ValueError(f"{message}; see `{self.prog} --help`")
