"""The command ``meinst``: runs a subcommand and prints known errors in one line.

A subcommand's module is imported only when it is called, so that ``meinst --help`` is fast.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, NoReturn

from meinst.version import __version__

COMMANDS = {
    "demo": "try the shipped models on two images from scikit-image",
    "predict": "segment images: write overlays and COCO results",
    "models": "list the shipped models",
    "data": "check, convert, divide and reduce data sets",
    "train": "train on your own data, a folder of any layout",
    "evaluate": "evaluate a model: COCO AP of boxes and masks",
    "codec": "fit, compare, evaluate and plot mask codecs",
    "export": "export a model to OpenVINO or ONNX Runtime, optionally with 8 bits",
    "convert": "convert published MEInst weights, or an ImageNet backbone",
}

EXAMPLES = """\
examples:
  meinst demo
  meinst predict holiday.jpg scans/ --model photos --output found
  meinst train my-data --init photos --output runs/mine
  meinst evaluate my-data --model runs/mine/best.safetensors
  meinst convert MEInst_R_50_3x.pth r50_3x.safetensors

`meinst COMMAND --help` describes a command. Exit codes: 0 success; 1 some inputs failed, the
others were processed; 2 invalid arguments or input; 130 interrupted; 143 terminated (SIGTERM).
Set the environment variable MEINST_TRACEBACK=1 to print tracebacks of errors."""

# Errors whose message is meant for users; any other error is a bug.
KNOWN_ERRORS = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, ``sys.argv`` by default, and return its exit code."""
    if hasattr(sys.stdout, "reconfigure"):  # for file names that the terminal cannot print
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they concern metadata, not pixels
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # likewise
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt as stop:
        print("interrupted", *stop.args, file=sys.stderr, sep=": ")
        return 130
    except KNOWN_ERRORS as error:
        if os.environ.get("MEINST_TRACEBACK"):
            raise
        print_error(error)
        return 2


def print_error(error: object) -> None:
    """Print an error in one line, whatever file names it contains."""
    from meinst.options import printable

    print("error:", printable(" ".join(str(error).split())), file=sys.stderr, flush=True)


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Exit on SIGTERM and SIGHUP as on Ctrl-C, so that finished results are still written."""

    def exit_with_code(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, exit_with_code)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(arguments: list[str]) -> int:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="meinst",
        usage="meinst [--help] [--version] COMMAND ...",
        description="Instance segmentation in which every mask is a short vector.",
        epilog=f"commands:\n{commands}\n\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("--help", "-h", action="help", help="show this help and exit")
    parser.add_argument(
        "--version", action="version", version=__version__, help="show the version and exit"
    )
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.command is None:
        parser.print_help(sys.stderr)
        return 2
    if parsed.command not in COMMANDS:
        raise ValueError(f"unknown command {parsed.command!r}; choose one of {', '.join(COMMANDS)}")
    module = importlib.import_module(f"meinst.cli.{parsed.command}")
    # Training handles signals itself: it saves a checkpoint first.
    with nullcontext() if parsed.command == "train" else _exit_on_signals():
        code: int = module.run(parsed.rest)
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise the error, which :func:`main` prints."""
        raise ValueError(f"{message}; see `{self.prog} --help`")
