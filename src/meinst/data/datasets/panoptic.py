"""COCO's panoptic format: JSON, and a PNG file for each image with the number of each segment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from meinst.data.annotations.coco_file import load_lists
from meinst.data.annotations.file_names import leads_outside
from meinst.data.coco import CocoData
from meinst.data.datasets.assemble import LabelledImage, assemble
from meinst.data.datasets.image_folder import find_image_folder
from meinst.data.datasets.json_files import contains_key
from meinst.data.datasets.parts import (
    NO_MATCH,
    DatasetError,
    LayoutMatch,
    Part,
    ReadOptions,
    name_parts,
    read_label_file,
    reject_unpaired,
)
from meinst.ops.label_runs import colour_numbers, label_counts

_STUFF = "image with segments of classes without instances (stuff), which are not used"

_ENTRIES: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"image_id": int, "file_name": str, "segments_info": list},
    "categories": {"id": int, "name": str},
}
_SEGMENT: dict[str, type] = {"id": int, "category_id": int}


def find(root: Path) -> LayoutMatch:
    """Find panoptic JSON files, in the folder itself and in ``annotations``."""
    files = [
        path
        for folder in (root, root / "annotations")
        for path in sorted(folder.glob("*.json"))
        if is_panoptic(path)
    ]
    if not files:
        return NO_MATCH
    named = name_parts(files, root)
    return LayoutMatch({name: part(path) for name, path in named.items()})


def is_panoptic(path: Path) -> bool:
    """Whether a JSON file is panoptic."""
    return contains_key(path, "segments_info")


def part(path: Path) -> Part:
    """The part that a panoptic JSON file describes."""
    return Part(path, partial(_read, path))


def _read(path: Path, options: ReadOptions) -> CocoData:
    document = load_lists(path)
    for name, keys in _ENTRIES.items():
        _check_entries(document[name], name, keys, path)
    for annotation in document["annotations"]:
        _check_entries(annotation["segments_info"], "segments_info", _SEGMENT, path)
    folder = _label_folder(path)
    things = [c for c in document["categories"] if c.get("isthing", 1)]
    things.sort(key=lambda category: int(category["id"]))
    images = find_image_folder(document, path)
    labels = {category["id"]: label for label, category in enumerate(things)}
    names = [category["name"] for category in things]
    return assemble(_labelled(document, images, folder, labels, path), names, path, options)


def _check_entries(entries: Sequence[Any], name: str, keys: Mapping[str, type], path: Path) -> None:
    for position, entry in enumerate(entries):
        for key, kind in keys.items():
            if not isinstance(entry, dict) or type(entry.get(key)) is not kind:
                raise DatasetError(
                    f"{path}: entry {position} of {name} has no valid {key!r}; correct the file."
                )
        file_name = entry.get("file_name")
        if file_name is not None and leads_outside(file_name):
            raise DatasetError(f"{path}: {file_name} leads out of its folder; correct the file.")


def _label_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    if not folder.is_dir():
        raise DatasetError(
            f"{path}: the folder of its label images, {folder}, does not exist; put them there."
        )
    return folder


def _labelled(
    document: Mapping[str, Any],
    images: Path,
    folder: Path,
    labels: Mapping[int, int],
    path: Path,
) -> Iterator[LabelledImage]:
    known = {category["id"] for category in document["categories"]}
    entries = {entry["id"]: entry for entry in document["images"]}
    unknown = [a["file_name"] for a in document["annotations"] if a["image_id"] not in entries]
    reject_unpaired(path, unknown, "annotations of unknown images", "correct the file.")
    for annotation in document["annotations"]:
        entry = entries[annotation["image_id"]]
        label_file = folder / annotation["file_name"]
        segments = {segment["id"]: segment for segment in annotation["segments_info"]}
        notes: list[str] = []
        found, masks, crowd = [], [], []
        for number, counts in _segments(label_file, entry, images / entry["file_name"]):
            segment = segments.get(number)
            if segment is None or segment["category_id"] not in known:
                raise DatasetError(
                    f"{label_file}: segment {number} or its class is not in {path}; use the label "
                    "images of this file."
                )
            if segment["category_id"] not in labels:
                notes.append(_STUFF)
                continue
            found.append(labels[segment["category_id"]])
            masks.append({"size": [entry["height"], entry["width"]], "counts": counts})
            crowd.append(bool(segment.get("iscrowd", 0)))
        yield LabelledImage(
            images / entry["file_name"],
            entry["width"],
            entry["height"],
            found,
            masks,
            label_file.name,
            crowd,
            notes,
        )


def _segments(path: Path, entry: Mapping[str, Any], image: Path) -> Iterator[tuple[int, Any]]:
    """Number and run lengths of each segment of a label image."""
    colours = read_label_file(path, image)
    if colours.ndim != 3 or colours.shape[:2] != (entry["height"], entry["width"]):
        raise DatasetError(
            f"{path} has the shape {colours.shape}, not ({entry['height']}, {entry['width']}, 3); "
            "use the label image of this annotation."
        )
    numbers, counts = label_counts(colour_numbers(colours))
    return zip(numbers.tolist(), counts, strict=True)
