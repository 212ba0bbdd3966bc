"""COCO annotation files whose images are found: COCO's own folders, LVIS, and exports of tools.

Recognised are ``annotations/instances_train2017.json`` beside ``train2017``, Roboflow's
``train/_annotations.coco.json``, CVAT's ``annotations/instances_default.json`` and ``images``, and
Label Studio's ``result.json`` and ``images``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from meinst.data.annotations.coco_file import check_document, load_lists
from meinst.data.coco import CocoData, read_document
from meinst.data.datasets.image_folder import find_image_folder
from meinst.data.datasets.json_files import contains_key
from meinst.data.datasets.parts import NO_MATCH, LayoutMatch, Part, ReadOptions, name_parts

_KEYS = ("images", "annotations", "categories")
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")


def find(root: Path) -> LayoutMatch:
    """Find COCO annotation files in the folder, its folders, and their ``annotations``."""
    files = [
        path
        for pattern in ("*.json", "*/*.json", "*/annotations/*.json")
        for path in sorted(root.glob(pattern))
        if is_coco(path)
    ]
    files = [path for path in files if not path.name.startswith(_OTHER_TASKS)] or files
    if not files:
        return NO_MATCH
    named = name_parts(files, root)
    return LayoutMatch({name: part(path) for name, path in named.items()})


def is_coco(path: Path) -> bool:
    """Whether a JSON file has COCO's lists, and masks of instances."""
    return contains_key(path, *_KEYS) and not contains_key(path, "segments_info")


def part(path: Path) -> Part:
    """The part that an annotation file describes."""
    return Part(path, partial(_read, path))


def _read(path: Path, options: ReadOptions) -> CocoData:
    document = load_lists(path)
    folder = find_image_folder(document, path)
    check_document(document, path, folder, allow_outside=options.allow_outside)
    return read_document(
        document,
        path,
        folder,
        crowd_as_instances=options.crowd_as_instances,
        boxes_alone=options.boxes_alone,
    )
