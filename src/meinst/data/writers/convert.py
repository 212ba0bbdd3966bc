"""Write a data set in another layout, images included, completely or not at all."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from meinst.data.coco import CocoData
from meinst.data.datasets.parts import DatasetError
from meinst.data.writers.layouts import (
    COCOWriter,
    LabelImageWriter,
    LabelmeWriter,
    Writer,
    YOLOWriter,
)

Target = Literal["coco", "yolo", "labelme", "label-images"]
WRITERS: dict[Target, type[Writer]] = {
    "coco": COCOWriter,
    "yolo": YOLOWriter,
    "labelme": LabelmeWriter,
    "label-images": LabelImageWriter,
}

_UNFINISHED = ".unfinished"


def write_dataset(
    parts: Mapping[str, CocoData],
    output: Path,
    target: Target = "coco",
    *,
    on_image: Callable[[], None] = lambda: None,
) -> Counter[str]:
    """Write data as a data set in some layout; images are copied.

    Args:
        parts: the data by name of the part.
        output: folder of the data set; must not exist, or be empty.
        target: the layout.
        on_image: called after each image.

    Returns:
        What the layout cannot represent, with the number of objects.

    Raises:
        DatasetError: if the folder is not empty, classes differ between the parts, or an image is
            missing.
    """
    names = {data.class_names for data in parts.values()}
    if len(names) != 1:
        raise DatasetError(f"{output}: the parts have different classes; give them the same.")
    if output.is_dir() and any(output.iterdir()):
        raise DatasetError(f"{output} is not empty; choose another folder.")
    unfinished = output.with_name(output.name + _UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    unfinished.mkdir(parents=True)
    try:
        writer = WRITERS[target](unfinished, names.pop())
        for part, data in parts.items():
            _write_part(writer, part, data, on_image)
        writer.finish(list(parts))
        if output.is_dir():
            output.rmdir()
        unfinished.replace(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return +writer.lost  # without zeros


def _write_part(writer: Writer, part: str, data: CocoData, on_image: Callable[[], None]) -> None:
    folder = writer.image_folder(part)
    folder.mkdir(parents=True, exist_ok=True)
    for index, (name, record) in enumerate(zip(_file_names(data), data.images, strict=True)):
        assert record.path is not None
        try:
            shutil.copyfile(record.path, folder / name)
        except OSError as error:
            raise DatasetError(
                f"{record.path} cannot be copied ({error.strerror}); restore or remove it."
            ) from error
        writer.add(part, name, data, index)
        on_image()


def _file_names(data: CocoData) -> list[str]:
    """A file name for each image: its own, after those of its folders where names repeat.

    Names without their suffix differ too, since label files have the same name.
    """
    paths = [record.path or Path(str(record.id)) for record in data.images]
    counts = Counter(path.stem.casefold() for path in paths)
    names, used = [], set()
    for number, path in enumerate(paths, 1):
        name = path.name
        if counts[path.stem.casefold()] > 1:
            name = f"{path.parent.name}_{path.name}"
        while Path(name).stem.casefold() in used:
            name = f"{Path(name).stem}_{number}{path.suffix}"
        used.add(Path(name).stem.casefold())
        names.append(name)
    return names
