"""Every layout that is written is read again with the same objects."""

from __future__ import annotations

from pathlib import Path

import layouts
import numpy as np
import pytest
from conftest import SyntheticData, draw_mask

from meinst.data.coco import CocoData, read_coco
from meinst.data.datasets.dataset import join, open_dataset
from meinst.data.datasets.parts import DatasetError
from meinst.data.datasets.sample import sample
from meinst.data.shapes import Bitmap, bitmap_from_counts
from meinst.data.writers.convert import WRITERS, write_dataset
from meinst.data.writers.masks import joined_outline, pixels
from meinst.ops.label_runs import label_counts


@pytest.fixture(scope="module")
def data(synthetic_data: SyntheticData) -> CocoData:
    """Discs and crowds as run lengths, boxes of one and two parts as polygons."""
    return read_coco(synthetic_data.annotations, synthetic_data.images)


def masks(data: CocoData, index: int) -> list[tuple[str, np.ndarray]]:
    """Class and pixels of the objects of an image, without crowds."""
    record, instances = data.images[index], data.instances[index]
    return [
        (data.class_names[label], pixels(shape, record.height, record.width))
        for label, shape, crowd in zip(
            instances.labels, instances.shapes, instances.crowd, strict=True
        )
        if not crowd
    ]


@pytest.mark.parametrize("target", WRITERS)
def test_round_trip_keeps_every_pixel(target: str, data: CocoData, tmp_path: Path) -> None:
    parts = {"train": data.select(range(3)), "val": data.select(range(3, len(data)))}
    seen = []
    output = tmp_path / "out"
    lost = write_dataset(parts, output, target, on_image=lambda: seen.append(1))  # type: ignore[arg-type]
    assert len(seen) == len(data)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    dataset = open_dataset(output)
    assert list(dataset.parts) == ["train", "val"]
    crowds = sum(int(each.crowd.sum()) for each in data.instances)
    assert crowds > 0
    assert lost["crowd regions"] == (0 if target == "coco" else crowds)
    assert lost[f"classes: all of {len(data.class_names)} become one"] == (
        target == "label-images"
    ) * sum(int((~each.crowd).sum()) for each in data.instances)
    for name, part in parts.items():
        again = dataset.read(name)
        assert len(again) == len(part)
        place = {record.path.name: i for i, record in enumerate(again.images) if record.path}
        for index, record in enumerate(part.images):
            assert record.path is not None
            found = place[record.path.name]
            expected, objects = masks(part, index), masks(again, found)
            assert again.images[found].path.read_bytes() == record.path.read_bytes()  # type: ignore[union-attr]
            if target == "label-images":  # a pixel belongs to the last of its objects
                later = [
                    np.any([m for _, m in expected[i + 1 :]], axis=0) for i in range(len(expected))
                ]
                expected = [
                    ("object", m & ~hide) for (_, m), hide in zip(expected, later, strict=True)
                ]
            assert len(objects) == len(expected)
            for (class_name, mask), (expected_name, expected_mask) in zip(
                objects, expected, strict=True
            ):
                assert class_name == expected_name
                assert np.array_equal(mask, expected_mask)


def test_coco_keeps_crowds_boxes_and_areas(data: CocoData, tmp_path: Path) -> None:
    assert not write_dataset({"all": data}, tmp_path / "out", "coco")
    again = open_dataset(tmp_path / "out").read("all")
    for before, after in zip(data.fields, again.fields, strict=True):
        assert np.array_equal(before.boxes, after.boxes)
        assert np.array_equal(before.areas, after.areas)
    for one, other in zip(data.instances, again.instances, strict=True):
        assert np.array_equal(one.crowd, other.crowd)


def test_masks_of_several_parts_and_holes_become_one_outline() -> None:
    mask = np.zeros((40, 50), bool)
    mask[3:20, 4:25] = True
    mask[8:12, 9:15] = False
    mask[25:30, 30:44] = True
    mask |= draw_mask("disc", (40, 8, 5), 40, 50)
    bitmap = bitmap_from_counts(label_counts(mask.astype(np.uint8))[1][0], 40, 50)
    assert isinstance(bitmap, Bitmap)
    outline = np.array(joined_outline(bitmap))
    assert np.array_equal(pixels((outline,), 40, 50), mask)


def test_lost_overlaps_are_counted(tmp_path: Path) -> None:
    layouts.write_coco(tmp_path / "in")
    data = open_dataset(tmp_path / "in").read("val")
    doubled = CocoData(
        data.annotations,
        data.images,
        (data.instances[0].select(np.array([0, 1, 2, 2])),),
        data.fields,
        data.class_names,
        data.category_ids,
        data.report,
    )
    lost = write_dataset({"all": doubled}, tmp_path / "out", "label-images")
    assert lost["overlaps: a pixel belongs to the last of its objects"] == 1
    assert lost["objects without a pixel of their own"] == 1


def test_images_of_the_same_name_are_both_written(tmp_path: Path) -> None:
    layouts.write_roboflow_yolo(tmp_path / "in")
    dataset = open_dataset(tmp_path / "in")
    both = join([dataset.read("train"), dataset.read("train")])
    assert [record.id for record in both.images] == [1, 2, 3, 4, 5, 6]
    write_dataset({"all": both}, tmp_path / "out", "yolo")
    again = open_dataset(tmp_path / "out").read("train")
    assert len(again) == 6
    assert sum(map(len, again.instances)) == 18


def test_faults_leave_nothing_behind(data: CocoData, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(DatasetError, match=r"full is not empty; choose another folder"):
        write_dataset({"all": data}, tmp_path / "full")
    layouts.write_yolo(tmp_path / "in")
    other = open_dataset(tmp_path / "in").read("train")
    with pytest.raises(DatasetError, match="parts have different classes"):
        write_dataset({"train": data, "val": other}, tmp_path / "out")
    (tmp_path / "in/images/train/c.png").unlink()
    with pytest.raises(DatasetError, match=r"c\.png cannot be copied"):
        write_dataset({"all": other}, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "in"]


def test_sample_keeps_classes_in_proportion(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layouts.write_yolo(tmp_path)
    template = open_dataset(tmp_path).read("train")
    kinds = rng.choice(3, 300, p=[0.7, 0.28, 0.02])  # cat, dog, both
    rows = {0: [0], 1: [1], 2: [0, 1]}
    many = CocoData(
        template.annotations,
        tuple(template.images[0] for _ in kinds),
        tuple(template.instances[0].select(np.array(rows[int(kind)])) for kind in kinds),
        tuple(template.fields[0] for _ in kinds),
        template.class_names,
        template.category_ids,
        template.report,
    )
    chosen = sample(many, 30, seed=1)
    assert chosen == sorted(set(chosen))
    assert chosen == sample(many, 30, seed=1) != sample(many, 30, seed=2)
    labels = np.concatenate([many.instances[i].labels for i in chosen])
    everything = np.concatenate([each.labels for each in many.instances])
    assert abs(labels.mean() - everything.mean()) < 0.02
    with pytest.raises(DatasetError, match="a sample of 301 images is impossible; it has 300"):
        sample(many, 301)
