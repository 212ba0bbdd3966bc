"""The layouts of data sets, and how a folder is matched with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meinst.data.datasets import (
    class_masks,
    coco_files,
    label_images,
    labelme,
    panoptic,
    yolo,
)
from meinst.data.datasets.parts import WHOLE, DatasetError, LayoutMatch


@dataclass(frozen=True)
class Layout:
    """A layout of data sets.

    Attributes:
        name: what users call it.
        looks_for: the files by which it is recognised.
        find: finds its parts in a folder.
    """

    name: str
    looks_for: str
    find: Callable[[Path], LayoutMatch]


LAYOUTS = (
    Layout(
        "COCO JSON",
        "*.json with images, annotations and categories (also of LVIS, Roboflow, CVAT and Label "
        "Studio)",
        coco_files.find,
    ),
    Layout("COCO panoptic", "*.json with segments_info", panoptic.find),
    Layout(
        "YOLO",
        "data.yaml, or classes.txt or obj.names with labels/*.txt",
        yolo.find,
    ),
    Layout("labelme", "*.json with shapes", labelme.find),
    Layout("Pascal VOC", "SegmentationObject/ and SegmentationClass/", class_masks.find_voc),
    Layout("SBD", "img/ and inst/*.mat", class_masks.find_sbd),
    Layout(
        "label images",
        "images/ and masks/, or *_masks.tif (or .png) beside the images",
        label_images.find,
    ),
)


def find_layout(path: Path) -> tuple[str, LayoutMatch]:
    """Find the layout of a data set, and its parts.

    Args:
        path: a folder, a YOLO description (``.yaml``) or a COCO annotation file (``.json``).

    Returns:
        The name of the layout, and what was found.

    Raises:
        FileNotFoundError: if the path does not exist.
        DatasetError: if it has none of the layouts, or several.
    """
    if not path.exists():
        raise FileNotFoundError(f"The data set {path} does not exist.")
    if path.is_file():
        return _of_file(path)
    near: list[str] = []
    matches: list[tuple[str, LayoutMatch]] = []
    for layout in LAYOUTS:
        found = layout.find(path)
        if found.parts:
            matches.append((layout.name, found))
        elif found.missing:
            near.append(f"{layout.name}: {found.missing}")
    if len(matches) == 1:
        return matches[0]
    if matches:
        kinds = " and ".join(f"{name} ({_places(found, path)})" for name, found in matches)
        raise DatasetError(
            f"{path} has {len(matches)} layouts at once: {kinds}; give one of these."
        )
    nearest = f"; the nearest match is {near[0]}" if near else ""
    looked = "; ".join(f"{layout.name}: {layout.looks_for}" for layout in LAYOUTS)
    raise DatasetError(f"{path} has none of the known layouts{nearest}. Looked for {looked}.")


def _places(found: LayoutMatch, root: Path) -> str:
    return ", ".join(str(part.source.relative_to(root)) for part in found.parts.values())


def _of_file(path: Path) -> tuple[str, LayoutMatch]:
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml"):
        return "YOLO", yolo.find_described(path)
    if suffix == ".json":
        if panoptic.is_panoptic(path):
            return "COCO panoptic", LayoutMatch({WHOLE: panoptic.part(path)})
        if labelme.is_labelme(path):
            raise DatasetError(
                f"{path} is the labelme file of one image; give the folder of all of them."
            )
        return "COCO JSON", LayoutMatch({WHOLE: coco_files.part(path)})
    raise DatasetError(
        f"{path} is no data set: give a folder, a data.yaml or a COCO annotation file (.json)."
    )
