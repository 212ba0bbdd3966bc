"""What the commands share: progress bars, warnings, and checks of the files they will write."""

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
    """A progress bar of masks done and masks per second.

    Args:
        total: number of masks, if known.
        noun: what is counted, if not masks.
        shown: whether to show the bar.

    Yields:
        A function to call with the number of further masks done.
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
def window_progress() -> Iterator[Callable[[int, int], None]]:
    """A progress bar of the windows of a large image, shown while there is one.

    Yields:
        A function to call with the number of windows done and in all.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("windows", visible=False)

        def report(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total, visible=done < total)

        yield report


@contextmanager
def print_warnings() -> Iterator[None]:
    """Print warnings as lines on the error stream, without their place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(warning.message) for warning in caught):
                print("warning:", " ".join(text.split()), file=sys.stderr)


def check_file(path: Path, others: Iterable[Path] = (), option: str = "--output") -> None:
    """Verify that a file can be written, before the work begins that fills it.

    Args:
        path: the file.
        others: files that the same command reads or writes.
        option: the option that gave it.

    Raises:
        ValueError: if it is a folder, or one of the others.
        OSError: if its folder cannot be written.
    """
    from meinst.files import check_folder

    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder; give the name of a file.")
    if path.resolve() in {other.resolve() for other in others}:
        raise ValueError(
            f"{option} {path} would overwrite another file of this command; choose another "
            f"{option}."
        )
    check_folder(path.parent)


def check_distinct(paths: Iterable[Path]) -> None:
    """Reject a file that is given twice, even under different names.

    Raises:
        ValueError: naming both.
    """
    known: dict[Path, Path] = {}
    for path in paths:
        first = known.setdefault(path.resolve(), path)
        if first is not path:
            raise ValueError(
                f"{path} and {first} are the same file, which would count twice; give it once."
            )


def read_and_report(
    annotations: Path,
    images: Path | None = None,
    *,
    crowd_as_instances: bool = False,
    boxes_alone: bool = False,
    allow_outside: bool = False,
) -> CocoData:
    """Read annotations as :func:`meinst.read_coco`, and print what was left out or repaired."""
    from meinst.data.coco import read_coco

    data = read_coco(
        annotations,
        images,
        crowd_as_instances=crowd_as_instances,
        boxes_alone=boxes_alone,
        allow_outside=allow_outside,
    )
    print_report(annotations, data.report)
    return data


def read_part_and_report(
    path: Path,
    part: str | None = None,
    *,
    crowd_as_instances: bool = False,
    boxes_alone: bool = False,
    allow_outside: bool = False,
) -> CocoData:
    """Read a part of a data set, and print its layout and what was left out or repaired.

    Args:
        path: the data set.
        part: name of the part; by default the one to measure on.
        crowd_as_instances: read crowd regions as ordinary instances.
        boxes_alone: read objects with a box and no mask, too.
        allow_outside: allow file names that lead out of the image folder.
    """
    from meinst.data.datasets.dataset import open_dataset

    dataset = open_dataset(path)
    print(dataset, file=sys.stderr)
    data = dataset.read(
        part or dataset.evaluation_part(),
        crowd_as_instances=crowd_as_instances,
        boxes_alone=boxes_alone,
        allow_outside=allow_outside,
    )
    print_report(data.annotations, data.report)
    return data


def read_parts_and_report(
    path: Path, *, crowd_as_instances: bool = False, allow_outside: bool = False
) -> dict[str, CocoData]:
    """Read all parts of a data set, and print its layout and what was left out or repaired.

    Args:
        path: the data set.
        crowd_as_instances: read crowd regions as ordinary instances.
        allow_outside: allow file names that lead out of the image folder.
    """
    from meinst.data.datasets.dataset import open_dataset

    dataset = open_dataset(path)
    print(dataset, file=sys.stderr)
    parts = {}
    for name in dataset.parts:
        parts[name] = dataset.read(
            name, crowd_as_instances=crowd_as_instances, allow_outside=allow_outside
        )
        print_report(parts[name].annotations, parts[name].report)
    return parts


def read_all_and_report(
    annotations: Sequence[Path], *, crowd_as_instances: bool = False
) -> list[CocoData]:
    """Read several annotation files without images.

    Raises:
        ValueError: if one is given twice, or is not an annotation file.
    """
    check_distinct(annotations)
    return [read_and_report(path, crowd_as_instances=crowd_as_instances) for path in annotations]


def print_report(path: Path, report: Report) -> None:
    """Print what was found while reading an annotation file, on the error stream."""
    for line in str(report).splitlines():
        kind = "note" if line.startswith("note: ") else "warning"
        print(f"{kind}: {path}:", line.removeprefix("note: "), file=sys.stderr)
