"""Pascal VOC and SBD: for each image one label image of objects and one of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from meinst.data.coco import CocoData
from meinst.data.datasets.assemble import LabelledImage, assemble
from meinst.data.datasets.matlab import read_matlab
from meinst.data.datasets.parts import (
    NO_MATCH,
    WHOLE,
    DatasetError,
    LayoutMatch,
    Part,
    ReadOptions,
    by_stem,
    list_images,
    part_name,
    read_label_file,
    read_text,
    reject_unpaired,
)
from meinst.ops.label_runs import colour_numbers, label_counts

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)

_BORDER = 255  # pixels between objects, of no class
_LABEL_MAP = "labelmap.txt"  # CVAT's: name:r,g,b:parts:actions


def find_voc(root: Path) -> LayoutMatch:
    """Find Pascal VOC's folders, in the folder itself or in ``VOCdevkit/VOC2012``."""
    for base in (root, *sorted(root.glob("VOC2*")), *sorted(root.glob("VOCdevkit/VOC2*"))):
        if (base / "SegmentationObject").is_dir():
            if not (base / "SegmentationClass").is_dir():
                return LayoutMatch(missing="SegmentationObject, but no SegmentationClass")
            lists = sorted((base / "ImageSets" / "Segmentation").glob("*.txt"))
            images = base / "JPEGImages"
            labels = base / "SegmentationObject"
            names = [path.stem for path in list_images(labels)]
            read = partial(_read, images, base, _VOCLabels(base))
            return _parts(lists, names, labels, read)
    return NO_MATCH


def find_sbd(root: Path) -> LayoutMatch:
    """Find SBD's folders ``img`` and ``inst``, in the folder itself or in ``dataset``."""
    for base in (root, root / "dataset", root / "benchmark_RELEASE" / "dataset"):
        if (base / "inst").is_dir() and (base / "img").is_dir():
            names = sorted(path.stem for path in (base / "inst").glob("*.mat"))
            lists = sorted(base.glob("*.txt"))
            read = partial(_read, base / "img", base, _SBDLabels(base))
            return _parts(lists, names, base / "inst", read)
    return NO_MATCH


def _parts(
    lists: Sequence[Path], names: Sequence[str], source: Path, read: Callable[..., CocoData]
) -> LayoutMatch:
    named = {part_name(path.stem): path for path in lists if path.stem in ("train", "val", "test")}
    if not named:
        return LayoutMatch({WHOLE: Part(source, partial(read, names, source))})
    return LayoutMatch(
        {name: Part(path, partial(_read_list, path, read)) for name, path in named.items() if name}
    )


def _read_list(path: Path, read: Callable[..., CocoData], options: ReadOptions) -> CocoData:
    names = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    return read(names, path, options)


def _read(
    images: Path,
    base: Path,
    labels: _VOCLabels | _SBDLabels,
    names: Sequence[str],
    source: Path,
    options: ReadOptions,
) -> CocoData:
    if not images.is_dir():
        raise DatasetError(f"{base} has labels but no folder {images.name}; put the images there.")
    paths = by_stem(list_images(images), images)
    missing = [name for name in names if name not in paths]
    reject_unpaired(images, missing, "images of labels are missing", "put them there.")
    return assemble(_labelled(paths, labels, names), labels.class_names, source, options)


def _labelled(
    paths: dict[str, Path], labels: _VOCLabels | _SBDLabels, names: Sequence[str]
) -> Iterator[LabelledImage]:
    for name in names:
        objects, classes, file = labels.read(name, paths[name])
        if objects.shape != classes.shape:
            raise DatasetError(
                f"{file}: its objects have {objects.shape} pixels, its classes {classes.shape}; "
                "export both again."
            )
        height, width = objects.shape
        numbers, counts = label_counts(objects)
        kept = [i for i, number in enumerate(numbers) if number != labels.border]
        masks = [{"size": [height, width], "counts": counts[i]} for i in kept]
        values = _commonest_classes(objects, classes, numbers)[kept].tolist()
        for number, value in zip(numbers[kept].tolist(), values, strict=True):
            if not 1 <= value <= len(labels.class_names):
                raise DatasetError(
                    f"{file}: object {number} has class {value}, classes are 1 to "
                    f"{len(labels.class_names)}; correct the class image, or name the classes in "
                    f"{_LABEL_MAP}."
                )
        found = [value - 1 for value in values]
        yield LabelledImage(paths[name], width, height, found, masks, file.name)


