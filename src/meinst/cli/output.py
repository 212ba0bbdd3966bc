"""What commands share: progress, warnings, and the check of a file they will write."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meinst.data.coco import CocoData, Report


@contextmanager
def mask_progress(
    total: int | None = None, *, noun: str = "masks", shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """A bar of masks done and masks per second.

    Args:
        total: number of masks, where it is known.
        noun: what is counted, where it is not masks.
        shown: whether there is a bar.

    Yields:
        To be called with a number of masks whenever so many more are done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f} {noun}/s")

    console = Console(stderr=True)
    progress = Progress(
        TextColumn(f"{noun} {{task.completed:,.0f}}"),
        BarColumn(),
        Speed(),
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
    )
    with progress:
        task = progress.add_task(noun, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def told_warnings() -> Iterator[None]:
    """Warnings as lines on the error stream, without their place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in caught):
                print("warning:", " ".join(text.split()), file=sys.stderr)


def check_file(path: Path, others: Iterable[Path] = (), option: str = "--output") -> None:
    """Prove that a file can be written there before the work begins that fills it.

    Args:
        path: the file.
        others: files that are read or written by the same command.
        option: which option gave it.

    Raises:
        ValueError: it is a folder, or one of the others.
        OSError: its folder cannot be written.
    """
    from meinst.engine.predict import check_folder

    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the name of a file.")
    if path.resolve() in {other.resolve() for other in others}:
        raise ValueError(f"{option} {path} would overwrite a file of this command; give another.")
    check_folder(path.parent)


def check_each_once(paths: Iterable[Path]) -> None:
    """Refuse a file that is given twice, under whatever names.

    Raises:
        ValueError: naming both.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        first = found.setdefault(path.resolve(), path)
        if first is not path:
            raise ValueError(f"{path} and {first} are one file, which would count twice.")


def read_told(annotations: Path, images: Path | None = None) -> CocoData:
    """Read annotations and tell what is faulty in them; see :func:`meinst.data.coco.read_coco`."""
    from meinst.data.coco import read_coco

    data = read_coco(annotations, images)
    tell_report(annotations, data.report)
    return data


def read_all_told(annotations: Sequence[Path]) -> list[CocoData]:
    """Read several annotation files without images.

    Raises:
        ValueError: if one is given twice, or is no annotation file.
    """
    check_each_once(annotations)
    return [read_told(path) for path in annotations]


def tell_report(path: Path, report: Report) -> None:
    """What was found faulty in an annotation file, as lines on the error stream."""
    for line in str(report).splitlines():
        print(f"warning: {path}:", line, file=sys.stderr)
