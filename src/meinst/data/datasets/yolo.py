"""YOLO's segmentation labels, as Ultralytics, Roboflow, CVAT and Label Studio write them.

One text file for each image, one object a line: its class and ``x y`` of its outline, divided by
the image's width and height. ``data.yaml`` (or ``classes.txt``, ``obj.names``) names the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml

from meinst.data.coco import CocoData
from meinst.data.datasets.assemble import LabelledImage, assemble
from meinst.data.datasets.image_sizes import UNREADABLE, image_sizes
from meinst.data.datasets.parts import (
    NO_MATCH,
    TEST,
    TRAIN,
    VAL,
    WHOLE,
    DatasetError,
    LayoutMatch,
    Part,
    ReadOptions,
    by_stem,
    list_files,
    list_images,
    name_parts,
    part_name,
    read_text,
    reject_unpaired,
)
from meinst.files import is_file, is_folder
from meinst.options import first_few

_NAME_FILES = ("classes.txt", "obj.names")
_PARTS = {TRAIN: (TRAIN,), VAL: (VAL, "valid"), TEST: (TEST,)}
_SHORTEST = 7  # class and three points
_BOX = (5, 6)  # class, centre, width and height, and perhaps a score
_NOT_LABELS = (*_NAME_FILES, "notes.txt", "readme.txt", "readme.dataset.txt", "readme.roboflow.txt")
BOX_ONLY = "label file with boxes, which have no outline"
NO_LABEL_FILE = "image without a label file, used as one without objects"


def find(root: Path) -> LayoutMatch:
    """Find the parts of a YOLO data set: ``data.yaml``, or a file of class names and ``labels``."""
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".yaml", ".yml"))
    described = [path for path in files if _is_description(path)]
    if len(described) > 1:
        names = first_few([path.name for path in described], 3)
        raise DatasetError(f"{root}: {names} all describe a YOLO data set; give one of them.")
    if described:
        return find_described(described[0])
    names_file = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    labels = root / "labels"
    if names_file is None:
        missing = "labels/*.txt, but no data.yaml" if _has_labels(labels) else ""
        return LayoutMatch(missing=missing)
    if not is_folder(labels):
        return NO_MATCH
    classes = [line.strip() for line in read_text(names_file).splitlines() if line.strip()]
    folders = sorted(path for path in (root / "images").glob("*/") if part_name(path.name))
    sources = name_parts(folders, root) if folders else {WHOLE: root / "images"}
    return LayoutMatch({name: _part([images], classes, root) for name, images in sources.items()})


def find_described(path: Path) -> LayoutMatch:
    """Find the parts that a ``data.yaml`` describes.

    Raises:
        DatasetError: if it is not valid, or a folder that it names does not exist.
    """
    content = _read_yaml(path)
    names = _class_names(content, path)
    base = _base_folder(content, path)
    parts = {}
    for part, keys in _PARTS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        if given is not None:
            values = given if isinstance(given, list) else [given]
            sources = [_resolve(value, base, path) for value in values]
            parts[part] = _part(sources, names, path)
    if not parts:
        raise DatasetError(f"{path} names no images: give train, val or test; see `meinst data`.")
    return LayoutMatch(parts)


def _part(sources: list[Path], names: Sequence[str], description: Path) -> Part:
    source = sources[0] if len(sources) == 1 else description
    return Part(source, partial(_read, sources, names, source))


def _read(
    sources: Sequence[Path], names: Sequence[str], source: Path, options: ReadOptions
) -> CocoData:
    """Read the labels of all images in some folders, or in lists of images (``.txt``)."""
    pairs: list[tuple[Path, Path]] = []
    for each in sources:
        pairs += _listed(each) if is_file(each) else _in_folder(each)
    if pairs and not any(is_file(label) for _, label in pairs):
        raise DatasetError(
            f"{source}: none of its {len(pairs)} images has a label file; the first is missing at "
            f"{pairs[0][1]}; put labels there."
        )
    return assemble(_labelled(pairs, names), names, source, options)


def _in_folder(images: Path) -> list[tuple[Path, Path]]:
    """Images of a folder with their label files, which need not exist."""
    labels = _label_path(images)
    found = by_stem(list_images(images), images)
    files = [
        path
        for path in (list_files(labels) if is_folder(labels) else [])
        if path.suffix == ".txt" and path.name.lower() not in _NOT_LABELS
    ]
    unpaired = [
        path.name
        for path in files
        if path.relative_to(labels).with_suffix("").as_posix() not in found
    ]
    reject_unpaired(labels, unpaired, f"label files without an image in {images}", "remove them.")
    return [(path, (labels / stem).with_name(f"{path.stem}.txt")) for stem, path in found.items()]


def _listed(path: Path) -> list[tuple[Path, Path]]:
    lines = [line.strip() for line in read_text(path).splitlines()]
    images = [path.parent / line for line in lines if line]
    missing = [str(image) for image in images if not is_file(image)]
    reject_unpaired(path, missing, "of its images do not exist", "correct the list.")
    return [(image, _label_path(image).with_suffix(".txt")) for image in images]


def _label_path(images: Path) -> Path:
    """The path with its last folder ``images`` replaced by ``labels``; else the same path."""
    parts = list(images.parts)
    for place in reversed(range(len(parts))):
        if parts[place].lower() == "images":
            parts[place] = "labels"
            return Path(*parts)
    return images


def _labelled(pairs: Sequence[tuple[Path, Path]], names: Sequence[str]) -> Iterator[LabelledImage]:
    sizes = image_sizes([image for image, _ in pairs])
    for (image, label), size in zip(pairs, sizes, strict=True):
        if size is None:
            yield LabelledImage(image, 1, 1, (), (), image.name, notes=[UNREADABLE])
            continue
        width, height = size
        try:
            text = label.read_text(encoding="utf-8")
        except FileNotFoundError:
            yield LabelledImage(image, width, height, (), (), label.name, notes=[NO_LABEL_FILE])
            continue
        except UnicodeDecodeError as error:
            raise DatasetError(f"{label} is not text (UTF-8); save it as text.") from error
        labels, masks, boxes = _parse(text, width, height, len(names), label)
        notes = [BOX_ONLY] if any(boxes) else []
        yield LabelledImage(
            image, width, height, labels, masks, label.name, notes=notes, boxes=boxes
        )


def _parse(
    text: str, width: int, height: int, classes: int, path: Path
) -> tuple[list[int], list[Any], list[list[float] | None]]:
    """Class, outline and box in pixels of each line: one of outline and box is None."""
    labels: list[int] = []
    masks: list[Any] = []
    boxes: list[list[float] | None] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), list(map(float, words[1:]))
        except ValueError as error:
            raise _line_error(path, number, "has words that are not numbers", line) from error
        if not 0 <= label < classes:
            raise DatasetError(
                f"{path}, line {number}: class {label} has no name, there are names for 0 to "
                f"{classes - 1}; add it to the names, or correct the label."
            )
        labels.append(label)
        if len(words) in _BOX:
            x, y, w, h = values[:4]
            boxes.append([(x - w / 2) * width, (y - h / 2) * height, w * width, h * height])
            masks.append(None)
            continue
        if len(words) < _SHORTEST or len(words) % 2 == 0:
            raise _line_error(path, number, "is not a class and three or more points", line)
        if max(values) > _LARGEST or min(values) < 1 - _LARGEST:
            raise _line_error(path, number, "is not divided by the image's width and height", line)
        outline = [
            value * side for value, side in zip(values, cycle((width, height)), strict=False)
        ]
        masks.append([outline])
        boxes.append(None)
    return labels, masks, boxes


_LARGEST = 2.0  # coordinates outside the image are clipped later, but these are in pixels


def _line_error(path: Path, number: int, fault: str, line: str) -> DatasetError:
    start = line if len(line) <= 40 else line[:40] + " ..."
    return DatasetError(f"{path}, line {number}: {start!r} {fault}; correct the line.")


def _is_description(path: Path) -> bool:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, OSError, ValueError):
        return False
    return (
        isinstance(content, dict)
        and "names" in content
        and bool({"train", "val", "valid", "test", "path", "nc"} & content.keys())
    )


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{path} is not YAML: {reason}; correct it.") from error
    if not isinstance(content, dict) or "names" not in content:
        raise DatasetError(
            f"{path} is no description of a YOLO data set: it has no names; give one such as "
            "data.yaml with train, val and names."
        )
    return content


def _class_names(content: Mapping[str, Any], path: Path) -> list[str]:
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DatasetError(
                f"{path}: the keys of names are {first_few(list(map(str, names)), 5)}, not 0 to "
                f"{len(names) - 1}; number the classes from 0 without gaps."
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{path}: names is no list of class names; correct it.")
    if content.get("nc", len(names)) != len(names):
        raise DatasetError(
            f"{path}: nc is {content['nc']}, but there are {len(names)} names; correct one of them."
        )
    return [str(name) for name in names]


def _base_folder(content: Mapping[str, Any], path: Path) -> Path:
    """The folder that paths are relative to: ``path`` if it exists, else that of the file."""
    given = content.get("path")
    if given:
        for base in (path.parent / str(given), Path(str(given))):
            if is_folder(base):
                return base
    return path.parent


def _resolve(value: Any, base: Path, path: Path) -> Path:
    """A folder of images or a list of images (``.txt``).

    Some exports write ``../train/images`` for a folder that is beside the file.
    """
    text = str(value).replace("\\", "/")
    beside = text
    while beside.startswith("../"):
        beside = beside[3:]
    candidates = [base / text, base / beside, base / beside / "images"]
    for candidate in candidates:
        if is_folder(candidate) or (candidate.suffix == ".txt" and is_file(candidate)):
            return candidate
    raise DatasetError(f"{path}: {value} does not exist in {base}; correct the path.")


def _has_labels(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix == ".txt" for path in list_files(folder))