def _commonest_classes(
    objects: NDArray[Any], classes: NDArray[Any], numbers: NDArray[Any]
) -> NDArray[np.int64]:
    """The class of most pixels of each object, the lowest of several.

    Args:
        objects: ``(H, W)`` numbers of objects.
        classes: ``(H, W)``.
        numbers: ``(N,)`` the objects, ascending, without the background 0.
    """
    inside = objects != 0
    rows = np.searchsorted(numbers, objects[inside])
    pairs, counts = np.unique(
        np.stack((rows, classes[inside].astype(np.int64))), axis=1, return_counts=True
    )
    order = np.lexsort((pairs[1], -counts, pairs[0]))  # by object, then from the commonest on
    _, first = np.unique(pairs[0][order], return_index=True)
    commonest: NDArray[np.int64] = pairs[1][order][first]
    return commonest


class _VOCLabels:
    """Label images in ``SegmentationObject`` and ``SegmentationClass``."""

    border = _BORDER

    def __init__(self, base: Path) -> None:
        self.base = base
        self.colours: dict[int, int] | None = None  # class by colour
        self.class_names = list(VOC_CLASSES)
        path = base / _LABEL_MAP
        if path.is_file():
            self.class_names, self.colours = _read_label_map(path)

    def read(self, name: str, image: Path) -> tuple[NDArray[Any], NDArray[Any], Path]:
        objects, path = self._values("SegmentationObject", name, image)
        classes, class_path = self._values("SegmentationClass", name, image)
        if classes.ndim == 3:
            if self.colours is None:
                raise DatasetError(
                    f"{class_path} holds colours, not classes; add {_LABEL_MAP} (name:r,g,b), or "
                    "save it with a palette."
                )
            classes = self._by_colour(colour_numbers(classes), class_path)
        if objects.ndim == 3:
            objects = colour_numbers(objects)
            objects = np.where(objects == colour_numbers(np.full((1, 1, 3), 224)), 0, objects)
        return objects, classes, path

    def _values(self, folder: str, name: str, image: Path) -> tuple[NDArray[Any], Path]:
        path = self.base / folder / f"{name}.png"
        return read_label_file(path, image), path

    def _by_colour(self, colours: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
        assert self.colours is not None
        values, places = np.unique(colours, return_inverse=True)
        unknown = [value for value in values.tolist() if value not in self.colours]
        if unknown:
            text = ",".join(str(unknown[0] >> shift & 255) for shift in (0, 8, 16))
            raise DatasetError(
                f"{path}: no class has the colour {text}; add it to {self.base / _LABEL_MAP}."
            )
        table = np.array([self.colours[value] for value in values.tolist()])
        return table[places].reshape(colours.shape)


class _SBDLabels:
    """MATLAB files in ``inst``, which hold objects and the class of each."""

    border = 0

    def __init__(self, base: Path) -> None:
        self.base = base
        self.class_names = list(VOC_CLASSES)

    def read(self, name: str, image: Path) -> tuple[NDArray[Any], NDArray[Any], Path]:  # noqa: ARG002
        path = self.base / "inst" / f"{name}.mat"
        try:
            content = read_matlab(path)["GTinst"][0, 0]
            objects = np.asarray(content["Segmentation"])
            of_object = np.append(0, np.asarray(content["Categories"]).ravel())
            return objects, of_object[objects], path
        except ImportError:
            raise
        except Exception as error:  # scipy raises almost anything for damaged files
            reason = " ".join(str(error).split())
            raise DatasetError(f"{path} cannot be read ({reason}); restore it.") from error


def _read_label_map(path: Path) -> tuple[list[str], dict[int, int]]:
    """Class names, and classes by colour; the background has the class 0."""
    names: list[str] = []
    colours: dict[int, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, _, rest = text.partition(":")
        values = rest.split(":")[0].split(",")
        if len(values) != 3 or not all(value.strip().isdigit() for value in values):
            raise DatasetError(
                f"{path}, line {number}: {text!r} is not name:r,g,b; correct the line."
            )
        colour = int(colour_numbers(np.array([int(value) for value in values])))
        if name == "background":
            colours[colour] = 0
            continue
        names.append(name)
        colours[colour] = len(names)
    return names, colours
