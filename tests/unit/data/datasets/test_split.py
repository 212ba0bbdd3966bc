from pathlib import Path

import layouts
import numpy as np
import pytest

from meinst.data.coco import CocoData
from meinst.data.datasets.dataset import open_dataset
from meinst.data.datasets.parts import DatasetError
from meinst.data.datasets.split import group_by_content, read_split, split, write_split


def folder_of(root: Path, pictures: dict[str, list[int]]) -> CocoData:
    """YOLO data of one picture for each name; the letters of a name are its content."""
    (root / "images").mkdir()
    (root / "labels").mkdir()
    classes = 1 + max((label for labels in pictures.values() for label in labels), default=0)
    for name, labels in pictures.items():
        layouts.draw(name[0]).save(root / "images" / f"{name}.png")
        lines = [f"{label} 0.1 0.1 0.5 0.1 0.5 0.5" for label in labels]
        (root / "labels" / f"{name}.txt").write_text("\n".join(lines))
    (root / "classes.txt").write_text("\n".join(f"class {i}" for i in range(classes)))
    return open_dataset(root).read("all")


def test_doubles_stay_together(tmp_path: Path) -> None:
    data = folder_of(tmp_path, {f"{letter}{i}": [0] for letter in "abcd" for i in range(3)})
    groups = group_by_content([record.path for record in data.images if record.path])
    assert groups == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    seen = set()
    for seed in range(20):
        parts = split(data, share=0.25, seed=seed)
        assert sorted(parts.train + parts.val) == list(range(12))
        assert list(parts.val) in groups
        assert parts == split(data, share=0.25, seed=seed)
        seen.add(parts.val)
    assert len(seen) == 4


def test_no_class_is_left_out_of_training(tmp_path: Path) -> None:
    labels = {"a1": [0], "b1": [0, 1], "c1": [0], "d1": [0], "a2": [0]}
    data = folder_of(tmp_path, labels)
    for seed in range(20):
        parts = split(data, share=0.6, seed=seed)
        assert {1} <= {int(i) for k in parts.train for i in data.instances[k].labels}
        assert 1 <= len(parts.val) <= 3
        train = data.select(parts.train)
        assert len(train) == len(parts.train)
        assert np.array_equal(train.instances[0].boxes, data.instances[parts.train[0]].boxes)


def test_sets_that_cannot_be_divided_are_rejected(tmp_path: Path) -> None:
    for name in ("double", "single"):
        (tmp_path / name).mkdir()
    double = folder_of(tmp_path / "double", {"a1": [0], "a2": [0]})
    with pytest.raises(DatasetError, match="2 images, 1 of them different, cannot be divided"):
        split(double)
    single = folder_of(tmp_path / "single", {"a": [0], "b": [1]})
    with pytest.raises(DatasetError, match="every image is the only one of a class"):
        split(single)


def test_split_is_written_down_and_read_again(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    data = folder_of(tmp_path / "set", {name: [0] for name in "abcd"})
    parts = split(data, seed=3)
    path = tmp_path / "split.json"
    write_split(path, data, parts, seed=3)
    assert read_split(path, data) == parts
    with pytest.raises(DatasetError, match=r"not those that were divided \(3 now, 4 then\)"):
        read_split(path, data.select([0, 1, 2]))
    path.write_text("{}")
    with pytest.raises(DatasetError, match=r"split\.json is damaged"):
        read_split(path, data)
